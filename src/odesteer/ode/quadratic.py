"""How does a quadratic log density ratio on the centred sphere look, and flow?

    h(a) = y^T A y + g . y + const   on the sphere: y = S^-1(a - m), divided by its norm

A degree-2 polynomial kernel machine on normalised activations is exactly this function.
With V (d x k, orthonormal) spanning the eigenvectors of A and g, and V^T A V = Lambda
diagonal, it is  h = zeta . Lambda zeta + beta . zeta + const,  zeta = V^T y / ||y||.

Its flow never leaves the span of V and the activation's own remainder, so the ODE in d
dimensions is one in k + 1, exactly: see `ReducedFlow`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesteer.ode.barrier import Barrier, Sphere
from odesteer.ode.whitening import Whitening


def _unit(x: Tensor, norm: Tensor) -> Tensor:
    """x / norm, and 0 where the norm is 0."""
    return torch.where(norm > 0, x / norm, torch.zeros_like(x))


def _is_above_noise(length: Tensor, q: Tensor) -> Tensor:
    """False where q is radial up to rounding: a critical point, where the field is 0."""
    return length > 16 * torch.finfo(q.dtype).eps * q.norm(dim=-1, keepdim=True)


class QuadraticBarrier(Barrier):
    """h(a) = zeta . Lambda zeta + beta . zeta + const on the centred, partially whitened sphere.

    Args:
        whitening: the coordinates y; `Whitening(torch.zeros(d))` is the paper's sphere.
        basis: V, [d, k] with orthonormal columns.
        curvature: the diagonal of Lambda, [k].
        slope: beta, [k].
        constant: [], or a number.

    Raises:
        ValueError: if the shapes do not fit together.
    """

    def __init__(
        self,
        whitening: Whitening,
        basis: Tensor,
        curvature: Tensor,
        slope: Tensor,
        constant: Tensor | float,
    ):
        super().__init__()
        d, k = basis.shape
        if curvature.shape != (k,) or slope.shape != (k,) or whitening.centre.shape != (d,):
            raise ValueError(
                f"QuadraticBarrier needs basis [d, k], curvature [k], slope [k] and a centre [d]; "
                f"got {list(basis.shape)}, {list(curvature.shape)}, {list(slope.shape)} and "
                f"{list(whitening.centre.shape)}."
            )
        self.whitening = whitening
        self.basis: Tensor
        self.curvature: Tensor
        self.slope: Tensor
        self.constant: Tensor
        self.register_buffer("basis", basis)
        self.register_buffer("curvature", curvature)
        self.register_buffer("slope", slope)
        self.register_buffer("constant", torch.as_tensor(constant, dtype=basis.dtype))
        self.reader: Tensor
        self.writer: Tensor
        self.gram: Tensor
        for name in ("reader", "writer", "gram"):
            self.register_buffer(name, None, persistent=False)
        self._derive()

    def _derive(self) -> None:
        """What enters and leaves y in the reduced flow; equal to the basis when S = I."""
        self.reader = self.whitening.power(self.basis.mT, -1).mT
        self.writer = self.whitening.power(self.basis.mT, 1).mT
        self.gram = self.writer.mT @ self.writer

    def _apply(self, *args: Any, **kwargs: Any) -> "QuadraticBarrier":
        # In a new precision they are derived again, not cast: a barrier that was fitted and
        # one that was loaded agree to the bit.
        super()._apply(*args, **kwargs)
        self._derive()
        return self

    @staticmethod
    def from_form(
        form: Tensor,
        slope: Tensor,
        constant: Tensor | float,
        whitening: Whitening,
        rank: int | None = None,
    ) -> "QuadraticBarrier":
        """From A [d, d] and g [d]: y^T A y + g . y + constant, with the k largest |eigenvalues|."""
        double = form.double()
        eigenvalues, vectors = torch.linalg.eigh((double + double.mT) / 2)
        return _from_eigen(eigenvalues, vectors, slope, constant, whitening, rank)

    @staticmethod
    def from_kernel(
        support: Tensor,
        weights: Tensor,
        gamma: float,
        c0: float,
        constant: Tensor | float,
        whitening: Whitening,
        rank: int | None = None,
    ) -> "QuadraticBarrier":
        """From a kernel machine: sum_i weights_i (gamma x_i . y + c0)^2 + constant.

        A = gamma^2 sum_i w_i x_i x_i^T, g = 2 gamma c0 sum_i w_i x_i. With fewer rows than
        dimensions the eigenvectors are found in the span of the rows, at the cost of an
        [n, n] problem instead of a [d, d] one.

        Args:
            support: x_i, [n, d], unit rows in the coordinates y.
            weights: [n].
            gamma, c0: the kernel's scale and offset.
            constant: added to c0^2 sum_i w_i.
            whitening: the coordinates.
            rank: eigenvalues of A to keep, largest magnitudes first; None keeps all.
        """
        n, d = support.shape
        if n < d:
            frame, triangle = torch.linalg.qr(support.mT)
            small = (triangle * weights) @ triangle.mT
            eigenvalues, vectors = torch.linalg.eigh(gamma**2 * (small + small.mT) / 2)
            vectors = frame @ vectors
        else:
            form = gamma**2 * (support.mT * weights) @ support
            eigenvalues, vectors = torch.linalg.eigh((form + form.mT) / 2)
        slope = 2 * gamma * c0 * (weights @ support)
        constant = c0**2 * weights.sum() + constant
        return _from_eigen(eigenvalues, vectors, slope, constant, whitening, rank)

    def value(self, a: Tensor) -> Tensor:
        y = self.whitening(a)
        zeta = _unit(y, y.norm(dim=-1, keepdim=True)) @ self.basis
        return (self.curvature * zeta.square() + self.slope * zeta).sum(dim=-1) + self.constant

    def gradient_in_y(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient with respect to y, and ||y|| [..., 1]."""
        y = self.whitening(a)
        radius = y.norm(dim=-1, keepdim=True)
        unit = _unit(y, radius)
        zeta = unit @ self.basis
        q = 2.0 * self.curvature * zeta + self.slope
        radial = (zeta * q).sum(dim=-1, keepdim=True)
        tangent = q @ self.basis.mT - radial * unit
        return _unit(
            tangent * _is_above_noise(tangent.norm(dim=-1, keepdim=True), q), radius
        ), radius

    def gradient(self, a: Tensor) -> Tensor:
        return self.whitening.power(self.gradient_in_y(a)[0], -1)

    def ascent(self, a: Tensor) -> Tensor:
        """S grad_y h = S^2 grad_a h: steepest in y, the metric Sigma^2p in a."""
        return self.whitening.power(self.gradient_in_y(a)[0], 1)

    def sphere(self, a: Tensor) -> Sphere:
        gradient, radius = self.gradient_in_y(a)
        moved = self.whitening.power(gradient, 1).norm(dim=-1, keepdim=True)
        stretch = _unit(moved, gradient.norm(dim=-1, keepdim=True))
        return Sphere(a - self.whitening.centre, radius * stretch)

    @property
    def width(self) -> int:
        return self.basis.shape[0]

    def affine(self, scale: float, offset: float = 0.0) -> "QuadraticBarrier":
        return QuadraticBarrier(
            self.whitening,
            self.basis,
            scale * self.curvature,
            scale * self.slope,
            scale * self.constant + offset,
        )


def _from_eigen(
    eigenvalues: Tensor,
    vectors: Tensor,
    slope: Tensor,
    constant: Tensor | float,
    whitening: Whitening,
    rank: int | None,
) -> QuadraticBarrier:
    """Keep the largest eigenvalues, add g to their span, make Lambda diagonal there."""
    d, dtype = vectors.shape[0], whitening.centre.dtype
    vectors, eigenvalues, slope = vectors.double(), eigenvalues.double(), slope.double()
    magnitude = eigenvalues.abs()
    order = magnitude.argsort(descending=True)
    if rank is None:
        rank = int((magnitude > 1e-12 * magnitude.max()).sum())
    kept = order[:rank]
    basis, lam = vectors[:, kept], eigenvalues[kept]
    if rank < d:
        remainder = slope - basis @ (basis.mT @ slope)
        remainder = remainder - basis @ (basis.mT @ remainder)  # twice is enough (Kahan)
        if remainder.norm() > 1e-12 * slope.norm():
            basis = torch.cat([basis, (remainder / remainder.norm()).unsqueeze(1)], dim=1)
            lam = torch.cat([lam, lam.new_zeros(1)])
    # Lambda stays diagonal: the truncated A vanishes on the added column.
    slope = basis.mT @ slope
    return QuadraticBarrier(
        whitening, basis.to(dtype).contiguous(), lam.to(dtype), slope.to(dtype), constant
    )


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
        unit = _unit(x, radius)
        zeta = unit[..., :-1]
        q = 2.0 * self.barrier.curvature * zeta + self.barrier.slope
        c = (zeta * q).sum(dim=-1, keepdim=True)
        tangent = torch.cat([q - c * zeta, -c * unit[..., -1:]], dim=-1)
        length = self._radius(tangent)
        moves = _is_above_noise(length, q) & (radius > 0)
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
        return _unit(tangent, in_y if self.cross is None else self.length(tangent))

    def value(self, x: Tensor) -> Tensor:
        """h, [..., k + 1] -> [...]."""
        barrier, zeta = self.barrier, _unit(x[..., :-1], self._radius(x))
        terms = barrier.curvature * zeta.square() + barrier.slope * zeta
        return terms.sum(dim=-1) + barrier.constant

    def turn(self, x: Tensor, time: Tensor) -> Tensor:
        """Along the great circle of y, whose initial speed in a is 1, for `time` [..., 1]."""
        tangent, radius, in_y = self._tangent(x)
        in_a = in_y if self.cross is None else self.length(tangent)
        angle = time * _unit(in_y, in_a * radius)
        return angle.cos() * x + angle.sin() * radius * _unit(tangent, in_y)


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
