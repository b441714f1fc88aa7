"""No steering: the unsteered model as a method.

v(a) = 0
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from odesteer.methods.base import Method
from odesteer.methods.facts import MethodInfo
from odesteer.ode import VectorField, ZeroField


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

    def learn(self, positive: Tensor, negative: Tensor) -> VectorField:
        return ZeroField()
