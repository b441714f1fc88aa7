"""Contrastive Activation Addition (CAA).

    v(a) = mean(positive) - mean(negative)
    h(a) = log N(a; mean+, I) / N(a; mean-, I) = v . (a - (mean+ + mean-) / 2)

Source: Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition", ACL 2024,
https://aclanthology.org/2024.acl-long.828
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from odesteer.methods.base import Method, MethodInfo
from odesteer.ode import ConstantField, LinearBarrier, VectorField


@dataclass(frozen=True)
class CAA(Method):
    """Moves every activation along the difference of the class means.

    The field is constant, so one Euler step is exact and a number as `strength` is the
    multiplier of the paper: a + strength * (mean(positive) - mean(negative)). The original
    fits at the letter token of A/B questions; here the rows are whatever is given.
    """

    name: ClassVar[str] = "caa"
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="mean(positive) - mean(negative)",
        barrier="log ratio of N(mean+, I) and N(mean-, I), linear",
        exact="straight line, one Euler step",
        strength="multiplier of the vector",
        source="Rimsky et al., ACL 2024, arXiv 2312.06681",
    )

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        above, below = positive.mean(dim=0), negative.mean(dim=0)
        difference = above - below
        barrier = LinearBarrier(difference, -difference @ (above + below) / 2)
        return ConstantField(difference, barrier)
