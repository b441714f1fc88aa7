"""ODESteer with Gaussian classes: discriminant analysis, in closed form.

    h(a) = log N(a; mean+, S+) - log N(a; mean-, S-),   v = grad h / ||grad h||

Quadratic when each class has its own covariance (QDA), linear when they share one (LDA):
then h(a) = (mean+ - mean-) . S^-1 a + const, and a straight line solves the flow exactly.
Covariances are shrunk towards a multiple of I. Fits in milliseconds, with no iteration.

Source: Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", 2nd ed., 2009,
section 4.3; the field is that of Zhao et al., "ODESteer", ICLR 2026,
https://arxiv.org/abs/2602.17560
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from odesteer.methods.base import Method
from odesteer.methods.covariance import class_covariances, pooled_covariance
from odesteer.methods.facts import Facts
from odesteer.ode import Angle, Dose, GaussianBarrier, GradientField, VectorField


@dataclass(frozen=True)
class GaussianODESteer(Method):
    """Follows the gradient of the log ratio of two Gaussians.

    The quadratic h is unbounded, and far from the rows it says nothing: keep the dose small.
    The gradient is plain (G = I), so it favours directions of little variance; in the metric of
    the covariance LDA would be CAA. A class of one or two rows takes the covariance of both.

    Args:
        shared: one covariance for both classes (LDA).
        shrinkage: s in (1 - s) S + s tr(S)/d I, in 0..1; None: Ledoit-Wolf for each class.
    """

    name: ClassVar[str] = "odesteer-gaussian"
    default_strength: ClassVar[Dose | float] = Angle(0.3)
    facts: ClassVar[Facts] = Facts(
        field="grad h / ||grad h||",
        barrier="log ratio of two Gaussians: quadratic (QDA), or linear (LDA) when shared",
        exact="LDA: a straight line; QDA: none",
        strength="path length",
        source="Fisher 1936; Hastie et al. 2009, section 4.3",
    )

    steps: int = 10
    solver: str = "heun"
    shared: bool = False
    shrinkage: float | None = None

    def __post_init__(self) -> None:
        if self.shrinkage is not None and not 0.0 <= self.shrinkage <= 1.0:
            raise ValueError(
                f"odesteer-gaussian needs 0 <= shrinkage <= 1 or None; got {self.shrinkage}."
            )

    def learn(self, positive: Tensor, negative: Tensor) -> VectorField:
        if self.shared:
            above, below = pooled_covariance(positive, negative, self.shrinkage), None
        else:
            above, below = class_covariances(positive, negative, self.shrinkage)
        barrier = GaussianBarrier.from_moments(
            positive.mean(dim=0), above, negative.mean(dim=0), below
        )
        return GradientField(barrier)
