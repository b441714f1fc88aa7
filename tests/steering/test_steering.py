"""Properties of steerings, their composition and their targets."""

import math

import pytest
import torch
from tests.helpers.models import two_gaussians

import odesteer as ods
from odesteer import (
    CAA,
    ITI,
    Angle,
    Calibration,
    NoSteering,
    ODESteer,
    PathLength,
    Steering,
    Target,
    Time,
)
from odesteer.ode import ConstantField, LinearBarrier

D = 12
CLASSES = two_gaussians(80, 80, seed=1)
A = ODESteer(gamma=1.0, C=1.0).fit(*CLASSES, layer=2)
B = CAA().fit(*two_gaussians(80, 80, seed=2)[::-1], layer=2)  # nearly the opposite of A
C = ITI().fit(CLASSES[0].roll(3, dims=1), CLASSES[1].roll(3, dims=1), layer=2)
ROWS = torch.cat(two_gaussians(100, 100, seed=3))
PAIRS = [(A, C), (C, A), (A, B), (C, B)]


def test_a_constant_field_adds_strength_times_its_direction():
    direction = torch.arange(3.0)
    steering = Steering(ConstantField(direction), 2.0)
    a = torch.randn(5, 3)
    torch.testing.assert_close(steering(a), a + 2 * direction)
    torch.testing.assert_close(steering.with_strength(-2.0)(a), a - 2 * direction)
    path = steering.with_strength(PathLength(0.5))(a)
    torch.testing.assert_close((path - a).norm(dim=-1), torch.full((5,), 0.5))
    turned = steering.with_strength(Angle(0.1))(a)
    torch.testing.assert_close((turned - a).norm(dim=-1), 0.1 * a.norm(dim=-1))


def test_a_number_is_a_time():
    assert torch.equal(A.with_strength(0.7)(ROWS), A.with_strength(Time(0.7))(ROWS))


@pytest.mark.parametrize("steering", [A, B, C, A & C], ids=["A", "B", "C", "A & C"])
def test_the_trajectory_starts_at_the_activation_ends_at_the_steered_one_and_climbs(steering):
    steering = steering.with_strength(Angle(0.1))
    path = steering.trajectory(ROWS)
    assert path.shape == (steering.steps + 1, *ROWS.shape)
    assert torch.equal(path[0], ROWS)
    torch.testing.assert_close(path[-1], steering(ROWS), atol=1e-5, rtol=1e-5)
    assert bool((steering.log_odds(path).diff(dim=0) > 0).all())


def test_steering_needs_no_gradients_and_leaves_none():
    a = ROWS.clone().requires_grad_(True)
    assert not A(a).requires_grad
    assert not A.probability(a).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(A(ROWS), A(a))


def test_the_probability_is_the_sigmoid_of_the_calibrated_barrier():
    scale, offset = A.calibration
    h = A.barrier.value(ROWS)
    torch.testing.assert_close(A.probability(ROWS), torch.sigmoid(scale * h + offset))
    assert scale > 0


@pytest.mark.parametrize("prior", [0.01, 0.3, 0.5, 0.9])
def test_a_prior_shifts_the_log_odds_by_its_own(prior):
    shifted = torch.logit(A.probability(ROWS.double(), prior=prior))
    expected = A.log_odds(ROWS.double()) + math.log(prior / (1 - prior))
    torch.testing.assert_close(shifted, expected)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.2, 1.5, float("nan")])
def test_a_prior_outside_0_to_1_is_refused(prior):
    with pytest.raises(ValueError, match="prior must be between 0 and 1"):
        A.probability(ROWS, prior=prior)


def test_a_method_without_a_barrier_says_that_it_cannot_detect():
    steering = NoSteering().fit(*CLASSES)
    for ask in (steering.probability, steering.log_odds, lambda a: steering.barrier):
        with pytest.raises(ValueError, match="'none' has no barrier"):
            ask(ROWS)


@pytest.mark.parametrize("steering", [A, B, C, A & C], ids=["A", "B", "C", "A & C"])
def test_not_turns_the_probability_and_the_direction_around(steering):
    opposite = ~steering
    torch.testing.assert_close(opposite.probability(ROWS), 1 - steering.probability(ROWS))
    torch.testing.assert_close(opposite.field(ROWS), -steering.field(ROWS))
    torch.testing.assert_close(
        opposite.with_strength(0.5)(ROWS), steering.with_strength(-0.5)(ROWS)
    )
    again = ~~steering
    torch.testing.assert_close(again.probability(ROWS), steering.probability(ROWS))
    torch.testing.assert_close(again(ROWS), steering(ROWS))


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_where_and_holds_both_parts_hold(one, two):
    both = one & two
    inside = both.log_odds(ROWS) >= 0
    assert bool(((one.log_odds(ROWS) >= 0) & (two.log_odds(ROWS) >= 0))[inside].all())
    joint = one.probability(ROWS), two.probability(ROWS), both.probability(ROWS)
    assert bool((joint[2] < torch.minimum(joint[0], joint[1])).all())


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_where_a_part_holds_or_holds(one, two):
    either = one | two
    some = (one.log_odds(ROWS) >= 0) | (two.log_odds(ROWS) >= 0)
    assert bool((either.log_odds(ROWS) >= 0)[some].all())


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_junctions_obey_de_morgan_and_do_not_care_about_order(one, two):
    torch.testing.assert_close((~(one & two)).log_odds(ROWS), (~one | ~two).log_odds(ROWS))
    torch.testing.assert_close((one & two).log_odds(ROWS), (two & one).log_odds(ROWS))
    torch.testing.assert_close((one | two).log_odds(ROWS), (two | one).log_odds(ROWS))


def test_and_reaches_both_aims():
    both = (A & C).with_strength(3.0)
    held = [((s.probability(a) > 0.5).float().mean()) for a in (ROWS, both(ROWS)) for s in (A, C)]
    assert held[0] < 0.8
    assert held[1] < 0.8
    assert held[2] > 0.95
    assert held[3] > 0.95


def test_steerings_of_two_layers_do_not_compose():
    with pytest.raises(ValueError, match=r"layers 2 and 5.*same layer"):
        A & C.replace(layer=5)
    with pytest.raises(ValueError, match=r"layers 2 and 5"):
        A | C.replace(layer=5)


def test_a_steering_without_a_barrier_does_not_compose():
    with pytest.raises(ValueError, match="'none' has no barrier"):
        A & NoSteering().fit(*CLASSES, layer=2)


@pytest.mark.parametrize("probability", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("budget", [4.0, PathLength(6.0), Angle(1.0)], ids=str)
@pytest.mark.parametrize("steering", [A, B, C, A & C], ids=["A", "B", "C", "A & C"])
def test_a_target_keeps_rows_that_are_there_and_brings_the_others(steering, probability, budget):
    targeted = steering.with_strength(Target(probability, budget=budget))
    moved = targeted(ROWS)
    there = steering.probability(ROWS) >= probability
    assert torch.equal(moved[there], ROWS[there])
    spent = steering.with_strength(budget)(ROWS)
    after = steering.probability(moved)
    stopped = ~there & (moved != spent).any(dim=-1)
    # Float32 rounding of the activation itself is all that may be missing.
    assert bool((after[stopped] >= probability - 1e-5).all())
    assert bool((after[stopped] < probability + 1e-3).all())
    unreached = ~there & ~stopped
    assert bool((after[unreached] <= probability + 1e-3).all())
    if 0 < there.float().mean() < 1:
        assert bool(stopped.any() or unreached.any())


def test_a_target_within_reach_is_reached_by_every_row():
    moved = C.with_strength(Target(0.9, budget=50.0))(ROWS)
    assert bool((C.probability(moved) >= 0.9 - 1e-5).all())


def test_a_target_out_of_reach_costs_the_whole_budget():
    moved = C.with_strength(Target(1 - 1e-6, budget=0.3))(ROWS)
    torch.testing.assert_close((moved - ROWS).norm(dim=-1), torch.full((len(ROWS),), 0.3))


def test_a_target_of_not_lowers_the_probability_to_its_complement():
    moved = (~A).with_strength(Target(0.8, budget=10.0))(ROWS)
    assert bool((A.probability(moved) <= 0.2 + 1e-5).all())


def test_a_target_has_no_trajectory_and_needs_a_barrier():
    with pytest.raises(ValueError, match="trajectory of its budget"):
        A.with_strength(Target(0.9, budget=1.0)).trajectory(ROWS)
    with pytest.raises(ValueError, match="no barrier"):
        Steering(ConstantField(torch.ones(D)), Target(0.9, budget=1.0))(ROWS)


def test_a_target_with_an_uninformative_barrier_is_out_of_reach_and_not_inverted():
    nothing = Steering(
        ConstantField(torch.ones(D), LinearBarrier(torch.ones(D))),
        Target(0.9, budget=1.0),
        calibration=Calibration(1e-6, 0.0),
    )
    torch.testing.assert_close(nothing(ROWS), ROWS + 1.0)


@pytest.mark.parametrize("steering", [A, B, A & C], ids=["A", "B", "A & C"])
def test_another_width_is_refused_with_both_widths(steering):
    for use in (steering, steering.probability, steering.trajectory):
        with pytest.raises(ValueError, match=r"width 12; got \[4, 3\]"):
            use(torch.ones(4, 3))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"solver": "euller"}, "Did you mean 'euler'"),
        ({"steps": 0}, "at least 1"),
        ({"strength": float("nan")}, "finite"),
    ],
)
def test_a_wrong_setting_is_refused_when_it_is_made(wrong, words):
    with pytest.raises(ValueError, match=words):
        Steering(ConstantField(torch.ones(D)), **wrong)


# ---- several into one


def _two(seed):
    positive, negative = two_gaussians(80, 80, seed=seed)
    return ODESteer(gamma=1.0, C=1.0).fit(positive, negative, layer=3)


@pytest.mark.parametrize("soft", [True, False])
def test_all_of_and_any_of_join_the_calibrated_barriers(soft):
    one, two = _two(1), CAA().fit(*two_gaussians(80, 80, seed=9), layer=3)
    a = torch.cat(two_gaussians(20, 20, seed=4))
    odds = torch.stack([one.log_odds(a), two.log_odds(a)])
    least = -torch.logsumexp(-odds, dim=0) if soft else odds.amin(dim=0)
    most = torch.logsumexp(odds, dim=0) if soft else odds.amax(dim=0)
    torch.testing.assert_close(ods.all_of(one, two, soft=soft).log_odds(a), least)
    torch.testing.assert_close(ods.any_of(one, two, soft=soft).log_odds(a), most)
    torch.testing.assert_close((one & two).log_odds(a), ods.all_of(one, two).log_odds(a))
    torch.testing.assert_close((one | two).log_odds(a), ods.any_of(one, two).log_odds(a))
    with pytest.raises(ValueError, match="got none"):
        ods.all_of()


def test_a_guarded_steering_never_leaves_the_other_ones_region():
    kept = _two(1)
    away = ~kept.with_strength(6.0)
    a = two_gaussians(60, 60, seed=4)[0]
    start = a[kept.log_odds(a) > 0.5]
    assert len(start) > 20
    free = kept.log_odds(away(start))
    held = ods.guarded(away, by=kept, alpha=2.0)

    exactly = held.replace(solver="dopri5")
    assert float(free.min()) < -0.5
    assert float(kept.log_odds(exactly(start)).min()) > -1e-3
    assert float(kept.log_odds(held(start)).min()) > -0.05
    # Backwards it goes the other way, and is guarded all the same.
    back = exactly.replace(strength=-6.0)
    assert float(kept.log_odds(back(start)).min()) > -1e-3
    assert bool((kept.log_odds(back(start)) > kept.log_odds(start)).float().mean() > 0.9)


def test_a_steering_guarded_by_several_leaves_none_of_their_regions(tmp_path):
    kept, other = _two(1), CAA().fit(*two_gaussians(80, 80, seed=9), layer=3)
    away = ~kept.with_strength(6.0)
    a = two_gaussians(60, 60, seed=4)[0]
    start = a[(kept.log_odds(a) > 0.5) & (other.log_odds(a) > 0.8)][:12]
    assert len(start) == 12
    held = ods.guarded(away, [kept, other], alpha=2.0, margin=[0.0, 0.3]).replace(solver="dopri5")
    alone = ods.guarded(away, other, alpha=2.0).replace(solver="dopri5")
    assert float(kept.log_odds(alone(start)).min()) < -0.5
    moved = held(start)
    assert float(kept.log_odds(moved).min()) > -1e-3
    assert float(other.log_odds(moved).min()) > 0.3 - 1e-3
    least = torch.minimum(kept.log_odds(moved), other.log_odds(moved) - 0.3)
    torch.testing.assert_close(held.log_odds(moved), least, rtol=1e-4, atol=1e-4)
    held.save_pretrained(tmp_path)
    assert torch.equal(ods.load(tmp_path)(start), moved)
    with pytest.raises(ValueError, match="2 steerings and 1 margins"):
        ods.guarded(away, [kept, other], margin=[0.0])


def test_a_guard_that_has_nothing_to_object_to_changes_nothing():
    kept = _two(1)
    a = torch.cat(two_gaussians(20, 20, seed=4))
    held = ods.guarded(kept, by=kept, alpha=1e-6)
    assert torch.equal(held.field(a), kept.field(a))
    with pytest.raises(ValueError, match="layers 3 and 4"):
        ods.guarded(kept, by=CAA().fit(*two_gaussians(9, 9), layer=4))


@pytest.mark.parametrize("rows", [1, 4, 200])
@pytest.mark.parametrize("steering", [A, B, C, A & C], ids=["odesteer", "caa", "iti", "both"])
def test_finding_6_autocast_changes_nothing(steering, rows):
    a = ROWS[:rows].float()
    steerings = [steering, steering.with_strength(Target(0.9, Angle(1.0)))]
    expected = [(s(a), s.only.velocity(a), s.probability(a)) for s in steerings]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = [(s(a), s.only.velocity(a), s.probability(a)) for s in steerings]
        paths = steering.trajectory(a)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(paths, steering.trajectory(a))
    for exact, found in zip(expected, lowered, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(exact, found, strict=True))
