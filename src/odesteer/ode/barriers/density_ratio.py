"""Log density ratios of two Gaussians and of two kernel density estimates.

Log density ratio of two Gaussians.

    h(a) = log N(a; m+, S+) - log N(a; m-, S-)
         = x^T (S-^-1 - S+^-1) x / 2 + (S+^-1 (m+ - m) + S-^-1 (m - m-)) . x + const,  x = a - m

with m = (m+ + m-) / 2: quadratic discriminant analysis (QDA). With one covariance the form
vanishes and h is linear with weight S^-1 (m+ - m-): Fisher's linear discriminant (LDA).

Source: Fisher, "The Use of Multiple Measurements in Taxonomic Problems", Annals of Eugenics 7,
1936, https://doi.org/10.1111/j.1469-1809.1936.tb02137.x; Hastie, Tibshirani, Friedman, "The
Elements of Statistical Learning", 2nd ed., 2009, section 4.3.

Log ratio of two kernel density estimates.

    h(a) = log sum_i w_i K(y, x+_i) - log sum_j w_j K(y, x-_j),  y = S^-1 (a - m)
    K(y, x) = exp(-||y - x||^2 / (2 bandwidth^2)),  the weights of a class sum to 1
    grad_y h = (mean_p x+ - mean_q x-) / bandwidth^2,  p_i ~ w_i K(y, x+_i), q_j ~ w_j K(y, x-_j)

Any two densities can be told apart with enough rows and a small bandwidth; with a large one
h becomes linear, along the difference of the class means in y. The gradient is the
difference of two mean shifts: towards the near positives, away from the near negatives.

Source: Parzen, "On Estimation of a Probability Density Function and Mode", Annals of
Mathematical Statistics 33, 1962, https://doi.org/10.1214/aoms/1177704472; Cheng, "Mean Shift,
Mode Seeking, and Clustering", IEEE TPAMI 17, 1995, https://doi.org/10.1109/34.400568
"""

from typing import Any

import torch
from torch import Tensor

from odesteer.ode.barriers.base import Barrier, LinearBarrier
from odesteer.ode.fields.maps import FormBarrier
from odesteer.ode.whitening import Whitening


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


class MixtureBarrier(Barrier):
    """The log density ratio of two mixtures of Gaussians of one width.

    ||y||^2 is common to both sums and cancels, so that a kernel is a dot product with its
    centre: a value costs one product [..., d] x [d, n], no [..., n, d] tensor is made, and far
    from all centres nothing under- or overflows: there h grows at most linearly.

    Args:
        whitening: the coordinates y.
        positive: centres x+, [n, d], in the coordinates y.
        negative: centres x-, [m, d].
        bandwidth: of the kernel, > 0, in units of y.
        positive_weights: [n], positive; None: all alike.
        negative_weights: [m], positive; None: all alike.

    Raises:
        ValueError: if the shapes do not fit, a class has no centre, or the bandwidth or a
            weight is not positive.
    """

    def __init__(
        self,
        whitening: Whitening,
        positive: Tensor,
        negative: Tensor,
        bandwidth: float,
        positive_weights: Tensor | None = None,
        negative_weights: Tensor | None = None,
    ):
        super().__init__()
        d = whitening.centre.shape[0]
        for centres, weights in ((positive, positive_weights), (negative, negative_weights)):
            n = len(centres)
            if centres.shape != (n, d) or n == 0 or not bandwidth > 0:
                raise ValueError(
                    f"MixtureBarrier needs centres [n, {d}] of both classes and a bandwidth > 0; "
                    f"got {list(positive.shape)}, {list(negative.shape)} and {bandwidth}."
                )
            if weights is not None and (weights.shape != (n,) or bool((weights <= 0).any())):
                raise ValueError(f"MixtureBarrier needs one positive weight for each of {n} rows.")
        self.whitening = whitening
        self.bandwidth = float(bandwidth)
        self.positive: Tensor
        self.negative: Tensor
        self.positive_weights: Tensor | None
        self.negative_weights: Tensor | None
        self.register_buffer("positive", positive)
        self.register_buffer("negative", negative)
        self.register_buffer("positive_weights", positive_weights)
        self.register_buffer("negative_weights", negative_weights)
        self.positive_heights: Tensor
        self.negative_heights: Tensor
        for name in ("positive_heights", "negative_heights"):
            self.register_buffer(name, None, persistent=False)
        self._derive()

    def _derive(self) -> None:
        self.positive_heights = self._heights(self.positive, self.positive_weights)
        self.negative_heights = self._heights(self.negative, self.negative_weights)

    def _heights(self, centres: Tensor, weights: Tensor | None) -> Tensor:
        """log w - ||x||^2 / (2 bandwidth^2), the weights summing to 1: [n]."""
        weights = torch.ones_like(centres[:, 0]) if weights is None else weights
        return (weights / weights.sum()).log() - centres.square().sum(dim=-1) / (
            2 * self.bandwidth**2
        )

    def _apply(self, *args: Any, **kwargs: Any) -> "MixtureBarrier":
        # Derived again in the new precision: fitted and loaded barriers agree to the bit.
        super()._apply(*args, **kwargs)
        self._derive()
        return self

    def _log_kernels(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """log (w K), up to the common ||y||^2: [..., n] and [..., m]."""
        scaled = y / self.bandwidth**2
        return (
            scaled @ self.positive.mT + self.positive_heights,
            scaled @ self.negative.mT + self.negative_heights,
        )

    def value(self, a: Tensor) -> Tensor:
        above, below = self._log_kernels(self.whitening(a))
        return torch.logsumexp(above, dim=-1) - torch.logsumexp(below, dim=-1)

    def _gradient_in_y(self, a: Tensor) -> Tensor:
        above, below = self._log_kernels(self.whitening(a))
        towards = torch.softmax(above, dim=-1) @ self.positive
        away = torch.softmax(below, dim=-1) @ self.negative
        return (towards - away) / self.bandwidth**2

    def gradient(self, a: Tensor) -> Tensor:
        return self.whitening.power(self._gradient_in_y(a), -1)

    def ascent(self, a: Tensor) -> Tensor:
        """S grad_y h = S^2 grad_a h: steepest in y."""
        return self.whitening.power(self._gradient_in_y(a), 1)

    @property
    def width(self) -> int:
        return self.whitening.centre.shape[0]
