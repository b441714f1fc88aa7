"""Quadratic log density ratio on the centred sphere.

    h(a) = y^T A y + g . y + const   on the sphere: y = S^-1(a - m), divided by its norm

A degree-2 polynomial kernel machine on normalised activations is exactly this function.
With V (d x k, orthonormal) spanning the eigenvectors of A and g, and V^T A V = Lambda
diagonal, it is  h = zeta . Lambda zeta + beta . zeta + const,  zeta = V^T y / ||y||.

Its flow stays in the span of V and the activation's remainder, so the ODE in d dimensions is one
in k + 1, exactly: see `odesteer.ode.reduced.flow`.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from odesteer.ode.barriers.base import Barrier, Sphere, is_learnt, reach
from odesteer.ode.whitening import Whitening, largest_eigenpairs


@dataclass(frozen=True, eq=False)
class ReducedBasis:
    """Reduced basis of the flow, with x = a - m.

    The flow depends on x only through V^T x, U^T x and ||x||, U being the directions of S, and it
    changes a only by scaling x and adding a vector in the span of S V: one product [d, m]
    projects, one [k, d] lifts.

    Attributes:
        centre: m, [d].
        projection: Q, [d, m], orthonormal: V; where S is not I, [U, what U leaves of V].
        whitened_projection: [m, 2k], None where S = I; Q^T x @ it is V^T S^-1 x and
            V^T S x, side by side.
        shrinkage: stretch^-2 - 1, [r]; ||y||^2 = ||x||^2 + (U^T x)^2 . shrinkage.
        lift: (S V)^T, [k, d].
        gram: V^T S^2 V, [k, k].
        curvature: 2 Lambda, and 0 for the complement of V, [k + 1].
        slope: beta, and 0, [k + 1].
        constant: [].
    """

    centre: Tensor
    projection: Tensor
    whitened_projection: Tensor | None
    shrinkage: Tensor
    lift: Tensor
    gram: Tensor
    curvature: Tensor
    slope: Tensor
    constant: Tensor

    @staticmethod
    def of(
        whitening: Whitening, basis: Tensor, curvature: Tensor, slope: Tensor, constant: Tensor
    ) -> "ReducedBasis":
        """Compute the basis from V [d, k], diag(Lambda) [k] and beta [k], in double precision."""
        dtype = basis.dtype
        V, U = basis.double(), whitening.directions.double()
        stretch = whitening.stretch.double()
        overlap = U.mT @ V  # [r, k]
        stretched = V + U @ ((stretch - 1.0)[:, None] * overlap)
        projection, whitened_projection = V, None
        if not whitening.is_plain:
            projection = torch.linalg.qr(torch.cat([U, V], dim=1)).Q
            projection[:, : len(stretch)] = U  # the factorisation is free in its signs
            rest = projection[:, len(stretch) :].mT @ V
            powers = [torch.cat([overlap * s[:, None], rest]) for s in (1.0 / stretch, stretch)]
            whitened_projection = torch.cat(powers, dim=1).to(dtype)
        return ReducedBasis(
            whitening.centre,
            projection.to(dtype).contiguous(),
            whitened_projection,
            (stretch**-2 - 1.0).to(dtype),
            stretched.mT.to(dtype).contiguous(),
            (stretched.mT @ stretched).to(dtype),
            *_padded(curvature, slope),
            constant,
        )

    def with_form(self, curvature: Tensor, slope: Tensor, constant: Tensor) -> "ReducedBasis":
        """Replace Lambda, beta and the constant, on the same V."""
        curvature, slope = _padded(curvature, slope)
        return replace(self, curvature=curvature, slope=slope, constant=constant)


def _padded(curvature: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Return 2 Lambda and beta, each followed by a 0 for the complement of V."""
    zero = slope.new_zeros(1)
    return torch.cat([2.0 * curvature, zero]), torch.cat([slope, zero])


# Below 1/SPARSE of all eigenpairs, block Lanczos instead of a dense decomposition.
SPARSE = 8


def unit_or_zero(x: Tensor, norm: Tensor) -> Tensor:
    """Return x / norm, and 0 where the norm is 0; gradients are 0 there, too."""
    return x / norm.masked_fill(norm <= 0, torch.inf)


def is_above_noise(length: Tensor, q: Tensor) -> Tensor:
    """Return False where q is radial up to rounding: a critical point, where v = 0."""
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
        self._reduced_basis: ReducedBasis | None = None

    @property
    def reduced_basis(self) -> ReducedBasis:
        """Coordinates in which the flow is solved; computed at first use.

        Where gradients are asked for they are computed anew, so that the graph reaches the tensors.
        """
        learnt = torch.is_grad_enabled() and is_learnt(self)
        if self._reduced_basis is not None and not learnt:
            return self._reduced_basis
        basis = ReducedBasis.of(
            self.whitening, self.basis, self.curvature, self.slope, self.constant
        )
        if not learnt:
            self._reduced_basis = basis
        return basis

    def _apply(self, *args: Any, **kwargs: Any) -> "QuadraticBarrier":
        # Computed again in a new precision, not cast, so that fitted and loaded barriers agree to
        # the bit.
        super()._apply(*args, **kwargs)
        self._reduced_basis = None
        return self

    def _with_form(self, curvature: Tensor, slope: Tensor, constant: Tensor) -> "QuadraticBarrier":
        """Return another h in the same coordinates, which are costly to compute again."""
        other = QuadraticBarrier(self.whitening, self.basis, curvature, slope, constant)
        other._reduced_basis = self.reduced_basis.with_form(curvature, slope, constant)
        return other

    @staticmethod
    def from_form(
        form: Tensor,
        slope: Tensor,
        constant: Tensor | float,
        whitening: Whitening,
        rank: int | None = None,
    ) -> "QuadraticBarrier":
        """Make y^T A y + g . y + constant of A [d, d] and g [d]; keep the largest |eigenvalues|."""
        double = form.double()
        pairs = _largest(double, rank)
        return _from_eigen(*pairs, double.trace(), slope, constant, whitening)

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
        """Make a kernel machine's sum_i weights_i (gamma x_i . y + c0)^2 + constant.

        A = gamma^2 sum_i w_i x_i x_i^T, g = 2 gamma c0 sum_i w_i x_i. With fewer rows than
        dimensions the eigenvectors are computed in the span of the rows, an [n, n] problem
        instead of a [d, d] one.

        Args:
            support: x_i, [n, d], unit rows in the coordinates y.
            weights: [n].
            gamma, c0: the kernel's scale and offset.
            constant: added to c0^2 sum_i w_i.
            whitening: the coordinates.
            rank: eigenvalues of A to keep, largest magnitudes first; None keeps all.
        """
        n, d = support.shape
        slope = 2 * gamma * c0 * (weights @ support)
        constant = c0**2 * weights.sum() + constant
        scaled = gamma**2 * weights
        trace = (scaled * support.square().sum(dim=1)).sum()
        if rank == 0:
            empty = support.mT[:, :0]
            return _from_eigen(empty[0], empty, trace, slope, constant, whitening)
        if rank is not None and rank < min(n, d) // SPARSE:
            pairs = largest_eigenpairs(
                lambda block: support.mT @ (scaled[:, None] * (support @ block)), support.mT, rank
            )
            if pairs is not None:
                return _from_eigen(*pairs, trace, slope, constant, whitening)
        span = None
        if n < d:
            span, triangle = torch.linalg.qr(support.mT)
            form = (triangle * scaled) @ triangle.mT
        else:
            form = (support.mT * scaled) @ support
        eigenvalues, vectors = _largest(form, rank)
        if span is not None:
            vectors = span @ vectors
        return _from_eigen(eigenvalues, vectors, trace, slope, constant, whitening)

    def value(self, a: Tensor) -> Tensor:
        y = self.whitening(a)
        zeta = unit_or_zero(y, y.norm(dim=-1, keepdim=True)) @ self.basis
        return (self.curvature * zeta.square() + self.slope * zeta).sum(dim=-1) + self.constant

    def gradient_in_y(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient with respect to y, and ||y|| [..., 1]."""
        y = self.whitening(a)
        radius = y.norm(dim=-1, keepdim=True)
        unit = unit_or_zero(y, radius)
        zeta = unit @ self.basis
        q = 2.0 * self.curvature * zeta + self.slope
        radial = (zeta * q).sum(dim=-1, keepdim=True)
        tangent = q @ self.basis.mT - radial * unit
        return unit_or_zero(
            tangent * is_above_noise(tangent.norm(dim=-1, keepdim=True), q), radius
        ), radius

    def gradient(self, a: Tensor) -> Tensor:
        return self.whitening.power(self.gradient_in_y(a)[0], -1)

    def metric(self, x: Tensor) -> Tensor:
        return self.whitening.power(x, 2)

    def ascent(self, a: Tensor) -> Tensor:
        """Return S grad_y h = S^2 grad_a h: steepest in y, the metric Sigma^2p in a."""
        return self.whitening.power(self.gradient_in_y(a)[0], 1)

    def sphere(self, a: Tensor) -> Sphere:
        gradient, radius = self.gradient_in_y(a)
        moved = self.whitening.power(gradient, 1).norm(dim=-1, keepdim=True)
        stretch = unit_or_zero(moved, gradient.norm(dim=-1, keepdim=True))
        return Sphere(a - self.whitening.centre, radius * stretch)

    @property
    def spherical(self) -> bool:
        return True

    def _spread(self) -> Tensor:
        """Return lambda_max - lambda_min of A, of which all but k eigenvalues are 0."""
        zero = self.curvature.new_zeros(1)
        lam = torch.cat([self.curvature, zero])
        return lam.amax() - lam.amin()

    def smoothness(self) -> Tensor:
        """Return 2 (lambda_max - lambda_min) + ||g||."""
        return 2.0 * self._spread() + self.slope.norm()

    def radius(self, a: Tensor, level: Tensor | float) -> Tensor:
        """Return the radius from the angle by which y must turn, at the least.

        Along a great circle h changes by at most ||grad_u h|| + L theta a radian, L the
        smoothness, and by at most lambda_max - lambda_min + ||g||. A change of y by less than
        ||y|| sin theta turns it by less than theta, for theta up to a right angle; and
        ||S^-1 x|| <= ||x|| / min(1, stretch).
        """
        gradient, length = self.gradient_in_y(a)
        rate = gradient.norm(dim=-1) * length.squeeze(-1)
        change = (self.value(a) - level).abs()
        angle = reach(change, rate, self.smoothness(), self._spread() + self.slope.norm())
        shrink = torch.cat([self.whitening.stretch, self.whitening.stretch.new_ones(1)]).amin()
        return shrink * length.squeeze(-1) * angle.clamp_max(torch.pi / 2).sin()

    def truncated(self, rank: int) -> "QuadraticBarrier":
        """Keep the `rank` largest curvatures; the others are replaced by their mean."""
        kept = self.curvature.abs().argsort(descending=True)[:rank]
        left = self.width - rank
        rest = (self.curvature.sum() - self.curvature[kept].sum()) / max(left, 1)
        curvature = torch.zeros_like(self.curvature)
        curvature[kept] = self.curvature[kept] - rest
        return self._with_form(curvature, self.slope, self.constant + rest)

    @property
    def width(self) -> int:
        return self.basis.shape[0]

    def affine(self, scale: float, offset: float = 0.0) -> "QuadraticBarrier":
        return self._with_form(
            scale * self.curvature, scale * self.slope, scale * self.constant + offset
        )


def _largest(form: Tensor, rank: int | None) -> tuple[Tensor, Tensor]:
    """Return the `rank` eigenpairs of largest magnitude, or all with a nonzero eigenvalue."""
    eigenvalues, vectors = torch.linalg.eigh((form + form.mT) / 2)
    magnitude = eigenvalues.abs()
    if rank is None:
        rank = int((magnitude > 1e-12 * magnitude.max()).sum())
    kept = magnitude.argsort(descending=True)[:rank]
    return eigenvalues[kept], vectors[:, kept]


def _from_eigen(
    eigenvalues: Tensor,
    basis: Tensor,
    trace: Tensor,
    slope: Tensor,
    constant: Tensor | float,
    whitening: Whitening,
) -> QuadraticBarrier:
    """Add g to the span of the kept eigenvectors; Lambda stays diagonal.

    The other eigenvalues are replaced by their mean c. On ||y|| = 1 that is Lambda - c on the kept
    directions, and c in the constant.
    """
    (d, rank), dtype = basis.shape, whitening.centre.dtype
    basis, lam, slope = basis.double(), eigenvalues.double(), slope.double()
    rest = (trace.double() - lam.sum()) / (d - rank) if rank < d else lam.new_zeros(())
    lam = lam - rest
    if rank < d:
        remainder = slope - basis @ (basis.mT @ slope)
        remainder = remainder - basis @ (basis.mT @ remainder)  # twice is enough (Kahan)
        if remainder.norm() > 1e-12 * slope.norm():
            basis = torch.cat([basis, (remainder / remainder.norm()).unsqueeze(1)], dim=1)
            lam = torch.cat([lam, lam.new_zeros(1)])
    # Lambda stays diagonal: the rest of A vanishes on the added column.
    slope = basis.mT @ slope
    constant = (torch.as_tensor(constant, dtype=rest.dtype, device=rest.device) + rest).to(dtype)
    return QuadraticBarrier(
        whitening, basis.to(dtype).contiguous(), lam.to(dtype), slope.to(dtype), constant
    )
