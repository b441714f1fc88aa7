"""A matched strength really moves the rows so far."""

import math

import pytest
import torch
from torch import Tensor

from odesteer.fitting.dose_search import (
    match_damage,
    match_displacement,
    mean_displacement,
)
from odesteer.methods import GaussianODESteer, PaperODESteer, SafetyFilter
from odesteer.ode import ConstantField, FormBarrier, LinearBarrier, Time, TransportField, ZeroField
from odesteer.steering import Steering


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def halving(gate: LinearBarrier | None = None) -> Steering:
    """a -> a / 2, as a transport map."""
    zero = torch.zeros(3)
    return Steering(TransportField(FormBarrier(zero, torch.full((3,), -0.5), zero), gate))


def test_a_constant_field_needs_the_displacement_over_its_length() -> None:
    steering = Steering(ConstantField(torch.tensor([3.0, 4.0])))
    match = match_displacement(steering, normal(20, 2), 2.0)
    assert match.strength == pytest.approx(0.4, rel=2e-3)
    assert match.displacement == pytest.approx(2.0, rel=2e-3)


@pytest.mark.parametrize("method", [GaussianODESteer(), PaperODESteer(components=256)])
@pytest.mark.parametrize("displacement", [0.3, 1.0])
def test_a_curved_flow_is_matched_by_where_it_ends(
    method: GaussianODESteer | PaperODESteer, displacement: float
) -> None:
    positive, rows = normal(60, 3, seed=1) + 1.5, normal(50, 3, seed=2)
    steering = method.fit(positive, normal(60, 3, seed=3), calibrate=False)
    match = match_displacement(steering, rows, displacement)
    moved = steering.with_strength(Time(match.strength))(rows)
    assert float((moved - rows).norm(dim=-1).mean()) == pytest.approx(displacement, rel=2.1e-3)


def test_rows_that_a_gate_keeps_count_in_the_mean() -> None:
    gate = LinearBarrier(torch.tensor([1.0, 0.0, 0.0]))  # moves rows with a_0 < 0
    rows = normal(200, 3)
    steering = halving(gate)
    match = match_displacement(steering, rows, 0.2)
    moved = steering.with_strength(Time(match.strength))(rows)
    assert torch.equal(moved[rows[:, 0] >= 0], rows[rows[:, 0] >= 0])
    assert float((moved - rows).norm(dim=-1).mean()) == pytest.approx(0.2, rel=2.1e-3)


def test_a_map_is_at_most_carried_out_whole() -> None:
    rows = normal(50, 3)
    whole = float(rows.norm(dim=-1).mean()) / 2
    match = match_displacement(halving(), rows, 2.0 * whole)
    assert match.strength == 1.0
    assert match.displacement == pytest.approx(whole)


def test_a_flow_that_comes_to_rest_reports_how_far_it_goes() -> None:
    positive, rows = normal(60, 3, seed=1) + 1.5, normal(50, 3, seed=2)
    estimate = GaussianODESteer(shared=True)
    method = SafetyFilter(estimate=estimate, reach=100.0)
    steering = method.fit(positive, normal(60, 3, seed=3), calibrate=False)
    # All that are below h = 0 end there, on the straight way of a linear barrier.
    barrier = steering.barrier
    needed = (-barrier.value(rows)).clamp_min(0.0) / barrier.gradient(rows).norm(dim=-1)
    match = match_displacement(steering, rows, 1.5 * float(needed.mean()))
    assert match.displacement == pytest.approx(float(needed.mean()), rel=1e-2)


def test_a_field_of_zeros_moves_nothing() -> None:
    assert match_displacement(Steering(ZeroField()), normal(5, 3), 1.0) == (0.0, 0.0)


def test_a_relative_displacement_is_over_each_rows_norm() -> None:
    steering, rows = Steering(ConstantField(torch.tensor([3.0, 4.0]))), normal(20, 2)
    match = match_displacement(steering, rows, 0.5, relative=True)
    assert mean_displacement(steering, rows, match.strength, relative=True) == match.displacement
    assert match.strength * 5.0 * float((1 / rows.norm(dim=-1)).mean()) == pytest.approx(
        0.5, rel=2.1e-3
    )


@pytest.mark.parametrize("power", [0.7, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("value", [1e-3, 0.2, 30.0])
def test_a_dose_is_found_whatever_power_damage_grows_with(power: float, value: float) -> None:
    measured = []

    def damage(dose: float) -> float:
        measured.append(dose)
        return 3.0 * dose**power + 0.1 * dose ** (power + 1)

    dose, match = match_damage(damage, value, start=0.1, power=2.0, most=20)
    assert match == damage(dose) == pytest.approx(value, rel=0.03)
    assert len(measured) <= 14


def test_damage_that_cannot_be_had_gives_the_closest() -> None:
    # A map that is complete at 0.3, and a gate that never opens.
    dose, match = match_damage(lambda dose: min(dose, 0.3), 1.0, start=0.1)
    assert match == 0.3 and dose >= 0.3
    assert match_damage(lambda dose: 0.0, 1.0, start=0.1, most=5)[1] == 0.0


def test_damage_that_falls_again_is_matched_where_it_rises() -> None:
    dose, match = match_damage(
        lambda dose: float(math.sin(dose)), 0.5, start=1.4, power=1.0, most=20
    )
    assert match == pytest.approx(0.5, rel=0.03)
    assert dose == pytest.approx(math.pi / 6, rel=0.05)
