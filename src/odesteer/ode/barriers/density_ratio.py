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

With enough rows and a small bandwidth any two densities can be distinguished; with a large
bandwidth h becomes linear, along the difference of the class means in y. The gradient is the
difference of two mean shifts: towards near positives, away from near negatives.

Source: Parzen, "On Estimation of a Probability Density Function and Mode", Annals of
Mathematical Statistics 33, 1962, https://doi.org/10.1214/aoms/1177704472; Cheng, "Mean Shift,
Mode Seeking, and Clustering", IEEE TPAMI 17, 1995, https://doi.org/10.1109/34.400568
"""

from typing import Any

import torch
from torch import Tensor

from odesteer.ode.barriers.base import Barrier, LinearBarrier, is_learnt
from odesteer.ode.fields.maps import FormBarrier
from odesteer.ode.whitening import Whitening


class GaussianBarrier(FormBarrier):
    """h(a) = x^T M x / 2 + slope . x + constant,  M = S-^-1 - S+^-1,  x = a - centre.

    One product with M gives a value or a gradient of any two Gaussians; see `from_moments`. h is
    unbounded. Along an eigenvector of M with a positive eigenvalue, where the positives vary more,
    it grows without limit on both sides, so that h >= 0 far from all data is not evidence; along
    the others it falls without limit.

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
        """Compute the exact log density ratio; linear if both classes share a covariance.

        Computed in float64 from Cholesky factors: S^-1 and log det S.

        Args:
            mean_positive, mean_negative: [d].
            covariance_positive: [d, d], symmetric positive definite.
            covariance_negative: as above, or None for the same one (LDA).

        Raises:
            ValueError: if a covariance is not positive definite.
        """
        plus, minus = mean_positive.double(), mean_negative.double()
        centre, half = (plus + minus) / 2, (plus - minus) / 2
        factor_plus = _cholesky(covariance_positive, "positive")
        if covariance_negative is None:
            weight = torch.cholesky_solve(2 * half.unsqueeze(-1), factor_plus)[:, 0]
            weight = weight.to(mean_positive)
            return LinearBarrier(weight, -(weight @ centre.to(weight)))
        factor_minus = _cholesky(covariance_negative, "negative")
        precision_plus = torch.cholesky_inverse(factor_plus)
        precision_minus = torch.cholesky_inverse(factor_minus)
        matrix = precision_minus - precision_plus
        constant = half @ matrix @ half / 2
        constant = constant + _half_log_det(factor_minus) - _half_log_det(factor_plus)
        slope = (precision_plus + precision_minus) @ half
        # In the memory layout of a loaded file: a product in another layout rounds differently.
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
    """Log density ratio of two mixtures of Gaussians of one width.

    ||y||^2 is common to both sums and cancels, so a kernel is a dot product with its centre. A
    value costs one product [..., d] x [d, n] without an [..., n, d] tensor, and nothing under- or
    overflows far from all centres, where h grows at most linearly.

    Args:
        whitening: the coordinates y.
        positive: centres x+, [n, d], in the coordinates y.
        negative: centres x-, [m, d].
        bandwidth: of the kernel, > 0, in units of y.
        positive_weights: [n], positive; None: equal.
        negative_weights: [m], positive; None: equal.

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
        """Return log w - ||x||^2 / (2 bandwidth^2) [n], with weights that sum to 1."""
        weights = torch.ones_like(centres[:, 0]) if weights is None else weights
        return (weights / weights.sum()).log() - centres.square().sum(dim=-1) / (
            2 * self.bandwidth**2
        )

    def _apply(self, *args: Any, **kwargs: Any) -> "MixtureBarrier":
        # Computed again in the new precision: fitted and loaded barriers agree to the bit.
        super()._apply(*args, **kwargs)
        self._derive()
        return self

    def _log_kernels(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return log (w K) up to the common ||y||^2: [..., n] and [..., m]."""
        if torch.is_grad_enabled() and is_learnt(self):
            self._derive()  # so that the graph reaches the centres and weights
        scaled = y / self.bandwidth**2
        return (
            scaled @ self.positive.mT + self.positive_heights,
            scaled @ self.negative.mT + self.negative_heights,
        )

    def value(self, a: Tensor) -> Tensor:
        plus, minus = self._log_kernels(self.whitening(a))
        return torch.logsumexp(plus, dim=-1) - torch.logsumexp(minus, dim=-1)

    def _gradient_in_y(self, a: Tensor) -> Tensor:
        plus, minus = self._log_kernels(self.whitening(a))
        towards = torch.softmax(plus, dim=-1) @ self.positive
        away = torch.softmax(minus, dim=-1) @ self.negative
        return (towards - away) / self.bandwidth**2

    def gradient(self, a: Tensor) -> Tensor:
        return self.whitening.power(self._gradient_in_y(a), -1)

    def metric(self, x: Tensor) -> Tensor:
        return self.whitening.power(x, 2)

    def ascent(self, a: Tensor) -> Tensor:
        """Return S grad_y h = S^2 grad_a h: steepest in y."""
        return self.whitening.power(self._gradient_in_y(a), 1)

    def lipschitz(self) -> Tensor:
        """Return max_ij ||x+_i - x-_j|| / (bandwidth^2 min(1, stretch))."""
        apart = torch.cdist(self.positive, self.negative).amax() / self.bandwidth**2
        stretch = self.whitening.stretch
        return apart / torch.cat([stretch, stretch.new_ones(1)]).amin()

    @property
    def width(self) -> int:
        return self.whitening.centre.shape[0]
