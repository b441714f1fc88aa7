"""The difference of the class medians, and Ralston's method.

    v(a) = median(positive) - median(negative), in each coordinate

A mean follows every outlier, a median needs half of the rows to move: the vector of CAA where
some of the examples are mislabelled or odd.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from odesteer.methods import Method
from odesteer.methods.base import MethodInfo
from odesteer.ode import ConstantField, RungeKutta, Tableau, VectorField


@dataclass(frozen=True)
class MedianDifference(Method):
    """Moves every activation along the difference of the class medians."""

    name: ClassVar[str] = "median"
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="median(positive) - median(negative)",
        barrier="-",
        exact="straight line, one Euler step",
        strength="multiplier of the vector",
        source="the example package of odesteer",
    )

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        return ConstantField(positive.median(dim=0).values - negative.median(dim=0).values)


# The second-order method with the smallest bound on its error.
# Source: Ralston, "Runge-Kutta methods with minimum error bounds", Math. Comp. 16, 1962.
RALSTON = RungeKutta(Tableau(a=((), (2 / 3,)), b=(1 / 4, 3 / 4), order=2))
