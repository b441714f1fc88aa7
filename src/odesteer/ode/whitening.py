"""Whitened coordinates of the sphere.

    y = S^-1 (a - m),   S = Sigma^p up to scale = I + U (diag(stretch) - I) U^T

m is the centre of the sphere. Sigma is a covariance with r eigenvectors U and one common variance
elsewhere, so S and its inverse cost two thin products. p = 0 (no directions) is the plain centred
sphere, p = 1/4 the metric Sigma^1/2, p = 1/2 full whitening: the gradient in y is the gradient in
a under the metric G = S^2.

The eigenvectors of a covariance come from block Lanczos:

    span{Q, M Q, M^2 Q, ...} -> T = Q^T M Q = W theta W^T -> M (Q W) = (Q W) theta

It has a random start and full reorthogonalisation. M is given by its products, so it
need not be formed. A pair has converged when its residual ||M v - theta v|| is small; the basis
grows until all have, or until the dense decomposition is cheaper.

Source: Golub and Underwood, "The block Lanczos method for computing eigenvalues", 1977; Musco
and Musco, "Randomized Block Krylov Methods", NeurIPS 2015, https://arxiv.org/abs/1504.05477.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Whitening(nn.Module):
    """Change of coordinates y = S^-1 (a - m).

    Args:
        centre: m, [d].
        directions: U, [d, r] with orthonormal columns; r = 0 means S = I.
        stretch: [r], positive; the factor by which S stretches each direction.

    Raises:
        ValueError: if the shapes do not fit or a stretch is not positive.
    """

    def __init__(
        self, centre: Tensor, directions: Tensor | None = None, stretch: Tensor | None = None
    ):
        super().__init__()
        d = centre.shape[0]
        directions = centre.new_zeros(d, 0) if directions is None else directions
        stretch = centre.new_ones(directions.shape[1]) if stretch is None else stretch
        if directions.shape != (d, *stretch.shape) or bool((stretch <= 0).any()):
            raise ValueError(
                f"Whitening needs directions [{d}, r] and positive stretch [r]; got "
                f"{list(directions.shape)} and {list(stretch.shape)}."
            )
        self.centre: Tensor
        self.directions: Tensor
        self.stretch: Tensor
        self.register_buffer("centre", centre)
        self.register_buffer("directions", directions)
        self.register_buffer("stretch", stretch)

    @staticmethod
    def from_covariance(
        centre: Tensor, covariance: Tensor, power: float, rank: int = 128
    ) -> "Whitening":
        """Make S = Sigma^power; keep the `rank` largest eigenvalues, average the others.

        A few directions and one variance for the rest is probabilistic PCA (Tipping and Bishop,
        1999); it regularises, and makes S thin.

        Args:
            centre: [d].
            covariance: [d, d], symmetric positive semi-definite.
            power: p >= 0; 0 gives S = I.
            rank: r, the number of directions kept; capped at d - 1.
        """
        rank = min(rank, covariance.shape[0] - 1)
        if power == 0.0 or rank <= 0:
            return Whitening(centre)
        variances, directions = torch.linalg.eigh(covariance)
        rest = variances[: covariance.shape[0] - rank].mean()
        return Whitening.from_spectrum(
            centre, variances[-rank:], directions[:, -rank:].contiguous(), rest, power
        )

    @staticmethod
    def from_spectrum(
        centre: Tensor, variances: Tensor, directions: Tensor, rest: Tensor, power: float
    ) -> "Whitening":
        """Make S = Sigma^power of a spectrum.

        Args:
            centre: [d].
            variances: [r].
            directions: [d, r], orthonormal columns.
            rest: variance along all other directions, [].
            power: p.
        """
        floor = torch.finfo(variances.dtype).eps * variances.max()
        ratio = variances.clamp_min(floor) / rest.clamp_min(floor)
        return Whitening(centre, directions, ratio**power)

    @property
    def is_plain(self) -> bool:
        """True if S = I."""
        return self.stretch.shape[0] == 0

    def power(self, x: Tensor, exponent: int) -> Tensor:
        """Return S^exponent x for x [..., d]: 1 maps y to a, -1 maps a to y, 2 is the metric."""
        if self.is_plain:
            return x
        return x + ((x @ self.directions) * (self.stretch**exponent - 1.0)) @ self.directions.mT

    def forward(self, a: Tensor) -> Tensor:
        """Return y = S^-1 (a - m)."""
        return self.power(a - self.centre, -1)


BLOCK = 32
# ||M v - theta v|| over |theta|.
TOLERANCE = 1e-4


def largest_eigenpairs(
    product: Callable[[Tensor], Tensor], start: Tensor, count: int
) -> tuple[Tensor, Tensor] | None:
    """Compute eigenvalues [count], largest magnitude first, and eigenvectors [d, count].

    Args:
        product: [d, b] -> M [d, b], M symmetric.
        start: any tensor [d, ...] of the precision and device to work in.
        count: number of pairs.

    Returns:
        None if more than a third of all directions would be needed: decompose M instead.
    """
    d, eps = start.shape[0], torch.finfo(start.dtype).eps
    limit, check = d // 3, 4 * count
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(d, BLOCK, generator=generator, dtype=torch.float64).to(start)
    basis, image = start.new_empty(d, limit), start.new_empty(d, limit)
    size = 0
    while size + BLOCK <= limit:
        block = _orthonormal(block, basis[:, :size])
        moved = product(block)
        basis[:, size : size + BLOCK], image[:, size : size + BLOCK] = block, moved
        block, size = moved, size + BLOCK
        if size < check:
            continue
        Q, MQ = basis[:, :size], image[:, :size]
        form = Q.mT @ MQ
        values, rotation = torch.linalg.eigh((form + form.mT) / 2)
        order = values.abs().argsort(descending=True)[:count]
        values, rotation = values[order], rotation[:, order]
        vectors = Q @ rotation
        residual = (MQ @ rotation - vectors * values).norm(dim=0)
        # An error within a group of nearly equal eigenvalues hardly changes M.
        tolerance = TOLERANCE * values.abs() + 64 * eps * values.abs().max()
        if bool((residual <= tolerance).all()):
            return values, vectors
        check = size + size // 4
    return None


def _orthonormal(block: Tensor, basis: Tensor) -> Tensor:
    """Return orthonormal columns that are also orthogonal to the basis."""
    for _ in range(2):  # twice is enough (Kahan)
        block = block - basis @ (basis.mT @ block)
        block = torch.linalg.qr(block).Q
    return block
