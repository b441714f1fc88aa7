"""The gradient field raises its barrier where Propositions 1 and 2 say so."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from odesteer.ode import (
    SOLVERS,
    Adaptive,
    Barrier,
    ConstantField,
    FourierBarrier,
    GradientField,
    LinearBarrier,
    QuadraticBarrier,
    Whitening,
    ZeroField,
    solve,
    trajectory,
)

Make = Callable[..., Tensor]
MakeFourier = Callable[..., FourierBarrier]
PRECISE = Adaptive(tolerance=1e-9)


def _slope_in_time(barrier: Barrier, a: Tensor, step: float = 1e-4) -> Tensor:
    """dh/dt along the flow at a, by a central difference of the solved flow."""
    field = GradientField(barrier)
    ahead = solve(field, a, step, solver=SOLVERS["rk4"], steps=1)
    behind = solve(field, a, -step, solver=SOLVERS["rk4"], steps=1)
    return (barrier.value(ahead) - barrier.value(behind)) / (2 * step)


def test_the_field_has_unit_speed(barrier: Barrier, activations: Tensor) -> None:
    speed = GradientField(barrier)(activations).norm(dim=-1)
    torch.testing.assert_close(speed, torch.ones_like(speed))


def test_h_rises_at_the_rate_grad_h_dot_v(barrier: Barrier, normal: Make) -> None:
    a = normal(10, 7, seed=1)
    rate = (barrier.gradient(a) * GradientField(barrier)(a)).sum(dim=-1)
    assert bool((rate > 0).all())
    torch.testing.assert_close(_slope_in_time(barrier, a), rate, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["quadratic", "sketch", "fourier", "linear"])
def test_h_rises_at_the_rate_of_the_gradients_norm_in_the_plain_metric(
    kind: str, request: pytest.FixtureRequest, normal: Make
) -> None:
    barrier = request.getfixturevalue(f"make_{kind}")()
    a = normal(10, 7, seed=1)
    expected = barrier.gradient(a).norm(dim=-1)
    torch.testing.assert_close(_slope_in_time(barrier, a), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["quadratic", "sketch", "fourier"])
def test_h_never_falls_along_the_adaptive_path(
    kind: str, request: pytest.FixtureRequest, normal: Make
) -> None:
    barrier, a = request.getfixturevalue(f"make_{kind}")(), 2 * normal(10, 7, seed=1)
    path = trajectory(GradientField(barrier), a, 0.8, solver=SOLVERS["dopri5"], steps=40)
    assert bool((barrier.value(path).diff(dim=0) >= 0).all())


def test_h_never_falls_along_the_whitened_adaptive_path(make_quadratic, normal: Make) -> None:
    barrier, a = make_quadratic(whitened=True), 2 * normal(10, 7, seed=1)
    path = trajectory(GradientField(barrier), a, 0.8, solver=SOLVERS["dopri5"], steps=40)
    assert bool((barrier.value(path).diff(dim=0) >= 0).all())


@pytest.mark.parametrize("name", ["great-circle", "rk4", "dopri5"])
def test_a_flow_that_is_in_the_region_stays_in_it(
    name: str, quadratic: QuadraticBarrier, normal: Make
) -> None:
    a = 2 * normal(60, 7, seed=1)
    inside = a[quadratic.value(a) >= 0]
    assert len(inside) > 10
    path = trajectory(GradientField(quadratic), inside, 0.8, solver=SOLVERS[name], steps=40)
    assert bool((quadratic.value(path) >= 0).all())


def _curvature_bound(barrier: FourierBarrier) -> float:
    """L: no Hessian -amplitude W^T diag(w cos) W exceeds the one with |w| for w cos."""
    W, amplitude = barrier.frequency, math.sqrt(2 / len(barrier.coef))
    return amplitude * float(torch.linalg.matrix_norm(W.mT * barrier.coef.abs() @ W, ord=2))


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_an_euler_step_of_at_most_two_gradient_norms_over_l_never_lowers_h(
    share: float, make_fourier: MakeFourier, normal: Make
) -> None:
    barrier, a = make_fourier(), 3 * normal(500, 7, seed=1)
    time = share * 2 * barrier.gradient(a).norm(dim=-1) / _curvature_bound(barrier)
    moved = solve(GradientField(barrier), a, time, solver=SOLVERS["euler"], steps=1)
    assert bool((barrier.value(moved) >= barrier.value(a)).all())


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_a_great_circle_step_short_enough_never_lowers_h(
    share: float, make_quadratic, normal: Make
) -> None:
    barrier, a = make_quadratic(), 2 * normal(500, 7, seed=1)
    radius = (a - barrier.whitening.centre).norm(dim=-1)
    # Along a great circle h'' = 2 v.Av - 2 y.Ay - g.y in the angle.
    bound = 2 * (barrier.curvature.max() - barrier.curvature.min()) + barrier.slope.norm()
    time = share * 2 * barrier.gradient(a).norm(dim=-1) * radius**2 / bound
    moved = solve(GradientField(barrier), a, time, solver=SOLVERS["great-circle"], steps=1)
    assert bool((barrier.value(moved) >= barrier.value(a)).all())


def test_an_euler_step_that_is_too_long_can_lower_h() -> None:
    one = torch.ones(1, dtype=torch.float64)
    crest = FourierBarrier(one[None], 0 * one, one, 0.0)  # h(a) = sqrt(2) cos(a)
    a = torch.tensor([[-0.5]], dtype=torch.float64)
    moved = solve(GradientField(crest), a, 2.0, solver=SOLVERS["euler"], steps=1)
    assert float(moved) == pytest.approx(1.5)
    assert bool(crest.value(moved) < crest.value(a))


def test_a_great_circle_step_beyond_the_pole_lowers_h() -> None:
    w = torch.tensor([1.0, 0.0], dtype=torch.float64)
    barrier = QuadraticBarrier.from_form(0 * torch.eye(2), w, 0.0, Whitening(0 * w))
    a = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    moved = solve(GradientField(barrier), a, 2.5, solver=SOLVERS["great-circle"], steps=1)
    assert bool(barrier.value(moved) < barrier.value(a))


def test_more_precise_paths_agree_on_h(quadratic: QuadraticBarrier, normal: Make) -> None:
    # The fundamental theorem: h(a(T)) - h(a) is the integral of dh/dt along the path.
    a, count, T = 2 * normal(5, 7, seed=1), 40, 0.8
    path = trajectory(GradientField(quadratic), a, T, solver=PRECISE, steps=count)
    rate = (quadratic.gradient(path) * GradientField(quadratic)(path)).sum(dim=-1)
    simpson = torch.ones(count + 1, 1, dtype=torch.float64)
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    integral = (simpson * rate).sum(dim=0) * T / count / 3
    gained = quadratic.value(path[-1]) - quadratic.value(a)
    torch.testing.assert_close(integral, gained, rtol=1e-5, atol=1e-7)


def test_the_field_of_the_negated_barrier_is_the_field_reversed(
    barrier: Barrier, normal: Make
) -> None:
    a = normal(5, 7, seed=1)
    field = GradientField(barrier)
    torch.testing.assert_close(field.reversed()(a), -field(a))
    torch.testing.assert_close(field.reversed().value(a), -barrier.value(a))


def test_going_backwards_is_going_along_the_reversed_field(
    quadratic: QuadraticBarrier, normal: Make
) -> None:
    a, field = normal(5, 7, seed=2), GradientField(quadratic)
    for solver in SOLVERS.values():
        backwards = solve(field, a, -0.7, solver=solver, steps=5)
        torch.testing.assert_close(
            backwards, solve(field.reversed(), a, 0.7, solver=solver, steps=5)
        )


def test_a_constant_field_moves_every_row_by_its_vector(normal: Make, activations: Tensor) -> None:
    direction = normal(7)
    for solver in (SOLVERS["euler"], SOLVERS["rk4"], SOLVERS["dopri5"]):
        moved = solve(ConstantField(direction), activations, 1.7, solver=solver, steps=3)
        torch.testing.assert_close(moved, activations + 1.7 * direction)


def test_a_reversed_constant_field_has_the_negated_barrier(normal: Make) -> None:
    direction, a = normal(7), normal(3, 7, seed=1)
    reversed_field = ConstantField(direction, LinearBarrier(direction, 0.3)).reversed()
    torch.testing.assert_close(reversed_field.direction, -direction)
    torch.testing.assert_close(reversed_field.value(a), -(a @ direction + 0.3))


def test_the_zero_field_moves_nothing(activations: Tensor) -> None:
    for name in ("euler", "midpoint", "heun", "rk4", "rk4-38", "dopri5"):
        moved = solve(ZeroField(), activations, 9.0, solver=SOLVERS[name], steps=3)
        assert torch.equal(moved, activations)


def test_a_field_without_a_barrier_says_that_it_has_no_target(normal: Make) -> None:
    with pytest.raises(ValueError, match="no barrier"):
        ConstantField(normal(7)).value(normal(2, 7))


def test_a_field_on_no_sphere_cannot_take_great_circles(make_fourier, normal: Make) -> None:
    for field in (ConstantField(normal(7)), GradientField(make_fourier())):
        with pytest.raises(ValueError, match="great-circle"):
            solve(field, normal(2, 7), 1.0, solver=SOLVERS["great-circle"], steps=2)
