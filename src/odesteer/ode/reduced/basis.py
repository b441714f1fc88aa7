"""Reduced basis of a quadratic barrier's flow.

    y = S^-1 x,  x = a - m,  h = zeta . Lambda zeta + beta . zeta + const,  zeta = V^T y / ||y||

The flow depends on x only through V^T x, U^T x and ||x||, U being the directions of S, and it
changes a only by scaling x and adding a vector in the span of S V: one product [d, m] projects,
one [k, d] lifts.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from odesteer.ode.whitening import Whitening


@dataclass(frozen=True, eq=False)
class ReducedBasis:
    """What leads into the flow, governs it, and leads out.

    Attributes:
        centre: m, [d].
        entrance: Q, [d, m], orthonormal: V; where S is not I, [U, what U leaves of V].
        mix: [m, 2k], None where S = I; Q^T x @ mix is V^T S^-1 x and V^T S x, side by side.
        shrinkage: stretch^-2 - 1, [r]; ||y||^2 = ||x||^2 + (U^T x)^2 . shrinkage.
        exit: (S V)^T, [k, d].
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
