"""Solution of the initial value problem da/dt = v(a), a(0) = a.

It is solved in the field's cheapest coordinates. A row that overflows (its squares exceed float32
from a norm of 1e19), or that holds NaN or infinity, is returned unchanged: finite activations stay
finite.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from odesteer.ode.fields.base import Flow, VectorField, compute_dtype
from odesteer.ode.reduced.integrate import Integration, cast_like, is_finite_and_not_zero
from odesteer.ode.reduced.solve import reduced_basis_of
from odesteer.ode.reduced.solve import solve as solve_reduced
from odesteer.ode.solvers import GreatCircle, Solver


class Result(IntEnum):
    """Outcome of a row; the first that applies, in the order of `NOT_FINITE` to `BUDGET_SPENT`.

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

    The names are those of diffrax (Kidger, "On Neural Differential Equations", 2021,
    https://arxiv.org/abs/2202.02435); here every row has a result.

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


@overload
def solve(
    field: VectorField,
    a: Tensor,
    time: Tensor | float,
    *,
    solver: Solver,
    steps: int,
    level: Tensor | float | None = None,
    report: Literal[False] = False,
) -> Tensor: ...
@overload
def solve(
    field: VectorField,
    a: Tensor,
    time: Tensor | float,
    *,
    solver: Solver,
    steps: int,
    level: Tensor | float | None = None,
    report: Literal[True],
) -> Solution: ...
def solve(
    field: VectorField,
    a: Tensor,
    time: Tensor | float,
    *,
    solver: Solver,
    steps: int,
    level: Tensor | float | None = None,
    report: bool = False,
) -> Tensor | Solution:
    """Return a(time) for a [..., d], in a's own type.

    Rows with time 0, rows whose barrier is at `level` already and rows that overflow come back
    bit for bit. A constant added for one common time is not checked row by row: there NaN and
    infinity stay in the coordinates that hold them. A coordinate beyond float16's range keeps its
    value.

    Args:
        field: v.
        a: the start, in any type; solved in `compute_dtype` of it, the field's precision.
        time: signed; a number, or one for each row [...].
        solver: the solver.
        steps: for fixed-step solvers.
        level: stop each row where the barrier reaches this value; one for all rows, or for each.
        report: return a `Solution`, which says how each row ended and what it cost. It is solved
            without compiled kernels and closed forms, and equal to the other to rounding.
    """
    dtype = compute_dtype(a.dtype)
    # Every solver is exact along a line, but the great-circle solver needs a sphere.
    plain = level is None and not isinstance(solver, GreatCircle) and not report
    if plain and isinstance(time, float) and time != 0.0:
        end = field.closed_form(a.to(dtype), time)
        if end is not None:
            return cast_like(a, end)
    # Filled in on the device: a copy of the number would wait for the device.
    if not isinstance(time, Tensor):
        time = a.new_full((), time, dtype=dtype)
    time = time.to(a.device, dtype).expand(a.shape[:-1])
    if isinstance(level, Tensor):
        level = level.to(a.device, dtype).expand(a.shape[:-1])
    if report:
        return _reported(field, a, Integration(time, solver, steps, level))
    basis = reduced_basis_of(field, a)
    if basis is not None:
        return solve_reduced(basis, a, Integration(time, solver, steps, level))
    start = a.to(dtype)
    reduction = field.reduce(start)
    state = solver.integrate(reduction.flow, reduction.start, time, steps, level)
    moved = reduction.lift(state)
    moves = is_finite_and_not_zero(time, moved.sum(dim=-1))
    if level is not None:
        moves = moves & ~(reduction.flow.value(reduction.start) >= level)
    return cast_like(a, torch.where(moves.unsqueeze(-1), moved, start))


def _reported(field: VectorField, a: Tensor, integration: Integration) -> Solution:
    time, solver, steps, level = integration
    start = a.to(time.dtype)
    reduction = field.reduce(start)
    flow = CountedFlow(reduction.flow)
    taken = torch.zeros_like(time, dtype=torch.int64)
    state = solver.integrate(flow, reduction.start, time, steps, level, taken)
    moved = reduction.lift(state)
    total = moved.sum(dim=-1)
    moves = is_finite_and_not_zero(time, total)
    stats = {"steps": taken, "evaluations": flow.evaluations, "values": flow.values}
    with torch.no_grad():
        there, reached = torch.zeros_like(moves), torch.zeros_like(moves)
        speed = reduction.flow.length(reduction.flow(state)).squeeze(-1)
        stuck = speed == 0
        if level is not None:
            # An adaptive solver takes steps of this share where the field is not smooth.
            dt = time.unsqueeze(-1) / (250 if solver.adaptive else steps)
            there = reduction.flow.value(reduction.start) >= level
            value = reduction.flow.value(state)
            reached = value >= level
            # About a maximum, h swings: what a step gains or loses the next one takes back.
            once = solver.step(reduction.flow, state, dt)
            twice = solver.step(reduction.flow, once, dt)
            first, both = (reduction.flow.value(x) - value for x in (once, twice))
            stuck = stuck | (both < first.abs() / 2)
        elif field.gated:
            there = reduction.flow.length(reduction.flow(reduction.start)).squeeze(-1) == 0
        result = results(
            finite=torch.isfinite(start.sum(dim=-1)) & torch.isfinite(total),
            there=there,
            reached=reached,
            infeasible=field.infeasible(moved),
            stuck=stuck & (time != 0),
        )
    moves = moves & ~there
    ys = cast_like(a, torch.where(moves.unsqueeze(-1), moved, start))
    return Solution(ys, result, stats)


def trajectory(
    field: VectorField, a: Tensor, time: Tensor | float, *, solver: Solver, steps: int
) -> Tensor:
    """Return the path at 0, time/steps, ..., time: [steps + 1, ..., d], beginning with `a`."""
    time = torch.as_tensor(time, dtype=a.dtype, device=a.device).expand(a.shape[:-1])
    reduction = field.reduce(a)
    path = solver.path(reduction.flow, reduction.start, time, steps)
    moved = reduction.lift(path[1:])
    moves = is_finite_and_not_zero(time, moved.sum(dim=(0, -1)))
    return torch.cat([a.unsqueeze(0), torch.where(moves.unsqueeze(-1), moved, a)])
