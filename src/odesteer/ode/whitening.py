"""Whitened coordinates of the sphere.

    y = S^-1 (a - m),   S = Sigma^p up to scale = I + U (diag(stretch) - I) U^T

m is the centre of the sphere. Sigma is a covariance with r eigenvectors U and one common variance
elsewhere, so S and its inverse cost two thin products. p = 0 (no directions) is the plain centred
sphere, p = 1/4 the metric Sigma^1/2, p = 1/2 full whitening: the gradient in y is the gradient in
a under the metric G = S^2.
"""

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
