"""Whitened coordinates of the sphere.

    y = S^-1 (a - m),   S = Sigma^p up to scale = I + U (diag(stretch) - I) U^T

m is the centre of the sphere; Sigma is a covariance with r directions U of its own and
one common variance elsewhere, so S and its inverse cost two thin products. p = 0 (no
directions) is the plain centred sphere, p = 1/4 the metric Sigma^1/2, p = 1/2 full
whitening: taking the gradient in y is taking it in a under the metric G = S^2.
"""

import torch
from torch import Tensor, nn


class Whitening(nn.Module):
    """The change of coordinates a <-> y.

    Args:
        centre: m, [d].
        directions: U, [d, r] with orthonormal columns; r = 0 means S = I.
        stretch: [r], positive: how much longer than elsewhere S makes each direction.

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
        """S = Sigma^power with the `rank` largest eigenvalues kept and the others averaged.

        Keeping a few directions and one variance for the rest is probabilistic PCA
        (Tipping and Bishop, 1999); it regularises, and it is what makes S thin.

        Args:
            centre: [d].
            covariance: [d, d], symmetric positive semi-definite.
            power: p >= 0; 0 gives S = I.
            rank: r, the directions with a variance of their own; capped at d - 1.
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
        """S = Sigma^power of a Sigma with those variances [r] along those directions [d, r],
        and the variance `rest` [] along all others.
        """
        floor = torch.finfo(variances.dtype).eps * variances.max()
        ratio = variances.clamp_min(floor) / rest.clamp_min(floor)
        return Whitening(centre, directions, ratio**power)

    @property
    def is_plain(self) -> bool:
        """True where S = I."""
        return self.stretch.shape[0] == 0

    def power(self, x: Tensor, exponent: int) -> Tensor:
        """S^exponent x for x [..., d]: 1 leaves y for a, -1 enters it, 2 is the metric."""
        if self.is_plain:
            return x
        return x + ((x @ self.directions) * (self.stretch**exponent - 1.0)) @ self.directions.mT

    def forward(self, a: Tensor) -> Tensor:
        """y = S^-1 (a - m)."""
        return self.power(a - self.centre, -1)
