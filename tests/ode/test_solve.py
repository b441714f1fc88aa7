"""Does the solved flow start, stop and stay where it promises to?"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from odesteer.ode import (
    SOLVERS,
    AndBarrier,
    Barrier,
    ConstantField,
    GradientField,
    LinearBarrier,
    ModuleBarrier,
    QuadraticBarrier,
    VectorField,
    solve,
    trajectory,
)

Make = Callable[..., Tensor]
STOPPING = ["euler", "rk4", "great-circle", "dopri5"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", list(SOLVERS))
def test_time_zero_returns_the_activation_bit_for_bit(
    name: str, dtype: torch.dtype, quadratic: QuadraticBarrier, activations: Tensor
) -> None:
    a = activations.to(dtype)
    field = GradientField(quadratic).to(dtype)
    for zero in (0.0, -0.0):
        assert torch.equal(solve(field, a, zero, solver=SOLVERS[name], steps=3), a)


@pytest.mark.parametrize("name", list(SOLVERS))
def test_a_row_with_time_zero_stays_bit_for_bit_beside_rows_that_move(
    name: str, quadratic: QuadraticBarrier, normal: Make
) -> None:
    a, time = normal(4, 7, seed=2), torch.tensor([0.0, 1.0, 0.0, -1.0], dtype=torch.float64)
    moved = solve(GradientField(quadratic), a, time, solver=SOLVERS[name], steps=3)
    assert torch.equal(moved[[0, 2]], a[[0, 2]])
    assert bool(((moved - a)[[1, 3]].norm(dim=-1) > 0.1).all())


@pytest.mark.parametrize("name", list(SOLVERS))
def test_shape_dtype_and_input_are_left_alone(
    name: str, quadratic: QuadraticBarrier, activations: Tensor
) -> None:
    a = activations.float()
    before = a.clone()
    moved = solve(GradientField(quadratic).float(), a, 1.0, solver=SOLVERS[name], steps=3)
    assert moved.shape == a.shape and moved.dtype == a.dtype
    assert torch.equal(a, before)


@pytest.mark.parametrize("name", [name for name in SOLVERS if name != "dopri5"])
def test_the_trajectory_starts_at_a_and_ends_where_solve_does(
    name: str, quadratic: QuadraticBarrier, activations: Tensor
) -> None:
    field, how = GradientField(quadratic), {"solver": SOLVERS[name], "steps": 5}
    path = trajectory(field, activations, 1.3, **how)
    assert path.shape == (6, *activations.shape)
    assert torch.equal(path[0], activations)
    torch.testing.assert_close(
        path[-1], solve(field, activations, 1.3, **how), rtol=1e-14, atol=1e-14
    )


@pytest.mark.parametrize("name", ["euler", "great-circle", "rk4", "dopri5"])
def test_the_trajectory_passes_where_solve_ends_earlier(
    name: str, quadratic: QuadraticBarrier, normal: Make
) -> None:
    field, a = GradientField(quadratic), normal(3, 7, seed=2)
    path = trajectory(field, a, 1.0, solver=SOLVERS[name], steps=4)
    for k in (1, 2, 3, 4):
        earlier = solve(field, a, k / 4, solver=SOLVERS[name], steps=k)
        # The adaptive solver chooses other steps for another time: equal to its tolerance.
        close = 1e-5 if name == "dopri5" else 1e-12
        torch.testing.assert_close(path[k], earlier, rtol=0, atol=close)


@pytest.fixture(params=["quadratic", "whitened", "sketch-2", "sketch-3", "and"])
def stopping(request: pytest.FixtureRequest, make_quadratic, make_sketch) -> Barrier:
    if request.param == "and":
        # Soft "and" of quadratics is solved in d dimensions, on no sphere.
        return AndBarrier([make_quadratic(), make_quadratic(whitened=True, seed=40)])
    if request.param.startswith("sketch"):
        return make_sketch(int(request.param[-1]))
    return make_quadratic(request.param == "whitened")


@pytest.mark.parametrize("name", STOPPING)
def test_each_row_stops_at_the_level_stays_or_spends_its_budget(
    name: str, stopping: Barrier, normal: Make
) -> None:
    if name == "great-circle" and stopping.sphere(normal(7)) is None:
        with pytest.raises(ValueError, match="sphere"):
            solve(GradientField(stopping), normal(7), 1.0, solver=SOLVERS[name], steps=2)
        return
    field, a, how = GradientField(stopping), 2 * normal(30, 7, seed=9), {"solver": SOLVERS[name]}
    spent = solve(field, a, 0.8, steps=10, **how)
    before, after = stopping.value(a), stopping.value(spent)
    level = float((before.median() + after.median()) / 2)
    moved = solve(field, a, 0.8, steps=10, level=level, **how)

    there, reaches = before >= level, (before < level) & (after >= level)
    assert int(there.sum()) > 3 and int(reaches.sum()) > 3 and int((after < level).sum()) > 3
    assert torch.equal(moved[there], a[there])
    excess = stopping.value(moved[reaches]) - level
    # The reduced flow holds h >= level exactly; lifting to d dimensions rounds.
    assert float(excess.min()) >= -1e-13
    assert float(excess.max()) < 1e-6
    assert torch.equal(moved[after < level], spent[after < level])
    travelled = (moved - a).norm(dim=-1)
    assert bool((travelled[reaches] < (spent - a).norm(dim=-1)[reaches]).all())


@pytest.mark.parametrize("name", STOPPING)
def test_a_stopped_row_lies_on_its_own_path(
    name: str, make_quadratic: Callable[..., QuadraticBarrier], normal: Make
) -> None:
    barrier, a = make_quadratic(), 2 * normal(20, 7, seed=9)
    field, level = GradientField(barrier), float(barrier.value(a).max()) - 0.1
    stopped = solve(field, a, 0.8, solver=SOLVERS["dopri5"], steps=1, level=level)
    fine = trajectory(field, a, 0.8, solver=SOLVERS[name], steps=100)
    distance = (fine - stopped).norm(dim=-1).amin(dim=0)
    # Half the spacing of the path's points, and what its solver is wrong by.
    assert float(distance.max()) < 0.8 / 100


@pytest.mark.parametrize("name", ["euler", "rk4", "dopri5"])
def test_a_linear_barrier_is_met_at_its_exact_distance(name: str, normal: Make) -> None:
    w, a = normal(7), normal(30, 7, seed=1)
    barrier = LinearBarrier(w, 0.2)
    fields: list[VectorField] = [ConstantField(3.0 * w, barrier), GradientField(barrier)]
    needed = ((1.0 - barrier.value(a)) / w.square().sum()).clamp_min(0).unsqueeze(-1)
    for field in fields:
        moved = solve(field, a, 100.0, solver=SOLVERS[name], steps=7, level=1.0)
        torch.testing.assert_close(moved, a + needed * w, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", STOPPING)
def test_stopped_rows_do_not_depend_on_the_batch(
    name: str, quadratic: QuadraticBarrier, normal: Make
) -> None:
    a, field = 2 * normal(4, 7, seed=9), GradientField(quadratic)
    level = float(quadratic.value(a).median()) + 0.3
    how = {"solver": SOLVERS[name], "steps": 3, "level": level}
    together = solve(field, a, 1.0, **how)
    alone = torch.stack([solve(field, row, 1.0, **how) for row in a])
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", STOPPING)
def test_a_row_returned_at_its_level_stays_when_asked_again(
    name: str, make_sketch, normal: Make
) -> None:
    barrier, a = make_sketch(), 2 * normal(20, 7, seed=9)
    field, level = GradientField(barrier), float(barrier.value(a).median()) + 0.3
    how = {"solver": SOLVERS[name], "steps": 5, "level": level}
    once = solve(field, a, 0.8, **how)
    reached = (barrier.value(a) < level) & (barrier.value(once) >= level)
    assert int(reached.sum()) > 3
    assert torch.equal(solve(field, once, 0.8, **how)[reached], once[reached])


class _Exponential(nn.Module):
    """h(a) = e^a - 1, which rises from -1 to hundreds within one step."""

    def forward(self, a: Tensor) -> Tensor:
        return a.sum(dim=-1).expm1()


@pytest.mark.parametrize("name", ["euler", "rk4"])
def test_the_level_is_met_inside_a_long_step_up_a_steep_barrier(name: str) -> None:
    field = GradientField(ModuleBarrier(_Exponential()))
    a = torch.tensor([[-2.0], [-3.0]], dtype=torch.float64)
    moved = solve(field, a, 8.0, solver=SOLVERS[name], steps=1, level=0.0)
    excess = field.value(moved)
    assert float(excess.min()) >= 0.0 and float(excess.max()) < 1e-6


def test_a_target_without_a_barrier_raises(normal: Make) -> None:
    with pytest.raises(ValueError, match="no barrier"):
        solve(ConstantField(normal(7)), normal(7), 1.0, solver=SOLVERS["euler"], steps=1, level=0.0)
