"""Representation engineering (RepE): the first principal direction of paired differences.

    v(a) = u1,  h(a) = u1 . (a - (mean+ + mean-) / 2)

u1 is the first principal component of the differences positive_i - negative_i of rows that
answer the same prompt, taken in both orders, pointing so that positives project higher.

Source: Zou et al., "Representation Engineering: A Top-Down Approach to AI Transparency",
2023, https://arxiv.org/abs/2310.01405
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from odesteer.methods.base import Method, MethodInfo
from odesteer.ode import ConstantField, LinearBarrier, VectorField


@dataclass(frozen=True)
class RepE(Method):
    """Moves every activation along the unit direction in which pairs differ most.

    The original takes each difference in a random order, which keeps the shift that all pairs
    have in common from being centred away. Taking both orders is the limit of that and needs
    no seed: the differences then have mean 0, and u1 maximises the mean of (u . difference)^2.
    """

    name: ClassVar[str] = "repe"
    needs_pairs: ClassVar[bool] = True
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="u1, first principal direction of paired differences",
        barrier="u1.a",
        exact="straight line, one Euler step",
        strength="path length",
        source="Zou et al. 2023, arXiv 2310.01405",
    )

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        difference = positive - negative
        # Right singular vectors of D are the principal directions of [D; -D].
        direction = torch.linalg.svd(difference, full_matrices=False).Vh[0]
        if difference.mean(dim=0) @ direction < 0:
            direction = -direction
        middle = (positive.mean(dim=0) + negative.mean(dim=0)) / 2
        return ConstantField(direction, LinearBarrier(direction, -direction @ middle))
