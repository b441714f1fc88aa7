"""Log density ratio of two Gaussians.

    h(a) = log N(a; m+, S+) - log N(a; m-, S-)
         = x^T (S-^-1 - S+^-1) x / 2 + (S+^-1 (m+ - m) + S-^-1 (m - m-)) . x + const,  x = a - m

with m = (m+ + m-) / 2: quadratic discriminant analysis (QDA). With one covariance the form
vanishes and h is linear with weight S^-1 (m+ - m-): Fisher's linear discriminant (LDA).

Source: Fisher, "The Use of Multiple Measurements in Taxonomic Problems", Annals of Eugenics 7,
1936, https://doi.org/10.1111/j.1469-1809.1936.tb02137.x; Hastie, Tibshirani, Friedman, "The
Elements of Statistical Learning", 2nd ed., 2009, section 4.3.
"""

import torch
from torch import Tensor

from odesteer.ode.barriers.base import LinearBarrier
from odesteer.ode.fields.transport import FormBarrier


class GaussianBarrier(FormBarrier):
    """h(a) = x^T M x / 2 + slope . x + constant,  M = S-^-1 - S+^-1,  x = a - centre.

    One product with M serves a value and a gradient, whichever two Gaussians it is made of;
    `from_moments` makes it. h is unbounded: along an eigenvector of M with a positive
    eigenvalue (there the positives vary more) it grows without limit on both sides, so that
    h >= 0 far from all data says nothing; along the others it falls without limit.

    Args:
        centre: [d].
        matrix: M, symmetric [d, d].
        slope: [d].
        constant: [], or a number.
    """

    @staticmethod
    def from_moments(
        mean_positive: Tensor,
        covariance_positive: Tensor,
        mean_negative: Tensor,
        covariance_negative: Tensor | None = None,
    ) -> "GaussianBarrier | LinearBarrier":
        """The exact log density ratio; linear when both classes share a covariance.

        Computed in float64 from Cholesky factors: S^-1 and log det S.

        Args:
            mean_positive, mean_negative: [d].
            covariance_positive: [d, d], symmetric positive definite.
            covariance_negative: as above, or None for the same one (LDA).

        Raises:
            ValueError: if a covariance is not positive definite.
        """
        above, below = mean_positive.double(), mean_negative.double()
        centre, half = (above + below) / 2, (above - below) / 2
        upper = _cholesky(covariance_positive, "positive")
        if covariance_negative is None:
            weight = torch.cholesky_solve(2 * half.unsqueeze(-1), upper)[:, 0]
            weight = weight.to(mean_positive)
            return LinearBarrier(weight, -(weight @ centre.to(weight)))
        lower = _cholesky(covariance_negative, "negative")
        precision, other = torch.cholesky_inverse(upper), torch.cholesky_inverse(lower)
        matrix = other - precision
        constant = half @ matrix @ half / 2 + _half_log_det(lower) - _half_log_det(upper)
        slope = (precision + other) @ half
        # Laid out as a file gives it back: a product in another layout rounds differently.
        parts = (centre, matrix.contiguous(), slope, constant)
        return GaussianBarrier(*(part.to(mean_positive) for part in parts))


def _cholesky(covariance: Tensor, which: str) -> Tensor:
    factor, failed = torch.linalg.cholesky_ex(covariance.double())
    if bool(failed):
        raise ValueError(
            f"The {which} covariance {list(covariance.shape)} is not positive definite (it has "
            f"no inverse). Shrink it towards a multiple of the identity, as Ledoit-Wolf does; "
            f"fewer rows than dimensions always need it."
        )
    return factor


def _half_log_det(factor: Tensor) -> Tensor:
    return factor.diagonal().log().sum()
