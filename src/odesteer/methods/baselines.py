"""Baselines: the unsteered model and a random direction.

No steering: the unsteered model as a method.

v(a) = 0

A random direction: what any push of that size does.

v(a) = u,  u drawn uniformly from the unit sphere

The control of every comparison: what a method does beyond it is owed to the direction it learnt.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from odesteer.methods.base import Method, MethodInfo
from odesteer.ode import ConstantField, VectorField, ZeroField


@dataclass(frozen=True)
class NoSteering(Method):
    """Moves nothing: the row that every comparison needs."""

    name: ClassVar[str] = "none"
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="0",
        barrier="-",
        exact="the identity",
        strength="nothing",
        source="-",
        keeps_norm=True,
    )

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        return ZeroField()


@dataclass(frozen=True)
class RandomDirection(Method):
    """Moves every activation along one direction that knows nothing of the data.

    Args:
        seed: of the direction.
    """

    name: ClassVar[str] = "random"
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="u, a random unit vector",
        barrier="-",
        exact="straight line, one Euler step",
        strength="path length",
        source="-",
    )

    seed: int = 0

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(positive.shape[1], generator=generator, dtype=torch.float64)
        return ConstantField(torch.nn.functional.normalize(drawn, dim=0))
