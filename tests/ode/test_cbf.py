"""The safety filter does the least that keeps h, and nothing where h is kept."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from odesteer.ode import (
    SOLVERS,
    Adaptive,
    AndBarrier,
    Barrier,
    ConstantField,
    GradientField,
    LinearBarrier,
    OrBarrier,
    SafetyField,
    VectorField,
    Whitening,
    solve,
    trajectory,
)
from odesteer.ode.barriers.quadratic import QuadraticBarrier
from odesteer.steering.serialization import describe, rebuild

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


# ---- several barriers


@pytest.fixture
def several(make_linear, make_quadratic, make_network, normal: Make) -> list[Barrier]:
    """Three barriers with three metrics, scaled like `kept`."""
    parts = [make_linear(), make_quadratic(whitened=True), make_network()]
    h = [part.value(2 * normal(500, 7, seed=100)) for part in parts]
    return [
        p.affine(1 / float(x.std()), -float(x.median() / x.std()))
        for p, x in zip(parts, h, strict=True)
    ]


def test_several_constraints_hold_everywhere_and_the_change_is_the_smallest(
    several: list[Barrier], normal: Make
) -> None:
    a, nominal = 2 * normal(60, 7, seed=1), _nominal(normal)
    field = SafetyField(several, ALPHA, MARGIN, nominal)
    u = field(a) - nominal(a)
    rises = torch.stack([_rise(part, a, u) for part in several], dim=-1)
    missing = torch.stack(
        [-ALPHA * (p.value(a) - MARGIN) - _rise(p, a, nominal(a)) for p in several], dim=-1
    )
    assert bool((rises >= missing - 1e-9).all())
    assert torch.equal(field.slack(a), torch.zeros(60, 3).double())
    idle = (missing <= 0).all(dim=-1)
    assert 2 < int(idle.sum()) < 58 and torch.equal(field(a)[idle], nominal(a)[idle])
    # Of all that satisfies them: moved towards any other correction, it grows in the mean metric.
    eye = torch.eye(7).double()
    metric = sum(part.metric(eye) for part in several) / 3
    other = normal(500, 60, 7, seed=2)
    normals = torch.stack([part.gradient(a) for part in several], dim=-2)
    satisfied = torch.linalg.lstsq(normals, missing.unsqueeze(-1)).solution.squeeze(-1)
    other = satisfied + 3 * other
    allowed = ((normals * other.unsqueeze(-2)).sum(dim=-1) >= missing).all(dim=-1)
    assert int(allowed.any(dim=0).sum()) > 55

    def size(x: Tensor) -> Tensor:
        return (
            x
            * torch.linalg.solve(metric, x.mT if x.dim() == 2 else x.reshape(-1, 7).mT).mT.reshape(
                x.shape
            )
        ).sum(dim=-1)

    assert bool((size(u) <= size(other) + 1e-9)[allowed].all())


def test_one_barrier_in_a_list_and_the_same_barrier_twice_are_one_barrier(
    kept: Barrier, normal: Make
) -> None:
    a, nominal = 2 * normal(60, 7, seed=1), _nominal(normal)
    one, listed, twice = (
        SafetyField(b, ALPHA, MARGIN, nominal, limit=2.0) for b in (kept, [kept], [kept, kept])
    )
    assert torch.equal(one(a), listed(a))
    torch.testing.assert_close(one(a), twice(a), rtol=1e-9, atol=1e-9)


def test_contradictory_barriers_are_missed_alike_and_the_slack_says_so(make_linear, normal: Make):
    barrier, a = make_linear(), normal(30, 7)
    against = barrier.affine(-1.0, -1.0)  # h >= 0 and h <= -1
    field = SafetyField([barrier, against], 1.0)
    slack = field.slack(a)
    torch.testing.assert_close(slack, torch.full_like(slack, 0.5))
    consistent = SafetyField([barrier, barrier.affine(-1.0, 1.0)], 1.0)
    assert torch.equal(consistent.slack(a), torch.zeros_like(slack))


def test_the_limit_bounds_the_change_for_several_barriers(several: list[Barrier], normal: Make):
    a = 2 * normal(60, 7, seed=1)
    free, limited = SafetyField(several, 1.0, 0.5), SafetyField(several, 1.0, 0.5, limit=2.0)
    assert 2 < int((free(a).norm(dim=-1) > 2.0).sum())
    assert float(limited(a).norm(dim=-1).max()) <= 2.0 * (1 + 1e-9)
    assert bool(
        (
            (limited.slack(a) > 0).any(dim=-1) == (limited(a) - free(a)).abs().gt(1e-9).any(dim=-1)
        ).all()
    )


def test_the_parts_of_a_hard_and_are_constraints_also_when_it_is_scaled(
    several: list[Barrier], normal: Make
) -> None:
    a = 2 * normal(60, 7, seed=1)
    hard = AndBarrier([several[0], AndBarrier(several[1:], soft=False)], soft=False)
    expected = SafetyField(several, ALPHA, MARGIN)(a)
    assert torch.equal(SafetyField(hard, ALPHA, MARGIN)(a), expected)
    scaled = SafetyField(hard.affine(2.0, 0.6), ALPHA, 2 * MARGIN + 0.6)(a)
    torch.testing.assert_close(scaled, expected)
    for single in (AndBarrier(several), OrBarrier(several, soft=False), hard.affine(-1.0)):
        assert single.conjuncts() == [single]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_barriers_in_any_precision_and_shape(
    several: list[Barrier], normal: Make, dtype: torch.dtype
) -> None:
    a = 2 * normal(2, 3, 7, seed=1)
    expected = SafetyField(several, ALPHA, MARGIN)(a)
    field = SafetyField(several, ALPHA, MARGIN).to(dtype)
    v = field(a.to(dtype))
    assert v.dtype == dtype
    torch.testing.assert_close(v.double(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(v[1, 2], field(a[1, 2].to(dtype)), rtol=1e-4, atol=1e-5)


def test_it_is_saved_and_restored_with_all_its_barriers(make_linear, make_gaussian, normal: Make):
    field = SafetyField([make_linear(), make_gaussian()], ALPHA, MARGIN, limit=3.0)
    again = rebuild(*describe(field))
    assert isinstance(again, SafetyField) and torch.equal(again(normal(9, 7)), field(normal(9, 7)))


@pytest.mark.parametrize("number", [0, 9])
def test_no_barrier_and_too_many_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=r"at least one|at most 8"):
        SafetyField([LinearBarrier(torch.ones(3))] * number, 1.0)


@pytest.mark.parametrize("name", ["linear", "quadratic", "gaussian", "network", "mixture"])
def test_the_ascent_is_the_metric_of_the_gradient(
    name: str, request: pytest.FixtureRequest, normal: Make
) -> None:
    make = request.getfixturevalue(f"make_{name}")
    barrier, a = make(whitened=True) if name == "quadratic" else make(), normal(9, 7)
    for each in (barrier, barrier.affine(-2.0, 1.0)):
        torch.testing.assert_close(each.ascent(a), each.metric(each.gradient(a)))
