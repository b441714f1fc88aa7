"""Does the safety filter do the least that keeps h, and nothing where nothing is needed?"""

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
    GradientField,
    LinearBarrier,
    SafetyField,
    VectorField,
    Whitening,
    solve,
    trajectory,
)
from odesteer.ode.barriers.quadratic import QuadraticBarrier
from odesteer.steering.serialization.tree import describe, rebuild

Make = Callable[..., Tensor]
PRECISE = Adaptive(tolerance=1e-9)
MARGIN, ALPHA = 0.3, 1.7


@pytest.fixture(params=["linear", "quadratic", "whitened", "gaussian", "network"])
def kept(request: pytest.FixtureRequest) -> Barrier:
    """A barrier whose h has median 0 and standard deviation 1 over 2 N(0, I)."""
    whitened = request.param == "whitened"
    name = "quadratic" if whitened else request.param
    make = request.getfixturevalue(f"make_{name}")
    barrier = make(whitened=True) if whitened else make()
    h = barrier.value(2 * request.getfixturevalue("normal")(500, 7, seed=100))
    return barrier.affine(1 / float(h.std()), -float(h.median() / h.std()))


def _rise(barrier: Barrier, a: Tensor, v: Tensor) -> Tensor:
    return (barrier.gradient(a) * v).sum(dim=-1)


def _nominal(normal: Make) -> ConstantField:
    return ConstantField(normal(7, seed=30))


def test_without_a_nominal_field_comfortable_rows_have_no_velocity_at_all(
    kept: Barrier, normal: Make
) -> None:
    a = 2 * normal(60, 7, seed=1)
    field, there = SafetyField(kept, ALPHA, MARGIN), kept.value(a) >= MARGIN
    assert 5 < int(there.sum()) < 55
    v = field(a)
    assert torch.equal(v[there], torch.zeros_like(v[there]))
    moved = solve(field, a, 2.0, solver=SOLVERS["rk4"], steps=10)
    assert torch.equal(moved[there], a[there])


def test_without_a_nominal_field_the_deficit_shrinks_exactly_exponentially(
    kept: Barrier, normal: Make
) -> None:
    a = 2 * normal(60, 7, seed=1)
    # Close enough to the margin that every barrier here can reach it.
    below = a[(kept.value(a) < MARGIN) & (kept.value(a) > MARGIN - 0.7)]
    assert len(below) > 5
    moved = solve(SafetyField(kept, ALPHA, MARGIN), below, 0.8, solver=PRECISE, steps=1)
    deficit, left = kept.value(below) - MARGIN, kept.value(moved) - MARGIN
    torch.testing.assert_close(left, deficit * math.exp(-ALPHA * 0.8), rtol=1e-5, atol=1e-8)


def test_the_constraint_holds_everywhere_and_binds_where_the_filter_acts(
    kept: Barrier, normal: Make
) -> None:
    a, nominal = 2 * normal(60, 7, seed=1), _nominal(normal)
    v = SafetyField(kept, ALPHA, MARGIN, nominal)(a)
    rise, least = _rise(kept, a, v), -ALPHA * (kept.value(a) - MARGIN)
    assert bool((rise >= least - 1e-10).all())
    acts = (v - nominal(a)).norm(dim=-1) > 0
    assert 5 < int(acts.sum()) < 55
    torch.testing.assert_close(rise[acts], least[acts])


def test_no_other_change_that_satisfies_the_constraint_is_smaller(normal: Make, make_gaussian):
    barrier, nominal, a = make_gaussian(), _nominal(normal), 2 * normal(30, 7, seed=1)
    u = SafetyField(barrier, ALPHA, MARGIN, nominal)(a) - nominal(a)
    acts = u.norm(dim=-1) > 0
    missing = -ALPHA * (barrier.value(a) - MARGIN) - _rise(barrier, a, nominal(a))
    # Random directions, each as long as the constraint asks for.
    other = normal(500, 30, 7, seed=2)
    other = other / _rise(barrier, a, other).abs().unsqueeze(-1) * missing.abs().unsqueeze(-1)
    smallest = other.norm(dim=-1).amin(dim=0)
    assert bool((u.norm(dim=-1)[acts] <= smallest[acts]).all())


def test_in_a_whitened_barriers_metric_it_is_the_smallest_in_y(make_quadratic, normal: Make):
    barrier, a = make_quadratic(whitened=True), 2 * normal(30, 7, seed=1)
    u = SafetyField(barrier, ALPHA, 5.0)(a)
    missing = -ALPHA * (barrier.value(a) - 5.0)
    other = normal(500, 30, 7, seed=2)
    other = other / _rise(barrier, a, other).abs().unsqueeze(-1) * missing.abs().unsqueeze(-1)
    in_y = [barrier.whitening.power(x, -1).norm(dim=-1) for x in (u, other)]
    acts = u.norm(dim=-1) > 0
    assert bool((in_y[0] <= in_y[1].amin(dim=0))[acts].all())


def test_a_field_that_is_safe_already_is_left_alone(make_linear, normal: Make) -> None:
    barrier, a = make_linear(), normal(30, 7)
    nominal = ConstantField(100 * barrier.weight)
    assert torch.equal(SafetyField(barrier, ALPHA, MARGIN, nominal)(a), nominal(a))


def test_a_field_that_leaves_the_region_is_kept_in_it(kept: Barrier, normal: Make) -> None:
    a, nominal = 2 * normal(40, 7, seed=1), GradientField(kept).reversed()
    start = a[kept.value(a) >= MARGIN]
    how = {"solver": Adaptive(tolerance=1e-6), "steps": 10}
    free = trajectory(nominal, start, 1.0, **how)
    filtered = trajectory(SafetyField(kept, ALPHA, MARGIN, nominal), start, 1.0, **how)
    assert float(kept.value(free).min()) < MARGIN - 0.1
    assert float(kept.value(filtered).min()) > MARGIN - 1e-4


def test_at_a_critical_point_it_gives_up_instead_of_dividing_by_zero() -> None:
    whitening = Whitening(torch.zeros(3).double())
    basis, one = torch.eye(3, 1).double(), torch.ones(1).double()
    barrier = QuadraticBarrier(whitening, basis, 0 * one, one, 0.0)
    top = torch.tensor([2.0, 0.0, 0.0]).double()
    assert float(barrier.value(top)) == 1.0
    assert torch.equal(SafetyField(barrier, 1.0, margin=5.0)(top), torch.zeros(3).double())


def test_the_limit_bounds_the_change_and_nothing_else(make_quadratic, normal: Make) -> None:
    barrier, a = make_quadratic(), 2 * normal(60, 7, seed=1)
    free, limited = SafetyField(barrier, 1.0, 9.0), SafetyField(barrier, 1.0, 9.0, limit=15.0)
    length = free(a).norm(dim=-1)
    assert 5 < int((length > 15.0).sum()) < 55
    torch.testing.assert_close(limited(a).norm(dim=-1), length.clamp_max(15.0))
    assert torch.equal(limited(a)[length < 15.0], free(a)[length < 15.0])


def test_reversed_it_filters_for_minus_h(make_quadratic, normal: Make) -> None:
    barrier, a = make_quadratic(), 2 * normal(30, 7, seed=1)
    field = SafetyField(barrier, ALPHA, MARGIN, limit=4.0)
    opposite = SafetyField(barrier.affine(-1.0), ALPHA, MARGIN, limit=4.0)
    assert torch.equal(field.reversed()(a), opposite(a))
    torch.testing.assert_close(field.reversed().reversed()(a), field(a), rtol=0, atol=0)
    assert field.gated


def test_a_guarded_field_reversed_is_guarded_by_the_same_barrier(
    make_quadratic, normal: Make
) -> None:
    barrier, a, base = make_quadratic(), 2 * normal(30, 7, seed=1), _nominal(normal)
    field = SafetyField(barrier, ALPHA, MARGIN, base, limit=4.0)
    away = SafetyField(barrier, ALPHA, MARGIN, base.reversed(), limit=4.0)
    assert torch.equal(field.reversed()(a), away(a))
    assert field.gated


@pytest.mark.parametrize("nominal", [False, True])
@pytest.mark.parametrize("limit", [None, 2.5])
def test_it_comes_back_from_json_with_nothing_where_nothing_was(
    nominal: bool, limit: float | None, make_linear, normal: Make
) -> None:
    field = SafetyField(make_linear(), ALPHA, MARGIN, _nominal(normal) if nominal else None, limit)
    tree, tensors = describe(field)
    assert (tree["nominal"] is None) is not nominal and tree["limit"] == limit
    again = rebuild(tree, tensors)
    assert isinstance(again, VectorField)
    assert torch.equal(again(normal(9, 7)), field(normal(9, 7)))


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"alpha": -1.0}, {"alpha": 1.0, "limit": 0.0}])
def test_rates_that_make_no_filter_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="alpha > 0"):
        SafetyField(LinearBarrier(torch.ones(3)), **wrong)
