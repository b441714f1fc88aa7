"""ODESteer with Gaussian classes: linear or quadratic discriminant analysis.

    h(a) = log N(a; mean+, S+) - log N(a; mean-, S-),   v = G grad h / ||G grad h||, G = S^2p

h is linear if the classes share one covariance (LDA): h(a) = (mean+ - mean-) . S^-1 a + const, and
a straight line is the exact flow. It is quadratic otherwise (QDA). Covariances are shrunk towards a
multiple of I. The fit is in closed form and takes milliseconds.

Source: Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", 2nd ed., 2009,
section 4.3; the field is that of Zhao et al., "ODESteer", ICLR 2026,
https://arxiv.org/abs/2602.17560
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from odesteer.methods.base import Method, MethodInfo
from odesteer.methods.estimators import class_covariances, pooled_covariance, pooled_whitening
from odesteer.ode import Angle, Dose, GaussianBarrier, GradientField, MetricBarrier, VectorField


@dataclass(frozen=True)
class GaussianODESteer(Method):
    """Gradient flow of the log ratio of two Gaussians.

    LDA is the default: with hundreds of dimensions and as many rows, the quadratic part of QDA is
    mostly noise, and so is its field (docs/equal-dose.md). QDA's h is unbounded and meaningless
    far from the rows: keep the dose small. A class of one or two rows takes the pooled covariance.

    Args:
        shared: one covariance for both classes (LDA) or one for each (QDA).
        shrinkage: s in (1 - s) S + s tr(S)/d I, in 0..1; None: Ledoit-Wolf for each class.
        p: exponent of the metric; 0 is the plain gradient, which favours directions of little
            variance; at 1/2 the field of LDA is CAA's.
        covariance_rank: eigenvalues of Sigma kept; the others are averaged.
    """

    name: ClassVar[str] = "odesteer-gaussian"
    default_strength: ClassVar[Dose | float] = Angle(0.3)
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="G grad h / ||G grad h||, G = Sigma^2p",
        barrier="log ratio of two Gaussians: linear (LDA), or quadratic (QDA) unless shared",
        exact="LDA: a straight line; QDA: none",
        strength="path length",
        source="Fisher 1936; Hastie et al. 2009, section 4.3",
    )

    steps: int = 10
    solver: str = "heun"
    shared: bool = True
    shrinkage: float | None = None
    p: float = 0.25
    covariance_rank: int = 128

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 0.5:
            raise ValueError(f"odesteer-gaussian needs 0 <= p <= 1/2; got p={self.p}.")
        if self.shrinkage is not None and not 0.0 <= self.shrinkage <= 1.0:
            raise ValueError(
                f"odesteer-gaussian needs 0 <= shrinkage <= 1 or None; got {self.shrinkage}."
            )

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        covariances: tuple[Tensor, Tensor | None]
        if self.shared:
            covariances = pooled_covariance(positive, negative, self.shrinkage), None
        else:
            covariances = class_covariances(positive, negative, self.shrinkage)
        barrier = GaussianBarrier.from_moments(
            positive.mean(dim=0), covariances[0], negative.mean(dim=0), covariances[1]
        )
        rows = torch.cat([positive, negative])
        whitening = pooled_whitening(rows, self.p, self.covariance_rank)
        return GradientField(MetricBarrier(barrier, whitening))
