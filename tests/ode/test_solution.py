"""A reported solution is the solution, and says truly how each row ended."""

from collections.abc import Callable

import pytest
import torch
from tests.helpers.steerings import FIELDS, ROWS
from torch import Tensor

from odesteer.ode import (
    SOLVERS,
    Angle,
    ConstantField,
    GradientField,
    LinearBarrier,
    Result,
    SafetyField,
    Target,
    solve,
)
from odesteer.steering import Steering

Make = Callable[..., Tensor]


@pytest.mark.parametrize(
    ("name", "level"),
    [
        *((name, None) for name in FIELDS),
        *((name, 0.5) for name, make in FIELDS.items() if make().barrier is not None),
    ],
)
def test_it_is_the_solution_that_is_not_reported(name: str, level: float | None) -> None:
    field, a = FIELDS[name]().double(), ROWS.double()
    for solver in ("euler", "heun"):
        how = {"solver": SOLVERS[solver], "steps": 4, "level": level}
        with torch.no_grad():
            plain = solve(field, a, 0.7, **how)
            solution = solve(field, a, 0.7, **how, report=True)
        torch.testing.assert_close(solution.ys, plain, rtol=1e-9, atol=1e-9)
        there = solution.result == Result.ALREADY_THERE
        assert torch.equal(solution.ys[there], a[there])
        if level is not None:
            assert torch.equal(there, field.value(a) >= level)
            reached = solution.result == Result.REACHED
            assert bool((field.value(solution.ys)[reached] >= level - 1e-6).all())


def test_a_linear_barrier_tells_reached_there_and_spent() -> None:
    h = LinearBarrier(torch.tensor([1.0, 0.0]))
    a = torch.tensor([[-5.0, 0.0], [-0.5, 0.0], [3.0, 1.0], [float("nan"), 0.0]])
    solution = solve(
        GradientField(h), a, 2.0, solver=SOLVERS["euler"], steps=8, level=0.9, report=True
    )
    expected = [Result.BUDGET_SPENT, Result.REACHED, Result.ALREADY_THERE, Result.NOT_FINITE]
    assert [Result(int(each)) for each in solution.result] == expected
    # 1.4 to go in steps of 1/4: it stops in the sixth.
    assert solution.stats["steps"].tolist()[:3] == [8, 6, 0]
    assert solution.counts() == {
        "reached": 1,
        "already_there": 1,
        "budget_spent": 1,
        "not_finite": 1,
    }


def test_it_counts_evaluations_and_steps_of_rows_with_time() -> None:
    field, a, time = ConstantField(torch.ones(3)), torch.zeros(2, 3), torch.tensor([1.0, 0.0])
    for solver, stages in (("euler", 1), ("heun", 2), ("rk4", 4)):
        how = {"solver": SOLVERS[solver], "steps": 5, "report": True}
        stats = solve(field, a, time, **how).stats
        assert stats["steps"].tolist() == [5, 0] and stats["evaluations"] == 5 * stages
        assert stats["values"] == 0
    adaptive = solve(field, a, time, solver=SOLVERS["dopri5"], steps=1, report=True).stats
    steps = int(adaptive["steps"][0])
    assert 1 < steps < 20 and adaptive["evaluations"] == 8 * steps  # 7 stages and a length


def test_a_row_at_a_critical_point_or_about_a_maximum_is_stuck(make_quadratic, normal: Make):
    barrier = make_quadratic()
    field, a = GradientField(barrier), 3 * normal(10, 7)
    above = float(barrier.curvature.abs().max() + barrier.slope.norm() + barrier.constant) + 1.0
    how = {"solver": SOLVERS["great-circle"], "steps": 300, "level": above, "report": True}
    assert solve(field, a, 60.0, **how).counts() == {"stuck": 10}
    assert solve(field, a, 0.06, **how).counts() == {"budget_spent": 10}
    centre = barrier.whitening.centre[None]  # h has no direction there
    assert solve(field, centre, 1.0, **how).counts() == {"stuck": 1}


def test_contradictory_constraints_are_infeasible_and_kept_rows_are_there(make_linear, normal):
    barrier, a = make_linear(), normal(30, 7)
    how = {"solver": SOLVERS["rk4"], "steps": 10, "report": True}
    field = SafetyField([barrier, barrier.affine(-1.0, -1.0)], 1.0)
    assert solve(field, a, 1.0, **how).counts() == {"infeasible": 30}
    kept = int((barrier.value(a) >= 0).sum())
    counts = solve(SafetyField(barrier, 1.0), a, 1.0, **how).counts()
    assert counts == {"already_there": kept, "budget_spent": 30 - kept}


def test_a_steering_reports_its_dose(make_quadratic, normal: Make) -> None:
    field = GradientField(make_quadratic()).float()
    steering = Steering(field, strength=Target(0.7, Angle(0.5)), solver="heun", steps=10)
    a = 3 * normal(40, 7).float()
    solution = steering.solution(a)
    torch.testing.assert_close(solution.ys, steering(a), rtol=1e-4, atol=1e-4)
    assert sum(solution.counts().values()) == 40 and solution.counts()["reached"] > 5
    there = steering.probability(a) >= 0.7
    assert torch.equal(solution.result == Result.ALREADY_THERE, there)
    assert solution.result.shape == solution.stats["steps"].shape == (40,)
