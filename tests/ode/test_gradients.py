"""Gradients through a solution equal finite differences."""

import pytest
import torch
from tests.helpers.steerings import BARRIERS, FIELDS, D
from torch import Tensor

from odesteer import ode
from odesteer.ode import Angle, Dose, PathLength, PerRow, Target, Time
from odesteer.steering import Calibration, Steering

ROWS = torch.randn(4, D, generator=torch.Generator().manual_seed(3)).double() + 0.3
STEP = 1e-6
SOLVERS = ("euler", "midpoint", "heun", "rk4", "rk4-38", "certified")
DOSES = {
    "time": Time(0.3),
    "path length": PathLength(0.3),
    "angle": Angle(-0.2),
    "target": Target(0.6, Time(2.0)),
}
# A row each; a target needs a barrier.
TOGETHER = PerRow([Time(0.3), Angle(0.1), Target(0.6, Time(2.0)), PathLength(0.3)])
WITHOUT_BARRIER = PerRow([Time(0.3), Angle(0.1), Time(0.0), PathLength(0.3)])
# Their fields jump where a gate opens or a maximum of parts changes hands.
SMOOTH = [name for name in FIELDS if name not in ("zero", "rectified")]


def steering(name: str, solver: str, dose: Dose) -> Steering:
    field = FIELDS[name]().double()
    return Steering(field, strength=dose, solver=solver, steps=3, calibration=Calibration(0.7, 0.1))


def check(steer: Steering, a: Tensor) -> None:
    """Compare d sum(w a(T)) with finite differences, along random directions of every tensor."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(a.shape, generator=generator, dtype=a.dtype)
    tensors = {
        key: value
        for key, value in steer.field.named_buffers()
        if value.is_floating_point() and "heights" not in key
    }
    tensors |= dict(steer.field.named_parameters())
    everything = [a, *tensors.values()]
    for tensor in everything:
        tensor.requires_grad_(True)
    with torch.no_grad():
        plain = steer.only(a.detach())
    value = (weights * steer.only(a, differentiable=True)).sum()
    torch.testing.assert_close(value.detach(), (weights * plain).sum(), atol=1e-8, rtol=1e-7)
    gradients = torch.autograd.grad(value, everything, allow_unused=True)
    for tensor, gradient in zip(everything, gradients, strict=True):
        along = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        ends = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                tensor.add_(sign * STEP * along)
            ends.append((weights * steer.only(a, differentiable=True)).sum().detach())
            with torch.no_grad():
                tensor.sub_(sign * STEP * along)
        expected = (ends[0] - ends[1]) / (2 * STEP)
        found = torch.zeros(()) if gradient is None else (gradient * along).sum()
        assert bool(torch.isfinite(found))
        torch.testing.assert_close(found.double(), expected, atol=2e-6, rtol=2e-4)


@pytest.mark.parametrize("name", SMOOTH)
def test_of_every_field_at_every_dose(name: str) -> None:
    dose = WITHOUT_BARRIER if FIELDS[name]().barrier is None else TOGETHER
    check(steering(name, "heun", dose), ROWS.clone())


NAMES = ("quadratic", "plain quadratic", "network", "fourier", "and")


@pytest.mark.parametrize("dose", DOSES)
@pytest.mark.parametrize("name", NAMES)
def test_of_one_dose_for_all_rows(name: str, dose: str) -> None:
    check(steering(name, "heun", DOSES[dose]), ROWS.clone())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", NAMES)
def test_of_every_solver(name: str, solver: str) -> None:
    check(steering(name, solver, DOSES["target"]), ROWS.clone())


@pytest.mark.parametrize("dose", ["angle", "target"])
@pytest.mark.parametrize("name", ["quadratic", "plain quadratic", "sketch"])
def test_along_great_circles(name: str, dose: str) -> None:
    check(steering(name, "great-circle", DOSES[dose]), ROWS.clone())


def test_of_any_module() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(D, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    field = ode.GradientField(ode.ModuleBarrier(module)).double()
    for dose in (Angle(0.2), Target(0.8, Time(2.0))):
        check(Steering(field, strength=dose, solver="heun", steps=3), ROWS.clone())


def test_a_quadratic_in_fewer_dimensions_equals_the_one_without_them() -> None:
    barrier = BARRIERS["plain quadratic"]().double()
    field = ode.GradientField(barrier)
    a, b = (ROWS.clone().requires_grad_(True) for _ in range(2))
    solver = ode.SOLVERS["heun"]
    reduced = ode.solve(field, a, 0.4, solver=solver, steps=3)
    whole = solver.integrate(field, b, torch.full((4,), 0.4).double(), 3)
    torch.testing.assert_close(reduced, whole)
    for x, y in zip(
        torch.autograd.grad(reduced.square().sum(), a),
        torch.autograd.grad(whole.square().sum(), b),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_rows_that_stay_pass_their_gradient_on() -> None:
    steer = steering("linear", "euler", Target(1e-6, Time(1.0)))
    a = ROWS.clone().requires_grad_(True)
    moved = steer.only(a, differentiable=True)
    assert torch.equal(moved, a)
    (gradient,) = torch.autograd.grad(moved.sum(), a)
    assert torch.equal(gradient, torch.ones_like(a))
