"""Reduced basis of a quadratic barrier's flow.

    y = S^-1 x,  x = a - m,  h = zeta . Lambda zeta + beta . zeta + const,  zeta = V^T y / ||y||

All that the flow asks of x lies in the span of V and of U, the directions of S, and in ||x||;
all that it does to a is scale x and add something in the span of S V. So one thin product
leads in and another leads out.
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
        curvature: 2 Lambda, and 0 for what V does not span, [k + 1].
        slope: beta, and 0, [k + 1].
        constant: [].
    """

    centre: Tensor
    entrance: Tensor
    mix: Tensor | None
    shrinkage: Tensor
    exit: Tensor
    gram: Tensor
    curvature: Tensor
    slope: Tensor
    constant: Tensor

    @staticmethod
    def of(
        whitening: Whitening, basis: Tensor, curvature: Tensor, slope: Tensor, constant: Tensor
    ) -> "ReducedBasis":
        """From V [d, k], the diagonal of Lambda [k] and beta [k]; computed in double precision."""
        dtype = basis.dtype
        wide, U = basis.double(), whitening.directions.double()
        stretch = whitening.stretch.double()
        shared = U.mT @ wide  # [r, k]
        stretched = wide + U @ ((stretch - 1.0)[:, None] * shared)
        entrance, mix = wide, None
        if not whitening.is_plain:
            entrance = torch.linalg.qr(torch.cat([U, wide], dim=1)).Q
            entrance[:, : len(stretch)] = U  # the factorisation is free in its signs
            own = entrance[:, len(stretch) :].mT @ wide
            ways = [torch.cat([shared * s[:, None], own]) for s in (1.0 / stretch, stretch)]
            mix = torch.cat(ways, dim=1).to(dtype)
        padded = _padded(curvature, slope)
        return ReducedBasis(
            whitening.centre,
            entrance.to(dtype).contiguous(),
            mix,
            (stretch**-2 - 1.0).to(dtype),
            stretched.mT.to(dtype).contiguous(),
            (stretched.mT @ stretched).to(dtype),
            *padded,
            constant,
        )

    def with_form(self, curvature: Tensor, slope: Tensor, constant: Tensor) -> "ReducedBasis":
        """That of another Lambda, beta and constant on the same V."""
        twice, beta = _padded(curvature, slope)
        return replace(self, curvature=twice, slope=beta, constant=constant)


def _padded(curvature: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """2 Lambda and beta, with a 0 for what V does not span."""
    nothing = slope.new_zeros(1)
    return torch.cat([2.0 * curvature, nothing]), torch.cat([slope, nothing])
