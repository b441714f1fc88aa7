"""Gaussian, mixture and network barriers and the safety filter: known answers."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tests.helpers.models import two_gaussians
from torch.distributions import MultivariateNormal

from odesteer import (
    CAA,
    GaussianODESteer,
    MixtureODESteer,
    NetworkODESteer,
    NoSteering,
    ODESteer,
    PathLength,
    SafetyFilter,
)
from odesteer.methods.estimators import class_covariances, pooled_covariance
from odesteer.methods.samples import Samples
from odesteer.ode import LinearBarrier, SafetyField

FLEXIBLE = [MixtureODESteer(), NetworkODESteer()]
LEARNT = [GaussianODESteer(shared=False), GaussianODESteer(shared=True), *FLEXIBLE, SafetyFilter()]
by_name = {"ids": lambda method: f"{method.name}{'-lda' * getattr(method, 'shared', False)}"}


def rows(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def rings(n, seed):
    """Radius 1 and radius 3 in the plane, with noise of 0.2: no line tells them apart."""
    angle = 2 * math.pi * torch.rand(2 * n, generator=torch.Generator().manual_seed(seed))
    circle = torch.stack([angle.cos(), angle.sin()], dim=1)
    noisy = circle * torch.repeat_interleave(torch.tensor([1.0, 3.0]), n)[:, None]
    noisy = noisy + 0.2 * rows(2 * n, 2, seed + 1).float()
    return noisy[:n], noisy[n:]


def held_out_auc(barrier, positive, negative):
    h = torch.cat([barrier.value(positive), barrier.value(negative)])
    return roc_auc_score([1] * len(positive) + [0] * len(negative), h.numpy())


# ---- Gaussian


@pytest.fixture(scope="module")
def two_known():
    """Two Gaussians in 4 dimensions and 4,000 rows of each."""
    above = MultivariateNormal(torch.tensor([1.0, 0, 0, 0.5]).double(), torch.eye(4).double())
    spread = torch.diag(torch.tensor([0.3, 2.0, 1.0, 0.6]).double())
    spread[0, 1] = spread[1, 0] = 0.4
    below = MultivariateNormal(torch.tensor([-0.5, 0, 0.3, 0]).double(), spread)
    positive = above.mean + rows(4000, 4, 1) @ above.scale_tril.mT
    negative = below.mean + rows(4000, 4, 2) @ below.scale_tril.mT
    return above, below, positive, negative


def test_qda_approaches_the_true_log_ratio(two_known):
    above, below, positive, negative = two_known
    barrier = GaussianODESteer(shared=False).fit_field(positive, negative).barrier
    a = torch.cat([positive[:500], negative[:500]])
    truth = above.log_prob(a) - below.log_prob(a)
    assert float((barrier.value(a) - truth).abs().mean()) < 0.1
    # LDA cannot, however many rows it sees.
    linear = GaussianODESteer(shared=True).fit_field(positive, negative).barrier
    assert float((linear.value(a) - truth).abs().mean()) > 0.5


def test_lda_is_linear_along_the_inverse_covariance_times_the_mean_difference(two_known):
    _, _, positive, negative = two_known
    barrier = GaussianODESteer(shared=True, shrinkage=0.1).fit_field(positive, negative).barrier
    assert isinstance(barrier.barrier, LinearBarrier)
    centred = torch.cat([positive - positive.mean(dim=0), negative - negative.mean(dim=0)])
    sample = centred.mT @ centred / len(centred)
    shrunk = 0.9 * sample + 0.1 * sample.diagonal().mean() * torch.eye(4)
    difference = positive.mean(dim=0) - negative.mean(dim=0)
    torch.testing.assert_close(barrier.barrier.weight, torch.linalg.solve(shrunk, difference))
    middle = (positive.mean(dim=0) + negative.mean(dim=0)) / 2
    assert float(barrier.value(middle)) == pytest.approx(0.0, abs=1e-12)


def test_full_shrinkage_is_the_direction_of_caa(two_known):
    _, _, positive, negative = two_known
    field = GaussianODESteer(shared=True, shrinkage=1.0, p=0.0).fit_field(positive, negative)
    caa = CAA().fit_field(positive, negative)
    a = positive[:5]
    torch.testing.assert_close(field(a), caa(a) / caa(a).norm(dim=-1, keepdim=True))


def test_in_the_metric_of_the_covariance_the_discriminant_goes_where_caa_goes():
    """Sigma Sigma^-1 (mean+ - mean-): theory, item 8."""
    positive, negative = two_gaussians(6000, 6000, 6, seed=1)
    stretch = torch.tensor([5.0, 0.2, 1.0, 3.0, 0.5, 1.0])
    positive, negative = positive * stretch, negative * stretch
    caa = CAA().fit(positive, negative, calibrate=False).field(positive[:1])
    cosines = []
    for p in (0.0, 0.25, 0.5):
        method = GaussianODESteer(p=p, shrinkage=0.0, covariance_rank=5)
        field = method.fit(positive, negative, calibrate=False).field
        cosines.append(float(torch.cosine_similarity(field(positive[:1]), caa)))
    assert cosines[0] < cosines[1] < cosines[2]
    assert cosines[2] > 0.97


def test_a_class_of_one_or_two_rows_takes_the_covariance_of_both():
    many = rows(40, 9, 1)
    for n in (1, 2):
        few = rows(n, 9, 2)
        above, below = class_covariances(few, many)
        assert torch.equal(above, pooled_covariance(few, many))
        assert not torch.equal(below, above)
    assert torch.equal(pooled_covariance(many[:1], many[1:2]), torch.eye(9, dtype=torch.float64))


@pytest.mark.parametrize("shrinkage", [-0.1, 1.1])
def test_a_shrinkage_beyond_one_is_refused(shrinkage):
    with pytest.raises(ValueError, match=str(shrinkage)):
        GaussianODESteer(shared=False, shrinkage=shrinkage)


def test_without_shrinkage_fewer_rows_than_dimensions_are_refused_with_the_cure():
    with pytest.raises(ValueError, match=r"positive covariance \[30, 30\].*Shrink"):
        GaussianODESteer(shared=False, shrinkage=0.0).fit_field(rows(10, 30, 1), rows(10, 30, 2))


# ---- all of them


@pytest.mark.parametrize("method", LEARNT, **by_name)
@pytest.mark.parametrize(("n", "m"), [(20, 20), (3, 30)])
def test_fewer_rows_than_dimensions_give_finite_useful_fields(method, n, m):
    positive, negative = two_gaussians(n, m, 50, seed=1)
    steering = method.fit(positive, negative, strength=PathLength(1.0))
    fresh = torch.cat(two_gaussians(100, 100, 50, seed=2))
    moved = steering(fresh)
    assert bool(torch.isfinite(moved).all())
    assert bool(torch.isfinite(steering.log_odds(fresh)).all())
    # 20 rows a class in 50 dimensions: towards the positives, on average.
    difference = torch.cos(torch.arange(50).float())
    assert float(((moved - fresh) @ difference).mean()) > 0


@pytest.mark.parametrize("method", [GaussianODESteer(shared=False), *FLEXIBLE], **by_name)
def test_rings_that_no_line_tells_apart_are_told_apart(method):
    barrier = method.fit(*rings(150, 1), calibrate=False).barrier
    linear = GaussianODESteer(shared=True).fit(*rings(150, 1), calibrate=False).barrier
    assert held_out_auc(barrier, *rings(300, 7)) > 0.99
    assert held_out_auc(linear, *rings(300, 7)) < 0.65


@pytest.mark.parametrize("method", [GaussianODESteer(shared=False), *FLEXIBLE], **by_name)
def test_from_the_outer_ring_every_row_goes_inwards_and_arrives(method):
    steering = method.fit(*rings(150, 1), strength=PathLength(1.9), calibrate=False)
    _, outer = rings(100, 9)
    moved = steering(outer)
    inwards = torch.cosine_similarity(moved - outer, -outer, dim=-1)
    assert float(inwards.median()) > 0.9
    assert float((moved.norm(dim=-1) < outer.norm(dim=-1)).float().mean()) == 1.0
    assert float((steering.probability(moved) > 0.5).float().mean()) > 0.9


@pytest.mark.parametrize("method", FLEXIBLE, **by_name)
def test_two_gaussians_are_ranked_nearly_as_well_as_can_be(method):
    barrier = method.fit(*two_gaussians(300, 300, 12, seed=1), calibrate=False).barrier
    # The best possible is Phi(1.6 / sqrt 2) = 0.871.
    assert held_out_auc(barrier, *two_gaussians(1000, 1000, 12, seed=2)) > 0.82


@pytest.mark.parametrize("method", FLEXIBLE, **by_name)
def test_how_many_rows_a_class_has_does_not_shift_h(method):
    positive, negative = two_gaussians(400, 400, 6, seed=1)
    fresh = torch.cat(two_gaussians(200, 200, 6, seed=2)).double()
    even = method.fit_field(positive.double(), negative.double()).barrier.value(fresh)
    uneven = method.fit_field(positive.double(), negative[:80].double()).barrier.value(fresh)
    # Without the prior correction the shift would be log 5 = 1.6.
    assert abs(float((even - uneven).mean())) < 0.6


# ---- mixture


def test_the_bandwidth_is_chosen_from_the_multiples_and_a_given_one_is_kept():
    samples = MixtureODESteer().check(*rings(100, 1))
    narrow = MixtureODESteer().select_hyperparameters(samples).bandwidth
    wide = (
        MixtureODESteer()
        .select_hyperparameters(MixtureODESteer().check(*two_gaussians(60, 60, 12)))
        .bandwidth
    )
    # Rings need a kernel that sees the gap; two Gaussians are best told apart by a plane.
    assert narrow < 0.5 * wide
    assert MixtureODESteer(bandwidth=0.7).select_hyperparameters(samples).bandwidth == 0.7


def test_landmarks_bound_the_centres_of_each_class():
    method = MixtureODESteer(landmarks=30, bandwidth=0.5)
    barrier = method.fit_field(*(x.double() for x in rings(100, 1))).barrier
    assert barrier.positive.shape == barrier.negative.shape == (30, 2)
    assert held_out_auc(barrier, *(x.double() for x in rings(300, 7))) > 0.99


# ---- network


def test_the_network_never_touches_the_global_random_state():
    torch.manual_seed(0), np.random.seed(0)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    NetworkODESteer(epochs=2).fit(*rings(50, 1), calibrate=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_another_seed_gives_another_network_of_the_same_quality():
    data = [x.double() for x in rings(100, 1)]
    one, two = (NetworkODESteer(epochs=40, seed=s).fit_field(*data).barrier for s in (0, 1))
    assert not torch.equal(one.value(data[0]), two.value(data[0]))
    for barrier in (one, two):
        assert held_out_auc(barrier, *(x.double() for x in rings(300, 7))) > 0.99


def test_a_caller_in_inference_mode_gets_the_same_network():
    outside = NetworkODESteer(epochs=3).fit(*rings(50, 1), calibrate=False)
    with torch.inference_mode():
        inside = NetworkODESteer(epochs=3).fit(*rings(50, 1), calibrate=False)
    one, two = outside.field.state_dict(), inside.field.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_progress_counts_epochs_to_the_end():
    seen = []
    NetworkODESteer(epochs=4).fit(*rings(50, 1), progress=lambda *now: seen.append(now))
    assert seen[-1] == (4, 4) and seen == sorted(seen)


def test_groups_are_not_split_between_training_and_stopping(monkeypatch):
    from odesteer.methods import mlp as network

    splits = []

    def spy(samples, share=0.2, seed=0):
        splits.append((samples, hold_out(samples, share, seed)))
        return splits[-1][1]

    hold_out = network.hold_out
    monkeypatch.setattr(network, "hold_out", spy)
    pairs = np.arange(60) // 3
    NetworkODESteer(epochs=1).fit(*rings(60, 1), groups=(pairs, pairs))
    assert splits
    for samples, (fit, test) in splits:
        assert not set(samples.groups[fit.numpy()]) & set(samples.groups[test.numpy()])


# ---- safety filter


@pytest.fixture(scope="module")
def filtered():
    return SafetyFilter(alpha=1.3, margin=0.4).fit(*two_gaussians(100, 100, 12, seed=1))


def test_comfortable_rows_stay_and_the_deficit_of_the_others_shrinks_exponentially(filtered):
    fresh = torch.cat(two_gaussians(200, 200, 12, seed=2)).double()
    field = copy.deepcopy(filtered.field).double()
    barrier = field.barrier
    for strength in (0.5, 1.0, 2.0):
        moved = filtered.with_strength(strength)(fresh)
        before, after = (barrier.value(x) - 0.4 for x in (fresh, moved))
        stays = before >= 0
        assert 50 < int(stays.sum()) < 350
        assert torch.equal(moved[stays], fresh[stays])
        expected = before * math.exp(-1.3 * strength)
        follows = ~stays & (field(fresh).norm(dim=-1) < 0.99 * field.limit)
        torch.testing.assert_close(after[follows], expected[follows], rtol=2e-3, atol=2e-3)
        # Rows near a critical point would need more than the filter may do in that time.
        held_back = ~stays & ~follows
        assert int(held_back.sum()) < 0.03 * int(follows.sum())
        assert bool((after[held_back] > before[held_back]).all())


def test_comfortable_rows_keep_every_bit_in_every_precision(filtered):
    fresh = torch.cat(two_gaussians(200, 200, 12, seed=2))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        a = fresh.to(dtype)
        stays = filtered.barrier.value(a.float()) >= 0.4
        assert torch.equal(filtered.with_strength(1.0)(a)[stays], a[stays])


def test_a_negative_strength_and_inversion_filter_the_other_way(filtered):
    fresh = torch.cat(two_gaussians(200, 200, 12, seed=2))
    away = filtered.with_strength(-1.0)(fresh)
    assert torch.equal(away, (~filtered).with_strength(1.0)(fresh))
    h = filtered.barrier.value(fresh)
    there = h <= -0.4
    assert torch.equal(away[there], fresh[there])
    assert bool((filtered.barrier.value(away)[~there] < h[~there]).all())


@pytest.mark.parametrize("estimate", [ODESteer(p=0.0), GaussianODESteer(shared=True), CAA()])
def test_any_method_with_a_barrier_can_be_filtered(estimate):
    data = two_gaussians(60, 60, 12, seed=1)
    steering = SafetyFilter(estimate=estimate).fit(*data)
    expected = estimate.fit(*data)
    a = torch.cat(data)
    assert isinstance(steering.field, SafetyField)
    torch.testing.assert_close(steering.probability(a), expected.probability(a))
    assert steering.receipts["held_out"] == expected.receipts["held_out"]


def test_a_method_without_a_barrier_cannot():
    with pytest.raises(ValueError, match="none has none"):
        SafetyFilter(estimate=NoSteering()).fit(*two_gaussians(9, 9))


def test_rows_next_to_a_critical_point_are_not_thrown_far():
    positive, negative = two_gaussians(100, 100, 12, seed=1)
    method = SafetyFilter(margin=50.0, reach=0.5)
    steering = method.fit(positive, negative, strength=1.0)
    a = torch.cat([positive, negative])
    rows = Samples(positive, negative).rows
    radius = float((rows - rows.mean(dim=0)).norm(dim=-1).median())
    # No row can reach 50 nats; each step is bounded all the same.
    assert float((steering(a) - a).norm(dim=-1).max()) <= 0.5 * radius * (1 + 1e-4)


@pytest.mark.parametrize("wrong", [{"alpha": 0.0}, {"reach": 0.0}])
def test_a_filter_that_never_acts_is_refused(wrong):
    with pytest.raises(ValueError, match="alpha > 0 and reach > 0"):
        SafetyFilter(**wrong)
