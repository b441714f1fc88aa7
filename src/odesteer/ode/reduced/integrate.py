"""Integration of a quadratic barrier's flow in k + 1 dimensions."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from odesteer.ode.barriers.quadratic import ReducedBasis
from odesteer.ode.reduced.flow import displacement, project
from odesteer.ode.solvers import Solver


class Integration(NamedTuple):
    """Times, solver and stopping levels of an integration.

    Attributes:
        time: signed, [n].
        solver: the solver.
        steps: the number of fixed steps.
        level: value of the barrier at which a row stops: one for all rows, or one for each [n].
    """

    time: Tensor
    solver: Solver
    steps: int
    level: Tensor | float | None = None

    def flat(self) -> "Integration":
        """Flatten times and levels: [...] -> [n]."""
        level = self.level.reshape(-1) if isinstance(self.level, Tensor) else self.level
        return Integration(self.time.reshape(-1), self.solver, self.steps, level)

    def part(self, rows: slice) -> "Integration":
        """Take some of the rows."""
        level = self.level[rows] if isinstance(self.level, Tensor) else self.level
        return Integration(self.time[rows], self.solver, self.steps, level)


class ReducedResult(NamedTuple):
    """Displacement of rows before the lift: a(T) = a + shift x + change (S V)^T.

    Attributes:
        shift: [n, 1].
        change: [n, k].
        stays: [n], True for rows that are returned bit for bit.
    """

    shift: Tensor
    change: Tensor
    stays: Tensor


def is_finite_and_not_zero(time: Tensor, total: Tensor) -> Tensor:
    """Return True where time is not 0 and `total`, the sum of a row's result, is finite."""
    return torch.add(time, total, alpha=0).abs() > 0  # 0 times infinity is NaN


def cast_like(a: Tensor, moved: Tensor) -> Tensor:
    """Cast `moved` to a's type; a coordinate beyond float16's range keeps its old value."""
    result = moved.to(a.dtype)
    if a.dtype != torch.float16:  # the other types reach as far as float32
        return result
    return torch.where(result.isinf(), a, result)


Integrator = Callable[[ReducedBasis, Tensor, Tensor, Integration], ReducedResult]


def integrate_reduced(
    basis: ReducedBasis, coordinates: Tensor, length: Tensor, integration: Integration
) -> ReducedResult:
    """Integrate the flow in k + 1 dimensions by any solver, in plain torch.

    Args:
        basis: of the barrier.
        coordinates: x @ Q, [n, m].
        length: ||x||, [n, 1].
        integration: times, solver and levels.
    """
    flow, start = project(basis, coordinates, length)
    state = integration.solver.integrate(
        flow, start, integration.time, integration.steps, integration.level
    )
    shift, change = displacement(start, state)
    stays = ~is_finite_and_not_zero(integration.time, change.sum(dim=-1) + shift.squeeze(-1))
    if integration.level is not None:
        stays = stays | (flow.value(start) >= integration.level)
    return ReducedResult(shift, change, stays)
