"""How is the flow of a quadratic barrier solved in k + 1 dimensions, exactly?"""

from typing import NamedTuple

import torch
from torch import Tensor

from odesteer.ode.quadratic import QuadraticBarrier, is_above_noise, unit_or_zero


class ReducedFlow(NamedTuple):
    """The unit-speed flow of a quadratic barrier in k + 1 coordinates, exactly.

    With y = V z + s y_perp (y_perp: what V does not span of the start) the flow moves z
    and only scales s. State (z, s), [..., k + 1]:

        r^2 = ||z||^2 + s^2 p^2,   p = ||y_perp||,   q = 2 Lambda z / r + beta
        c = z . q / r,   t = q - c z / r,   t_s = -s c / r
        dz = t / n,  ds = t_s / n,   n = the length in a of moving (z, s) by (t, t_s)
        a(T) = m + s (a - m) + S V (z(T) - s z(0))

    n^2 = t . N t + 2 t_s w . t + t_s^2 P^2 with N = V^T S^2 V, w = V^T S^2 y_perp,
    P = ||S y_perp||; for S = I that is ||t||^2 + t_s^2 p^2. Runge-Kutta methods commute
    with this linear change of coordinates, so solving here or in d dimensions gives the
    same result; the cost is two thin products with V whatever the number of steps.
    """

    barrier: QuadraticBarrier
    remainder: Tensor  # p^2, [..., 1]
    cross: Tensor | None  # w, [..., k]; None when S = I
    stretched: Tensor | None  # P^2, [..., 1]; None when S = I

    def _radius(self, x: Tensor) -> Tensor:
        """r = ||y||, [..., 1]."""
        z, s = x[..., :-1], x[..., -1:]
        return (z.square().sum(dim=-1, keepdim=True) + s.square() * self.remainder).sqrt()

    def _tangent(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(t, t_s) stacked, r, and its length n_y in y."""
        radius = self._radius(x)
        unit = unit_or_zero(x, radius)
        zeta = unit[..., :-1]
        q = 2.0 * self.barrier.curvature * zeta + self.barrier.slope
        c = (zeta * q).sum(dim=-1, keepdim=True)
        tangent = torch.cat([q - c * zeta, -c * unit[..., -1:]], dim=-1)
        length = self._radius(tangent)
        moves = is_above_noise(length, q) & (radius > 0)
        return tangent * moves, radius, length * moves

    def length(self, x: Tensor) -> Tensor:
        """How far in a a displacement of the state reaches: [..., k + 1] -> [..., 1]."""
        if self.cross is None or self.stretched is None:
            return self._radius(x)
        z, s = x[..., :-1], x[..., -1:]
        inner = (z * (z @ self.barrier.gram + 2.0 * s * self.cross)).sum(dim=-1, keepdim=True)
        return (inner + s.square() * self.stretched).clamp_min(0.0).sqrt()

    def __call__(self, x: Tensor) -> Tensor:
        tangent, _, in_y = self._tangent(x)
        return unit_or_zero(tangent, in_y if self.cross is None else self.length(tangent))

    def value(self, x: Tensor) -> Tensor:
        """h, [..., k + 1] -> [...]."""
        barrier, zeta = self.barrier, unit_or_zero(x[..., :-1], self._radius(x))
        terms = barrier.curvature * zeta.square() + barrier.slope * zeta
        return terms.sum(dim=-1) + barrier.constant

    def turn(self, x: Tensor, time: Tensor) -> Tensor:
        """Along the great circle of y, whose initial speed in a is 1, for `time` [..., 1]."""
        tangent, radius, in_y = self._tangent(x)
        in_a = in_y if self.cross is None else self.length(tangent)
        angle = time * unit_or_zero(in_y, in_a * radius)
        return angle.cos() * x + angle.sin() * radius * unit_or_zero(tangent, in_y)


def reduce(barrier: QuadraticBarrier, a: Tensor) -> tuple[ReducedFlow, Tensor]:
    """The reduced flow from a [..., d], and its starting state [..., k + 1]."""
    offset = a - barrier.whitening.centre
    z = offset @ barrier.reader
    squared = barrier.whitening.squared_norm(offset)
    remainder = (squared - z.square().sum(dim=-1, keepdim=True)).clamp_min(0.0)
    start = torch.cat([z, torch.ones_like(remainder)], dim=-1)
    if barrier.whitening.is_plain:
        return ReducedFlow(barrier, remainder, None, None), start
    projected = offset @ barrier.writer
    mixed = z @ barrier.gram
    cross = projected - mixed
    stretched = offset.square().sum(dim=-1, keepdim=True)
    stretched = stretched + (z * (mixed - 2.0 * projected)).sum(dim=-1, keepdim=True)
    return ReducedFlow(barrier, remainder, cross, stretched.clamp_min(0.0)), start


def lift(barrier: QuadraticBarrier, a: Tensor, start: Tensor, state: Tensor) -> Tensor:
    """The activation of a state: m + s (a - m) + S V (z - s z(0))."""
    z, s = state[..., :-1], state[..., -1:]
    centre = barrier.whitening.centre
    return centre + s * (a - centre) + (z - s * start[..., :-1]) @ barrier.writer.mT
