"""Solution of the ODE with an account of it: how each row ended, and what it cost.

The names are those of diffrax (Kidger, "On Neural Differential Equations", 2021,
https://arxiv.org/abs/2202.02435): `ys`, `result`, `stats`; here every row has a result.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesteer.ode.fields.base import Flow


class Result(IntEnum):
    """How a row ended; the first that applies, in the order of `NOT_FINITE` to `BUDGET_SPENT`.

    Attributes:
        REACHED: the barrier was brought to the level.
        ALREADY_THERE: the barrier was at the level, or a gated field does not act on the row; it
            was returned bit for bit.
        BUDGET_SPENT: moved for its whole time, which is all that was asked for if there was no
            level.
        STUCK: v = 0 where it ended, a critical point; or, if there was a level, the row
            swings about a maximum: two more steps of the same length would raise h by less than
            half of what one changes it.
        INFEASIBLE: where it ended, the constraints of a `SafetyField` are not met.
        NOT_FINITE: NaN or infinity at the start, or an overflow on the way; returned unchanged.
    """

    REACHED = 0
    ALREADY_THERE = 1
    BUDGET_SPENT = 2
    STUCK = 3
    INFEASIBLE = 4
    NOT_FINITE = 5


class Solution(NamedTuple):
    """Solution with an account of it, from `solve(..., report=True)`.

    Attributes:
        ys: a(time), [..., d], in the type of the activations.
        result: a `Result` of each row, [...] uint8.
        stats: `steps` [...], the steps that each row took (also those that an adaptive solver
            rejected, and of a row that stopped the one in which it did); `evaluations` and
            `values`, how often v and h were evaluated for the batch.
    """

    ys: Tensor
    result: Tensor
    stats: dict[str, Any]

    def counts(self) -> dict[str, int]:
        """Return how many rows ended in each way, by its name in lower case; without zeros."""
        numbers = torch.bincount(self.result.reshape(-1).long(), minlength=len(Result)).tolist()
        return {each.name.lower(): numbers[each] for each in Result if numbers[each]}


@dataclass
class CountedFlow:
    """A flow that counts its evaluations.

    Attributes:
        flow: the flow.
        evaluations: of v.
        values: of h.
    """

    flow: Flow
    evaluations: int = 0
    values: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.evaluations += 1
        return self.flow(x)

    def value(self, x: Tensor) -> Tensor:
        self.values += 1
        return self.flow.value(x)

    def rotate(self, x: Tensor, time: Tensor) -> Tensor:
        self.evaluations += 1
        return self.flow.rotate(x, time)

    @property
    def spherical(self) -> bool:
        return self.flow.spherical

    def longest(self, x: Tensor) -> Tensor | None:
        self.evaluations += 1
        return self.flow.longest(x)

    def length(self, x: Tensor) -> Tensor:
        return self.flow.length(x)


def results(
    *, finite: Tensor, there: Tensor, reached: Tensor, infeasible: Tensor, stuck: Tensor
) -> Tensor:
    """Return the `Result` of each row from what is true of it, [...]."""
    result = torch.full_like(finite, Result.BUDGET_SPENT, dtype=torch.uint8)
    for holds, outcome in (
        (stuck, Result.STUCK),
        (infeasible, Result.INFEASIBLE),
        (reached, Result.REACHED),
        (there, Result.ALREADY_THERE),
        (~finite, Result.NOT_FINITE),
    ):
        result = result.masked_fill(holds, int(outcome))
    return result
