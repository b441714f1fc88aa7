"""Inference-Time Intervention (ITI), on the residual stream of one layer.

    v(a) = theta / ||theta||,  optionally times sigma, the spread of theta^ . a
    h(a) = theta . a + b + log(n-/n+)   from logistic regression

Source: Li et al., "Inference-Time Intervention: Eliciting Truthful Answers from a Language
Model", NeurIPS 2023, https://arxiv.org/abs/2306.03341
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from odesteer.methods.base import Method
from odesteer.methods.facts import MethodInfo
from odesteer.methods.linear_probe import linear_probe
from odesteer.methods.samples import Samples
from odesteer.ode import ConstantField, VectorField


@dataclass(frozen=True)
class ITI(Method):
    """Moves every activation along the unit normal of a linear probe.

    The original intervenes on single attention heads; this is the form that ODESteer's
    paper compares with: one logistic regression on the layer's output.

    Args:
        C: inverse L2 regularisation of the probe.
        spread: multiply by the standard deviation of the projections on the normal, as the
            original does; then `strength` counts in standard deviations.
    """

    name: ClassVar[str] = "iti"
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="theta / ||theta||, theta the normal of a linear probe",
        barrier="theta.a + b + log(n-/n+), by logistic regression",
        exact="straight line, one Euler step",
        strength="path length; with spread=True, standard deviations along theta",
        source="Li et al., NeurIPS 2023, arXiv 2306.03341",
    )

    C: float = 1.0
    spread: bool = False

    def learn(self, positive: Tensor, negative: Tensor) -> VectorField:
        samples = Samples(positive, negative)
        probe = linear_probe(samples, self.C)
        theta = probe.weight
        direction = theta / theta.norm()
        if self.spread:
            direction = direction * (samples.rows @ direction).std()
        return ConstantField(direction, probe)
