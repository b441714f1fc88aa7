"""The length of a dose in each of its units."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from odesteer.ode import (
    DOSES,
    SOLVERS,
    Angle,
    ConstantField,
    Dose,
    GradientField,
    LinearBarrier,
    PathLength,
    QuadraticBarrier,
    Target,
    Time,
    Whitening,
    ZeroField,
    as_dose,
    solve,
)

Make = Callable[..., Tensor]


@pytest.fixture
def unit(make_linear: Callable[..., LinearBarrier]) -> GradientField:
    return GradientField(make_linear())


@pytest.fixture
def fast(normal: Make) -> ConstantField:
    """Speed 5."""
    direction = normal(7, seed=1)
    return ConstantField(5.0 * direction / direction.norm())


def test_time_is_itself_in_every_field(
    unit: GradientField, fast: ConstantField, activations: Tensor
) -> None:
    for field in (unit, fast):
        time = Time(3.0).time(field, activations)
        assert torch.equal(time, torch.full(activations.shape[:-1], 3.0, dtype=torch.float64))


def test_path_length_is_time_at_unit_speed_and_divided_by_any_other(
    unit: GradientField, fast: ConstantField, activations: Tensor
) -> None:
    ones = torch.ones(activations.shape[:-1], dtype=torch.float64)
    torch.testing.assert_close(PathLength(3.0).time(unit, activations), 3.0 * ones)
    torch.testing.assert_close(PathLength(3.0).time(fast, activations), 3.0 / 5.0 * ones)


def test_angle_is_path_length_over_the_norm(
    unit: GradientField, fast: ConstantField, activations: Tensor
) -> None:
    norm = activations.norm(dim=-1)
    torch.testing.assert_close(Angle(0.3).time(unit, activations), 0.3 * norm)
    torch.testing.assert_close(Angle(0.3).time(fast, activations), 0.3 * norm / 5.0)


@pytest.mark.parametrize("kind", [Time, PathLength, Angle])
def test_negative_doses_are_negative_times(
    kind: type[Dose], unit: GradientField, fast: ConstantField, normal: Make
) -> None:
    a = normal(3, 7)
    for field in (unit, fast):
        torch.testing.assert_close(kind(-0.4).time(field, a), -kind(0.4).time(field, a))


@pytest.mark.parametrize("field", [ZeroField(), ConstantField(torch.zeros(7).double())])
def test_no_time_is_enough_to_travel_where_nothing_moves(field, normal: Make) -> None:
    for dose in (PathLength(2.0), Angle(0.3)):
        assert torch.equal(dose.time(field, normal(3, 7)), torch.zeros(3, dtype=torch.float64))


def test_path_length_is_the_distance_travelled(fast: ConstantField, activations: Tensor) -> None:
    time = PathLength(3.0).time(fast, activations)
    moved = solve(fast, activations, time, solver=SOLVERS["euler"], steps=1)
    travelled = (moved - activations).norm(dim=-1)
    torch.testing.assert_close(travelled, torch.full_like(travelled, 3.0))


def test_angle_is_the_angle_turned_about_zero_on_a_great_circle(normal: Make) -> None:
    # Linear on the sphere: the path is one great circle, so its length is the angle itself.
    centre = Whitening(torch.zeros(7, dtype=torch.float64))
    barrier = QuadraticBarrier.from_form(torch.zeros(7, 7), normal(7), 0.0, centre)
    field, a = GradientField(barrier), 3 * normal(5, 7, seed=1)
    moved = solve(field, a, Angle(0.3).time(field, a), solver=SOLVERS["great-circle"], steps=4)
    cosine = torch.cosine_similarity(moved, a, dim=-1)
    torch.testing.assert_close(cosine, torch.full_like(cosine, math.cos(0.3)))


def test_a_target_takes_the_time_of_its_budget(unit: GradientField, normal: Make) -> None:
    a = normal(3, 7)
    for budget in (Time(2.0), PathLength(2.0), Angle(0.2)):
        target = Target(0.9, budget)
        assert torch.equal(target.time(unit, a), budget.time(unit, a))
        assert target.stop_at == 0.9 and target.size == budget.size and not target.is_zero
    assert Target(0.9, 2.0) == Target(0.9, Time(2.0))


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_a_target_outside_zero_and_one_raises(probability: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Target(probability, 1.0)


@pytest.mark.parametrize("budget", [0.0, -1.0, Time(-1.0), Angle(0.0), Target(0.5, 1.0)])
def test_a_budget_that_is_not_positive_raises(budget: Dose | float) -> None:
    with pytest.raises(ValueError, match="budget must be a positive"):
        Target(0.9, budget)


@pytest.mark.parametrize("amount", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [Time, PathLength, Angle])
def test_an_amount_that_is_not_finite_raises(kind: type[Dose], amount: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        kind(amount)


@pytest.mark.parametrize("kind", [Time, PathLength, Angle])
def test_only_amount_zero_is_zero(kind: type[Dose]) -> None:
    assert kind(0).is_zero and kind(-0.0).is_zero
    assert not kind(1e-30).is_zero and kind(2).size == 2.0
    assert kind(2).stop_at is None


def test_a_number_is_time_and_a_dose_is_itself() -> None:
    assert as_dose(3) == Time(3.0)
    assert as_dose(Angle(0.2)) == Angle(0.2)
    assert set(DOSES.values()) == {Time, PathLength, Angle, Target}
