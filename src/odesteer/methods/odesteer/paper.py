"""ODESteer in the configuration of its paper, and the paper's two ablations of it.

    h(a) = w . phi(a / ||a||) + b + log(n-/n+),   v = grad h / ||grad h||,   10 Euler steps

phi is the polynomial count sketch (gamma 0.1, c0 1, degree 2, 8,000 components), w and b come
from logistic regression with C = 1. Kept as it is, so that results can be compared;
`ODESteer` estimates the same object better.

Source: Zhao et al., "ODESteer: A Unified ODE-Based Steering Framework for LLM Alignment",
ICLR 2026, https://arxiv.org/abs/2602.17560, section 5 and Table 3.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from odesteer.methods.base import Method, MethodInfo
from odesteer.methods.samples import Samples
from odesteer.ode import Dose, FourierBarrier, GradientField, SketchBarrier, VectorField


@dataclass(frozen=True)
class PaperODESteer(Method):
    """The paper's barrier, field and solver.

    Args:
        degree: of the polynomial kernel.
        gamma, c0: its scale and offset.
        components: buckets of the count sketch.
        C: inverse regularisation.
        seed: of the hashes.
    """

    name: ClassVar[str] = "odesteer-paper"
    default_strength: ClassVar[Dose | float] = 5.0
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="grad h / ||grad h||",
        barrier="log density ratio by a count sketch of a / ||a||, degree 2",
        exact="stays on the sphere about 0, which Euler's steps leave; no closed form",
        strength="path length",
        source="Zhao et al., ICLR 2026, arXiv 2602.17560",
    )

    steps: int = 10
    degree: int = 2
    gamma: float = 0.1
    c0: float = 1.0
    components: int = 8000
    C: float = 1.0
    seed: int = 0

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        generator = torch.Generator().manual_seed(self.seed)
        hashes = SketchBarrier.draw(positive.shape[1], self.degree, self.components, generator)
        index, sign = (h.to(positive.device) for h in hashes)
        return GradientField(self.fit_sketch(positive, negative, index, sign))

    def fit_sketch(
        self, positive: Tensor, negative: Tensor, index: Tensor, sign: Tensor
    ) -> SketchBarrier:
        """The barrier on given hashes [degree, d + 1]."""
        samples = Samples(positive, negative)
        empty = positive.new_zeros(self.components)
        sketch = SketchBarrier(index, sign, empty, 0.0, self.gamma, self.c0)
        weight, bias = _regression(sketch.features(samples.rows), samples, self.C)
        return SketchBarrier(index, sign, weight, bias, self.gamma, self.c0)


@dataclass(frozen=True)
class OneStepODESteer(PaperODESteer):
    """The paper's first ablation: one Euler step of the whole length instead of ten."""

    name: ClassVar[str] = "odesteer-one-step"

    steps: int = 1


@dataclass(frozen=True)
class FourierODESteer(Method):
    """The paper's code also has random Fourier features as the barrier's features.

    Args:
        components: D.
        bandwidth: of the Gaussian kernel; None: the median distance between rows.
        C: inverse regularisation.
        seed: of the features.
    """

    name: ClassVar[str] = "odesteer-fourier"
    default_strength: ClassVar[Dose | float] = 5.0
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="grad h / ||grad h||",
        barrier="log density ratio by random Fourier features",
        exact="none",
        strength="path length",
        source="Zhao et al., ICLR 2026, arXiv 2602.17560, the code",
    )

    steps: int = 10
    components: int = 512
    bandwidth: float | None = None
    C: float = 1.0
    seed: int = 0

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        samples = Samples(positive, negative)
        rows = samples.rows
        generator = torch.Generator().manual_seed(self.seed)
        bandwidth = self.bandwidth or median_distance(rows, generator)
        # Drawn on the CPU, so that a seed means the same features on every device.
        single = torch.float32  # whatever torch's default is
        size = (self.components, rows.shape[1])
        frequency = torch.randn(size, generator=generator, dtype=single) / bandwidth
        offset = 2 * math.pi * torch.rand(self.components, generator=generator, dtype=single)
        frequency, offset = frequency.to(rows), offset.to(rows)
        empty = FourierBarrier(frequency, offset, torch.zeros_like(offset), 0.0)
        coef, bias = _regression(empty.features(rows), samples, self.C)
        return GradientField(FourierBarrier(frequency, offset, coef, bias))


def _regression(features: Tensor, samples: Samples, C: float) -> tuple[Tensor, float]:
    """Weights and the intercept of a log density ratio."""
    model = LogisticRegression(C=C, max_iter=1000).fit(features.cpu().numpy(), samples.labels)
    weight = torch.as_tensor(model.coef_[0]).to(features)
    return weight, float(model.intercept_[0]) - samples.log_prior_odds


def median_distance(rows: Tensor, generator: torch.Generator) -> float:
    """Over at most 1,000 rows; 1 where all rows are alike."""
    chosen = rows[torch.randperm(len(rows), generator=generator)[:1000].to(rows.device)]
    distances = torch.pdist(chosen)
    median = float(distances.median()) if len(distances) else 0.0
    return median or 1.0
