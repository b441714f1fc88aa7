"""Does every solver converge at its order, count its steps, and keep what it says it keeps?"""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from odesteer.ode import (
    SOLVERS,
    Adaptive,
    GradientField,
    QuadraticBarrier,
    RungeKutta,
    VectorField,
    Whitening,
    solve,
    trajectory,
)
from odesteer.ode.solvers import DOPRI5, EULER, RK4

Make = Callable[..., Tensor]
Slope = Callable[[Sequence[int], Sequence[float]], float]
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "rk4-38": 4, "great-circle": 1}
STEPS = (8, 16, 32, 64)


class _Linear(VectorField):
    """da/dt = M a, whose solution is exp(t M) a; it counts how often it is evaluated."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.matrix = matrix
        self.calls = 0

    def forward(self, a: Tensor) -> Tensor:
        self.calls += 1
        return a @ self.matrix.mT

    def reversed(self) -> "_Linear":
        return _Linear(-self.matrix)

    def exact(self, a: Tensor, time: float) -> Tensor:
        return a @ torch.linalg.matrix_exp(time * self.matrix).mT


@pytest.fixture
def linear(normal: Make) -> _Linear:
    return _Linear(normal(5, 5) / 2)


@pytest.mark.parametrize("name", [name for name in ORDERS if name != "great-circle"])
def test_error_on_a_linear_ode_falls_with_the_order(
    name: str, linear: _Linear, normal: Make, slope: Slope
) -> None:
    a = normal(4, 5, seed=1)
    errors = [
        float((solve(linear, a, 1.0, solver=SOLVERS[name], steps=n) - linear.exact(a, 1.0)).norm())
        for n in STEPS
    ]
    assert slope(STEPS, errors) == pytest.approx(ORDERS[name], abs=0.2)


@pytest.mark.parametrize("name", list(ORDERS))
def test_error_on_the_gradient_flow_falls_with_the_order(
    name: str, quadratic: QuadraticBarrier, normal: Make, slope: Slope
) -> None:
    a, field = 2 * normal(4, 7, seed=2), GradientField(quadratic)
    exact = solve(field, a, 1.0, solver=RungeKutta(DOPRI5), steps=256)
    errors = [
        float((solve(field, a, 1.0, solver=SOLVERS[name], steps=n) - exact).norm()) for n in STEPS
    ]
    assert slope(STEPS, errors) == pytest.approx(ORDERS[name], abs=0.2)


def test_dormand_prince_has_order_five_with_fixed_steps(
    linear: _Linear, normal: Make, slope: Slope
) -> None:
    a = normal(4, 5, seed=1)
    errors = [
        float(
            (
                solve(linear, a, 1.0, solver=RungeKutta(DOPRI5), steps=n) - linear.exact(a, 1.0)
            ).norm()
        )
        for n in STEPS
    ]
    assert slope(STEPS, errors) == pytest.approx(5, abs=0.2)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-7, 1e-9])
def test_the_adaptive_error_is_within_tolerance_times_the_length(
    tolerance: float, quadratic: QuadraticBarrier, normal: Make
) -> None:
    a, field, T = 2 * normal(8, 7, seed=2), GradientField(quadratic), 1.5
    exact = solve(field, a, T, solver=RungeKutta(DOPRI5), steps=256)
    moved = solve(field, a, T, solver=Adaptive(tolerance=tolerance), steps=1)
    assert float((moved - exact).norm(dim=-1).max()) < tolerance * T


def test_the_adaptive_error_falls_with_the_five_fourths_power_of_the_tolerance(
    linear: _Linear, normal: Make
) -> None:
    # Error per unit step of the order 4 estimate sets dt^4 ~ tolerance; the result is of order 5.
    a = normal(4, 5, seed=1)
    tolerances = torch.logspace(-3, -10, 8, dtype=torch.float64)
    errors = torch.stack(
        [
            (
                solve(linear, a, 2.0, solver=Adaptive(tolerance=float(t)), steps=1)
                - linear.exact(a, 2.0)
            ).norm()
            for t in tolerances
        ]
    )
    x, y = tolerances.log(), errors.log()
    fitted = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    assert float(fitted) == pytest.approx(5 / 4, abs=0.2)


def test_an_adaptive_row_takes_the_same_steps_alone_as_in_a_batch(
    quadratic: QuadraticBarrier, normal: Make
) -> None:
    a, field = 2 * normal(6, 7, seed=2), GradientField(quadratic)
    # Rows of very different stiffness and time.
    a = quadratic.whitening.centre + (a - quadratic.whitening.centre) * torch.logspace(
        -0.5, 2, 6, dtype=torch.float64
    ).unsqueeze(-1)
    time = torch.tensor([0.2, 1.0, -1.0, 5.0, -0.1, 30.0], dtype=torch.float64)
    loose = Adaptive(tolerance=1e-3)
    together = solve(field, a, time, solver=loose, steps=1)
    for i in range(6):
        alone = solve(field, a[i], time[i], solver=loose, steps=1)
        torch.testing.assert_close(alone, together[i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 10, 11, 100])
@pytest.mark.parametrize(("name", "stages"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_steps_are_counted_as_integers(
    name: str, stages: int, steps: int, linear: _Linear, normal: Make
) -> None:
    # 0.1 * 3 / 0.1 is not 3 in floating point: a step size divided back would miscount.
    solve(linear, normal(2, 5), 0.1 * steps, solver=SOLVERS[name], steps=steps)
    assert linear.calls == steps * stages


@pytest.mark.parametrize("solver", [RungeKutta(RK4), Adaptive(tolerance=1e-9)])
def test_going_forward_and_back_returns(
    solver: RungeKutta | Adaptive, quadratic: QuadraticBarrier, normal: Make
) -> None:
    a, field = 2 * normal(5, 7, seed=2), GradientField(quadratic)
    for time in (1.0, -1.0):
        there = solve(field, a, time, solver=solver, steps=80)
        back = solve(field, there, -time, solver=solver, steps=80)
        assert float((there - a).norm(dim=-1).min()) > 0.5
        torch.testing.assert_close(back, a, rtol=0, atol=1e-7)


def test_great_circles_are_exact_for_a_linear_barrier_on_the_sphere(normal: Make) -> None:
    w, centre, a = normal(7), normal(7, seed=1), 3 * normal(6, 7, seed=2)
    barrier = QuadraticBarrier.from_form(torch.zeros(7, 7), w, 0.0, Whitening(centre))
    y, pole = a - centre, w / w.norm()
    r = y.norm(dim=-1, keepdim=True)
    to_pole = torch.acos((y / r) @ pole).unsqueeze(-1)
    towards = pole - (y / r) * to_pole.cos()
    towards = towards / towards.norm(dim=-1, keepdim=True)
    for share in (0.3, 0.9, -0.5):
        angle = share * to_pole
        exact = centre + r * (angle.cos() * y / r + angle.sin() * towards)
        for steps in (1, 7):
            moved = solve(
                GradientField(barrier),
                a,
                (angle * r).squeeze(-1),
                solver=SOLVERS["great-circle"],
                steps=steps,
            )
            torch.testing.assert_close(moved, exact)
            # The angle to the pole is the closed form's own number.
            cosine = (moved - centre) @ pole / r.squeeze(-1)
            torch.testing.assert_close(cosine, (to_pole - angle).cos().squeeze(-1))


@pytest.mark.parametrize("steps", [1, 4, 25])
def test_great_circles_keep_the_distance_to_the_centre(
    steps: int, make_quadratic, normal: Make
) -> None:
    barrier, a = make_quadratic(), 2 * normal(5, 7, seed=2)
    centre = barrier.whitening.centre
    path = trajectory(GradientField(barrier), a, 9.0, solver=SOLVERS["great-circle"], steps=steps)
    distance = (path - centre).norm(dim=-1)
    torch.testing.assert_close(distance, distance[:1].expand_as(distance))


def test_great_circles_keep_the_norm_of_y_when_whitened(make_quadratic, normal: Make) -> None:
    barrier, a = make_quadratic(whitened=True), 2 * normal(5, 7, seed=2)
    path = trajectory(GradientField(barrier), a, 9.0, solver=SOLVERS["great-circle"], steps=9)
    norm = barrier.whitening(path).norm(dim=-1)
    torch.testing.assert_close(norm, norm[:1].expand_as(norm))


@pytest.mark.parametrize("T", [0.5, 5.0, -5.0])
@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("kind", ["quadratic", "sketch"])
def test_euler_leaves_the_sphere_by_exactly_t_squared_over_k(
    kind: str, steps: int, T: float, request: pytest.FixtureRequest, normal: Make
) -> None:
    barrier, a = request.getfixturevalue(f"make_{kind}")(), 2 * normal(5, 7, seed=2)
    centre = barrier.whitening.centre if isinstance(barrier, QuadraticBarrier) else 0.0
    moved = solve(GradientField(barrier), a, T, solver=SOLVERS["euler"], steps=steps)
    expected = (a - centre).square().sum(dim=-1) + T**2 / steps
    torch.testing.assert_close((moved - centre).square().sum(dim=-1), expected)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_fewer_steps_than_one_raise(name: str, make_quadratic, normal: Make) -> None:
    with pytest.raises(ValueError, match="at least 1 step"):
        solve(GradientField(make_quadratic()), normal(7), 1.0, solver=SOLVERS[name], steps=0)


def test_an_adaptive_solver_needs_an_embedded_pair_and_a_positive_tolerance() -> None:
    for arguments in ({"tableau": EULER}, {"tolerance": 0.0}, {"tolerance": math.nan}):
        with pytest.raises(ValueError, match="tolerance"):
            Adaptive(**arguments)


def test_an_adaptive_row_that_reaches_the_top_of_h_ends_there(make_quadratic, normal: Make) -> None:
    # v = 0 at critical points, so time that is left over must not be an error.
    barrier, a = make_quadratic(), 2 * normal(3, 7, seed=2)
    field = GradientField(barrier)
    climbed = solve(field, a, 60.0, solver=SOLVERS["great-circle"], steps=2000)
    top = solve(field, a, 60.0, solver=SOLVERS["dopri5"], steps=1)
    torch.testing.assert_close(barrier.value(top), barrier.value(climbed), rtol=0, atol=1e-3)


def test_an_adaptive_solver_that_does_not_finish_says_so(linear: _Linear, normal: Make) -> None:
    with pytest.raises(RuntimeError, match="did not finish in 5 steps"):
        solve(linear, normal(2, 5), 1.0, solver=Adaptive(tolerance=1e-9, max_steps=5), steps=1)
