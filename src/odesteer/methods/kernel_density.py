"""ODESteer with kernel density estimates of both classes.

    y = Sigma^-p (a - m)
    h(a) = log mean_i K(y, y+_i) - log mean_j K(y, y-_j),  K(y, x) = exp(-||y - x||^2 / 2 s^2)
    v(a) = Sigma^2p grad h / ||Sigma^2p grad h||

The most flexible barrier here: it assumes nothing about the densities. The bandwidth s is chosen by
held-out log-loss; as it grows h becomes linear, along the mean difference in y.

Source: Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", 2nd ed., 2009,
section 6.6 (kernel density classification); the field is that of Zhao et al., "ODESteer",
ICLR 2026, https://arxiv.org/abs/2602.17560
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from odesteer.methods.base import Method, MethodInfo
from odesteer.methods.estimators import pooled_whitening
from odesteer.methods.odesteer.paper import median_distance
from odesteer.methods.samples import Samples
from odesteer.ode import Angle, Dose, GradientField, MixtureBarrier, VectorField, Whitening
from odesteer.steering.calibration import binary_quality


@dataclass(frozen=True)
class MixtureODESteer(Method):
    """Gradient flow of the log ratio of two kernel density estimates.

    Args:
        bandwidth: of the kernel, in units of y; None to choose it among `multiples`.
        multiples: candidate bandwidths over the median distance between rows.
        p: exponent of the whitening, 0 (none) to 1/2 (full); see `ODESteer`.
        covariance_rank: eigenvalues of Sigma kept; the others are averaged.
        landmarks: maximum number of centres of a class; of more rows, a random subset.
        folds: of the cross-validation, by group.
        seed: of the folds and the landmarks.
    """

    name: ClassVar[str] = "odesteer-mixture"
    default_strength: ClassVar[Dose | float] = Angle(0.3)
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="G grad h / ||G grad h||",
        barrier="log ratio of two Gaussian kernel density estimates, in whitened coordinates",
        exact="none",
        strength="path length",
        source="Hastie et al. 2009, section 6.6",
    )

    steps: int = 10
    solver: str = "heun"
    bandwidth: float | None = None
    multiples: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 2.0)
    p: float = 0.25
    covariance_rank: int = 128
    landmarks: int = 2000
    folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise ValueError(f"odesteer-mixture needs bandwidth > 0 or None; got {self.bandwidth}.")
        if self.landmarks < 1 or self.folds < 2 or not 0.0 <= self.p <= 0.5:
            raise ValueError(
                f"odesteer-mixture needs landmarks >= 1, folds >= 2 and 0 <= p <= 1/2; got "
                f"{self.landmarks}, {self.folds} and {self.p}."
            )

    def select_hyperparameters(self, samples: Samples) -> "MixtureODESteer":
        """Choose the bandwidth with the least held-out log-loss, each at its best scale."""
        if self.bandwidth is not None:
            return self
        median = self._bandwidth(self._whitening(samples), samples)
        folds = samples.folds(self.folds, self.seed)
        if not folds:
            return replace(self, bandwidth=median)
        bandwidths = [multiple * median for multiple in self.multiples]
        values, labels = self._held_out(samples, folds, bandwidths)
        losses = [_calibrated_loss(row, labels) for row in values]
        return replace(self, bandwidth=bandwidths[int(np.argmin(losses))])

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        samples = Samples(positive, negative)
        whitening = self._whitening(samples)
        bandwidth = self._bandwidth(whitening, samples)
        return GradientField(self._barrier(whitening, samples, bandwidth))

    def held_out_values(
        self, samples: Samples, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return held-out values, in coordinates shared by the folds, which pool the classes."""
        folds = samples.folds(5, seed)
        if not folds:
            return None
        bandwidth = self._bandwidth(self._whitening(samples), samples)
        values, labels = self._held_out(samples, folds, [bandwidth])
        return values[0], labels

    def _held_out(
        self,
        samples: Samples,
        folds: list[tuple[np.ndarray, np.ndarray]],
        bandwidths: Sequence[float],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return held-out h for every bandwidth [bandwidths, n], and the labels [n]."""
        whitening, values = self._whitening(samples), []
        for fit, test in folds:
            subset, rows = samples.subset(fit), samples.rows[test]
            barriers = [self._barrier(whitening, subset, bandwidth) for bandwidth in bandwidths]
            values.append(torch.stack([barrier.value(rows) for barrier in barriers]))
        labels = np.concatenate([samples.labels[test] for _, test in folds])
        return torch.cat(values, dim=1).cpu().numpy(), labels

    def _whitening(self, samples: Samples) -> Whitening:
        return pooled_whitening(samples.rows, self.p, self.covariance_rank)

    def _bandwidth(self, whitening: Whitening, samples: Samples) -> float:
        """Return the bandwidth given, or the median distance."""
        generator = torch.Generator().manual_seed(self.seed)
        return self.bandwidth or median_distance(whitening(samples.rows), generator)

    def _barrier(self, whitening: Whitening, samples: Samples, bandwidth: float) -> MixtureBarrier:
        generator = torch.Generator().manual_seed(self.seed)
        centres = []
        for rows in (samples.positive, samples.negative):
            index = torch.randperm(len(rows), generator=generator)[: self.landmarks].sort().values
            centres.append(whitening(rows[index.to(rows.device)]))
        return MixtureBarrier(whitening, centres[0], centres[1], bandwidth)


def _calibrated_loss(values: np.ndarray, labels: np.ndarray) -> float:
    """Return the log-loss of the best scale * h + offset; infinite if scale <= 0.

    A wide kernel blurs both classes, which shrinks and shifts h but keeps its order.
    """
    column = values[:, None] / (values.std() or 1.0)
    model = LogisticRegression(C=1e4, class_weight="balanced").fit(column, labels)
    if model.coef_[0, 0] <= 0:
        return float("inf")
    return binary_quality(model.decision_function(column), labels, balanced=True).log_loss
