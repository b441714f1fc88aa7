"""Safety filter: the smallest move of rows outside the desired region.

    v(a) = max(0, -alpha (h(a) - margin)) G grad h / (grad h . G grad h)

h is the barrier of another method, by default ODESteer's. Rows with h >= margin stay bit for bit;
along the exact flow the deficit of the others is (h(0) - margin) e^(-alpha T).

Source: Ames et al., "Control Barrier Function Based Quadratic Programs for Safety Critical
Systems", IEEE Transactions on Automatic Control 62, 2017, https://arxiv.org/abs/1609.06408; the
barrier is that of Zhao et al., "ODESteer", ICLR 2026, https://arxiv.org/abs/2602.17560
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from odesteer.methods.base import Method, MethodInfo
from odesteer.methods.odesteer.method import ODESteer
from odesteer.methods.samples import Progress, Samples
from odesteer.ode import SafetyField, VectorField


@dataclass(frozen=True)
class SafetyFilter(Method):
    """Filter that raises h towards the margin, exponentially in the strength.

    Strength is time: after T the deficit is e^(-alpha T) of the initial one. A negative strength
    keeps -h above the margin. No row crosses the margin, and strength 1 closes two thirds of the
    deficit (alpha 1), so a margin above 0 may be needed.

    Args:
        alpha: the rate.
        margin: the value of h to keep, in nats of log density ratio.
        reach: largest move for each unit of alpha T, over the median distance of the rows from
            their mean. Only rows near a critical point of h would need more.
        estimate: the method that fits the barrier.
    """

    name: ClassVar[str] = "safety-filter"
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="max(0, -alpha (h - margin)) G grad h / (grad h . G grad h)",
        barrier="as odesteer",
        exact="h - margin decays as e^(-alpha t) from below; rows above stay",
        strength="time; the deficit shrinks by e^(-alpha T)",
        source="Ames et al., IEEE TAC 2017, arXiv 1609.06408",
    )

    steps: int = 10
    solver: str = "rk4"
    alpha: float = 1.0
    margin: float = 0.0
    reach: float = 1.0
    estimate: Method = field(default_factory=ODESteer)

    def __post_init__(self) -> None:
        if not self.alpha > 0 or not self.reach > 0:
            raise ValueError(
                f"safety-filter needs alpha > 0 and reach > 0; got {self.alpha} and {self.reach}."
            )

    def select_hyperparameters(self, samples: Samples) -> "SafetyFilter":
        return replace(self, estimate=self.estimate.select_hyperparameters(samples))

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        return self.fit_samples(Samples(positive, negative))

    def fit_samples(self, samples: Samples, progress: Progress | None = None) -> VectorField:
        barrier = self.estimate.fit_samples(samples, progress).barrier
        if barrier is None:
            raise ValueError(
                f"safety-filter needs a method with a barrier; {self.estimate.name} has none. "
                f"Use estimate=ODESteer()."
            )
        radius = (samples.rows - samples.rows.mean(dim=0)).norm(dim=-1).median()
        limit = self.alpha * self.reach * float(radius)
        return SafetyField(barrier, self.alpha, self.margin, limit=limit or None)

    def held_out_values(
        self, samples: Samples, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray] | None:
        return self.estimate.held_out_values(samples, seed)
