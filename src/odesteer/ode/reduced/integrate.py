"""Integration of a quadratic barrier's flow in k + 1 dimensions."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from odesteer.ode.reduced.basis import ReducedBasis
from odesteer.ode.reduced.flow import enter, leave
from odesteer.ode.solvers import Solver


class Integration(NamedTuple):
    """How rows are integrated.

    Attributes:
        time: signed, [n].
        solver, steps: how.
        level: the value of the barrier at which a row stops: of all, or one a row [n].
    """

    time: Tensor
    solver: Solver
    steps: int
    level: Tensor | float | None = None

    def flat(self) -> "Integration":
        """That of rows in one list: [...] -> [n]."""
        level = self.level.reshape(-1) if isinstance(self.level, Tensor) else self.level
        return Integration(self.time.reshape(-1), self.solver, self.steps, level)

    def part(self, rows: slice) -> "Integration":
        """That of some of the rows."""
        level = self.level[rows] if isinstance(self.level, Tensor) else self.level
        return Integration(self.time[rows], self.solver, self.steps, level)


class ReducedResult(NamedTuple):
    """What the flow does to rows: a(T) = a + shift x + change (S V)^T.

    Attributes:
        shift: [n, 1].
        change: [n, k].
        stays: [n], true for rows that are returned bit for bit.
    """

    shift: Tensor
    change: Tensor
    stays: Tensor


def is_finite_and_not_zero(time: Tensor, total: Tensor) -> Tensor:
    """True for rows that move: their time is not 0, and the sum of what they become is finite."""
    return torch.add(time, total, alpha=0).abs() > 0  # 0 times what is not finite is NaN


def in_type_of(a: Tensor, moved: Tensor) -> Tensor:
    """`moved` in a's type; a coordinate that float16 cannot hold keeps the value that it had."""
    result = moved.to(a.dtype)
    if a.dtype != torch.float16:  # the other types reach as far as float32
        return result
    return torch.where(result.isinf(), a, result)


Inner = Callable[[ReducedBasis, Tensor, Tensor, Integration], ReducedResult]


def integrate_reduced(
    frame: ReducedBasis, coordinates: Tensor, length: Tensor, course: Integration
) -> ReducedResult:
    """The flow in k + 1 dimensions, by any solver, in plain torch.

    Args:
        frame: of the barrier.
        coordinates: x @ Q, [n, m].
        length: ||x||, [n, 1].
        course: how far, and how.
    """
    flow, start = enter(frame, coordinates, length)
    state = course.solver.integrate(flow, start, course.time, course.steps, course.level)
    shift, change = leave(start, state)
    stays = ~is_finite_and_not_zero(course.time, change.sum(dim=-1) + shift.squeeze(-1))
    if course.level is not None:
        stays = stays | (flow.value(start) >= course.level)
    return ReducedResult(shift, change, stays)
