"""Baselines: the unsteered model and a random direction.

    v(a) = 0
    v(a) = u,  u drawn uniformly from the unit sphere

The random direction is the control of every comparison: a method's effect beyond it is due to the
direction that it learnt.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from odesteer.methods.base import Method, MethodInfo
from odesteer.ode import ConstantField, VectorField, ZeroField


@dataclass(frozen=True)
class NoSteering(Method):
    """Unsteered model: no activation moves."""

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
    """Random unit direction, independent of the data.

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
        normal = torch.randn(positive.shape[1], generator=generator, dtype=torch.float64)
        return ConstantField(torch.nn.functional.normalize(normal, dim=0))
