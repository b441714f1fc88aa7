"""Reduced flow of a quadratic barrier in k + 1 dimensions.

    a - m = x = S y,   y = V z + s y_perp,   p = ||y_perp||,   sigma = s p

V^T y_perp = 0, and along the flow y_perp is only scaled: (z, sigma) is a state in k + 1
orthonormal coordinates of y, and a(T) = a + (s - 1) x + S V (z(T) - s z(0)).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from odesteer.ode.barriers.quadratic import ReducedBasis, is_above_noise, unit_or_zero


class ReducedFlow(NamedTuple):
    """The unit-speed flow of a quadratic barrier in k + 1 coordinates, exactly.

    State (z, sigma), [..., k + 1], with u = (z, sigma) / r and r its length:

        q = 2 (Lambda, 0) u + (beta, 0),   c = u . q,   t = q - c u
        d(z, sigma) = t / n,   n = the length in a of moving the state by t

    For S = I, n = ||t||. In general, with t = (t_z, t_sigma),

        n^2 = t_z . G t_z + 2 t_sigma w . t_z + t_sigma^2 P^2
        G = V^T S^2 V,   w = V^T S^2 y_perp / p,   P = ||S y_perp|| / p

    Runge-Kutta steps commute with this linear change of coordinates, so a step here equals
    the same step in d dimensions.
    """

    basis: ReducedBasis
    cross: Tensor | None  # w, [..., k]; None when S = I
    stretched: Tensor | None  # P^2, [..., 1]; None when S = I

    def _tangent(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return t, r, and the length of t in y."""
        radius = x.norm(dim=-1, keepdim=True)
        u = unit_or_zero(x, radius)
        q = torch.addcmul(self.basis.slope, self.basis.curvature, u)
        tangent = q - (u * q).sum(dim=-1, keepdim=True) * u
        length = tangent.norm(dim=-1, keepdim=True)
        moves = is_above_noise(length, q) & (radius > 0)
        return tangent * moves, radius, length * moves

    def length(self, x: Tensor) -> Tensor:
        """Return the length in a of a displacement of the state: [..., k + 1] -> [..., 1]."""
        if self.cross is None or self.stretched is None:
            return x.norm(dim=-1, keepdim=True)
        z, sigma = x[..., :-1], x[..., -1:]
        integrator = z * (z @ self.basis.gram + 2.0 * sigma * self.cross)
        squared = integrator.sum(dim=-1, keepdim=True) + sigma.square() * self.stretched
        return squared.clamp_min(0.0).sqrt()

    def __call__(self, x: Tensor) -> Tensor:
        tangent, _, in_y = self._tangent(x)
        return unit_or_zero(tangent, in_y if self.cross is None else self.length(tangent))

    def value(self, x: Tensor) -> Tensor:
        """Return h, [..., k + 1] -> [...]."""
        basis = self.basis
        u = unit_or_zero(x, x.norm(dim=-1, keepdim=True))
        half = torch.addcmul(basis.slope, basis.curvature, u, value=0.5)
        return (half * u).sum(dim=-1) + basis.constant

    @property
    def spherical(self) -> bool:
        return True

    def longest(self, x: Tensor) -> Tensor:
        """Return 2 ||grad_u h|| / L radians along the great circle in y, as time [..., 1].

        L = 2 (lambda_max - lambda_min) + ||g||.
        """
        tangent, radius, in_y = self._tangent(x)
        in_a = in_y if self.cross is None else self.length(tangent)
        doubled = self.basis.curvature
        smoothness = doubled.amax() - doubled.amin() + self.basis.slope.norm()
        return unit_or_zero(2.0 * in_a * radius, smoothness)

    def rotate(self, x: Tensor, time: Tensor) -> Tensor:
        """Move along the great circle in y, at initial speed 1 in a, for `time` [..., 1]."""
        tangent, radius, in_y = self._tangent(x)
        in_a = in_y if self.cross is None else self.length(tangent)
        angle = time * unit_or_zero(in_y, in_a * radius)
        return angle.cos() * x + angle.sin() * radius * unit_or_zero(tangent, in_y)


class ReducedState(NamedTuple):
    """Reduced flow of some activations and their initial state.

    Attributes:
        flow: the ODE in k + 1 dimensions.
        start: (z, p), [..., k + 1].
    """

    flow: ReducedFlow
    start: Tensor


def project(basis: ReducedBasis, coordinates: Tensor, length: Tensor) -> ReducedState:
    """Complete the projection of x = a - m, given its one product with [d, m].

    Args:
        basis: of the barrier.
        coordinates: x @ basis.projection, [..., m].
        length: ||x||, [..., 1].
    """
    squared = length.square()
    if basis.whitened_projection is None:
        z, cross, stretched = coordinates, None, None
        p = (squared - z.square().sum(dim=-1, keepdim=True)).clamp_min(0.0).sqrt()
    else:
        # The first columns of the projection are the directions of S.
        along = coordinates[..., : len(basis.shrinkage)]
        in_y = squared + (along.square() @ basis.shrinkage).unsqueeze(-1)
        z, projected = (coordinates @ basis.whitened_projection).chunk(2, dim=-1)
        p = (in_y - z.square().sum(dim=-1, keepdim=True)).clamp_min(0.0).sqrt()
        mixed = z @ basis.gram
        left = squared + (z * (mixed - 2.0 * projected)).sum(dim=-1, keepdim=True)
        cross = unit_or_zero(projected - mixed, p)
        stretched = unit_or_zero(left.clamp_min(0.0), p.square())
    return ReducedState(ReducedFlow(basis, cross, stretched), torch.cat([z, p], dim=-1))


def displacement(start: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return s - 1 [..., 1] and z(T) - s z(0) [..., k], the displacement before the lift.

    a(T) = a + (s - 1) x + S V (z(T) - s z(0)). A row in the span of V has no remainder to scale:
    there s is 1.
    """
    p, sigma = start[..., -1:], state[..., -1:]
    shift = torch.where(p > 0, (sigma - p) / p, torch.zeros_like(p))
    return shift, state[..., :-1] - (1.0 + shift) * start[..., :-1]
