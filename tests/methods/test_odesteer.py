"""ODESteer estimates the log density ratio that it follows."""

import time

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tests.helpers.models import two_gaussians
from torch.nn.functional import normalize

from odesteer import CAA, Angle, ODESteer
from odesteer.methods.samples import Samples

FIXED = ODESteer(gamma=1.0, C=1.0)
# A quadratic kernel in 8 dimensions has 45 features: 100 rows span them, so nothing is lost.
SPANNING = ODESteer(landmarks=100)


class Planted:
    """Rows about a centre whose label is drawn from a known quadratic on their sphere.

    The form's eigenvalues come in pairs +s, -s and there is no linear term, so both classes
    have mean `centre`, equal priors, and h is the log density ratio exactly.
    """

    def __init__(self, d=8, pairs=4, strength=6.0, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.centre = torch.linspace(-2.0, 2.0, d)
        frame, _ = torch.linalg.qr(torch.randn(d, d, generator=self.generator))
        signs = torch.zeros(d)
        signs[:pairs], signs[pairs : 2 * pairs] = strength, -strength
        self.form = frame @ torch.diag(signs) @ frame.mT

    def h(self, rows):
        y = normalize(rows - self.centre, dim=-1)
        return ((y @ self.form) * y).sum(dim=-1)

    def rows(self, n):
        return self.centre + 3 * torch.randn(n, len(self.centre), generator=self.generator)

    def classes(self, n):
        rows = self.rows(n)
        up = torch.rand(n, generator=self.generator) < self.h(rows).sigmoid()
        return rows[up], rows[~up]


def cosine(one, two, rows):
    return torch.nn.functional.cosine_similarity(one(rows), two(rows), dim=-1)


def test_a_planted_quadratic_log_density_ratio_is_recovered():
    world = Planted()
    steering = SPANNING.fit(*world.classes(2000))
    rows = world.rows(2000)
    h, true = steering.barrier.value(rows), world.h(rows)
    assert np.corrcoef(h, true)[0, 1] > 0.97
    # The calibrated log odds have the true scale, not only the true order.
    slope = np.polyfit(true.numpy(), steering.log_odds(rows).numpy(), 1)
    assert slope[0] == pytest.approx(1.0, abs=0.2)
    assert slope[1] == pytest.approx(0.0, abs=0.3)


def test_classes_that_differ_in_covariance_alone_are_told_apart_as_well_as_can_be():
    generator, d = torch.Generator().manual_seed(3), 10
    deviations = torch.linspace(0.4, 2.0, d)
    inverse = {+1: deviations**-2, -1: deviations.flip(0) ** -2}

    def draw(n, sign):
        spread = deviations if sign > 0 else deviations.flip(0)
        return torch.randn(n, d, generator=generator) * spread + 1.0

    fit, test = (draw(500, 1), draw(500, -1)), torch.cat([draw(2000, 1), draw(2000, -1)])
    labels = [1] * 2000 + [0] * 2000
    y = normalize(test - 1.0, dim=-1).square()
    # The angular central Gaussian density: Tyler, 1987.
    true = d / 2 * ((y @ inverse[-1]).log() - (y @ inverse[+1]).log())
    best = roc_auc_score(labels, true)
    assert best > 0.9
    assert roc_auc_score(labels, ODESteer().fit(*fit).barrier.value(test)) > best - 0.01
    assert roc_auc_score(labels, CAA().fit(*fit).barrier.value(test)) < 0.6


def test_the_prior_of_the_training_rows_is_removed_from_the_barrier():
    world = Planted(seed=4)
    positive, negative = world.classes(3000)
    steering = SPANNING.fit(positive[: len(negative) // 10], negative)
    rows = world.rows(20000)
    boundary = rows[world.h(rows).abs() < 0.1]
    assert len(boundary) > 200
    # Left in, the prior would make these -2.3 and 0.09.
    assert float(steering.barrier.value(boundary).mean()) == pytest.approx(0.0, abs=0.5)
    assert float(steering.probability(boundary).mean()) == pytest.approx(0.5, abs=0.08)
    assert float(steering.probability(boundary, prior=1 / 11).mean()) < 0.2


def test_landmarks_that_span_the_features_give_the_exact_fit():
    # A quadratic kernel in 6 dimensions has 28 features: 60 rows span them all.
    positive, negative = two_gaussians(300, 300, d=6, seed=5)
    exact, nystroem = (
        ODESteer(gamma=1.0, C=1.0, rank=6, landmarks=landmarks).fit(positive, negative)
        for landmarks in (600, 60)
    )
    rows = torch.cat(two_gaussians(200, 200, d=6, seed=6))
    difference = exact.barrier.value(rows) - nystroem.barrier.value(rows)
    assert float(difference.abs().max()) < 0.02 * float(exact.barrier.value(rows).std())
    assert float(cosine(exact.field, nystroem.field, rows).min()) > 0.999


def test_fewer_landmarks_approximate_the_exact_fit():
    positive, negative = two_gaussians(400, 400, d=24, seed=7)  # 325 features
    exact = FIXED.fit(positive, negative)
    rows = torch.cat(two_gaussians(200, 200, d=24, seed=8))
    agreement = []
    for landmarks in (50, 100, 200):
        method = ODESteer(gamma=1.0, C=1.0, landmarks=landmarks)
        agreement.append(
            np.corrcoef(
                exact.barrier.value(rows), method.fit(positive, negative).barrier.value(rows)
            )[0, 1]
        )
    assert agreement[0] < agreement[1] < agreement[2]
    assert agreement[2] > 0.95


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5])
@pytest.mark.parametrize(("gamma", "C"), [(0.01, 1.0), (0.3, 1.0), (1.0, 0.1)])
def test_the_chosen_rank_is_low_and_keeps_the_direction_of_the_full_field(p, gamma, C):
    positive, negative = two_gaussians(150, 150, d=40, seed=10)
    everything = ODESteer(gamma=gamma, C=C, p=p, rank=40).fit(positive, negative, calibrate=False)
    chosen = ODESteer(gamma=gamma, C=C, p=p).fit(positive, negative, calibrate=False)
    assert chosen.hyperparameters["rank"] < 30
    rows = torch.cat(two_gaussians(200, 200, d=40, seed=11))
    assert float(cosine(chosen.field, everything.field, rows).min()) >= 0.999


def test_the_more_quadratic_the_barrier_the_higher_its_rank():
    classes = two_gaussians(150, 150, d=40, seed=10)
    ranks = [
        ODESteer(gamma=gamma, C=1.0).fit(*classes, calibrate=False).hyperparameters["rank"]
        for gamma in (0.01, 0.3, 3.0)
    ]
    assert ranks[0] == 0 < ranks[1] < ranks[2]


@pytest.mark.parametrize("p", [0.0, 0.25, 0.5])
def test_the_barrier_rises_all_along_the_path_in_every_metric(p):
    stretch = torch.logspace(-1, 1, 12)
    positive, negative = (rows * stretch for rows in two_gaussians(80, 80, seed=12))
    steering = ODESteer(gamma=1.0, C=1.0, p=p).fit(positive, negative, strength=Angle(0.05))
    rows = torch.cat(two_gaussians(100, 100, seed=13)) * stretch
    path = steering.barrier.value(steering.trajectory(rows))
    assert path.shape == (11, 200)
    assert bool((path.diff(dim=0) > 0).all())


def test_whitening_fully_makes_the_barrier_blind_to_the_units_of_the_coordinates():
    # Ledoit-Wolf shrinks towards equal variances, so this holds as the rows become many.
    scale = torch.logspace(-0.5, 0.5, 12)
    fit, rows = two_gaussians(600, 600, seed=14), torch.cat(two_gaussians(200, 200, seed=15))
    values = {}
    for p in (0.0, 0.5):
        method = ODESteer(gamma=1.0, C=1.0, p=p, landmarks=200)
        for unit in (1.0, scale):
            barrier = method.fit(*(part * unit for part in fit), calibrate=False).barrier
            values[p, unit is scale] = barrier.value(rows * unit)
    agreement = {p: np.corrcoef(values[p, False], values[p, True])[0, 1] for p in (0.0, 0.5)}
    assert agreement[0.5] > 0.99 > agreement[0.0]


def test_cross_validation_never_splits_a_group():
    groups = np.random.default_rng(0).integers(0, 9, size=70)
    samples = Samples(torch.randn(40, 3), torch.randn(30, 3), groups)
    folds = samples.folds(5, seed=0)
    assert len(folds) == 5
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(70))
    for fit, test in folds:
        assert not set(groups[fit]) & set(groups[test])


def test_held_out_quality_is_not_fooled_by_near_copies_in_one_group():
    # 40 prompts with a random label each, and 5 near copies of every row.
    generator = torch.Generator().manual_seed(16)
    centres = torch.randn(40, 1, 24, generator=generator)
    rows = centres + 0.01 * torch.randn(40, 5, 24, generator=generator)
    positive, negative = rows[:19].reshape(-1, 24), rows[19:].reshape(-1, 24)
    groups = (np.repeat(range(19), 5), np.repeat(range(19, 40), 5))
    assert FIXED.fit(positive, negative).receipts["held_out"]["auc"] > 0.95
    with pytest.warns(UserWarning, match="odesteer does not tell held-out positives"):
        honest = FIXED.fit(positive, negative, groups=groups).receipts["held_out"]["auc"]
    assert 0.2 < honest < 0.75


def test_rows_of_equal_counts_are_pairs_that_stay_together():
    samples = FIXED.check(torch.randn(20, 3), torch.randn(20, 3), None)
    for fit, test in samples.folds(5, seed=0):
        assert set(fit % 20).isdisjoint(test % 20)


@pytest.mark.parametrize("p", [-0.1, 0.6, float("nan")])
def test_p_outside_its_range_is_refused(p):
    with pytest.raises(ValueError, match=r"0 <= p <= 1/2.*p="):
        ODESteer(p=p)


@pytest.mark.parametrize("name", ["gamma", "C"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_gamma_and_C_must_be_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} > 0 or None; got {value}"):
        ODESteer(**{name: value})


def test_what_the_data_chose_is_recorded():
    chosen = ODESteer().fit(*two_gaussians(60, 60)).hyperparameters
    assert chosen["gamma"] in ODESteer().gammas
    assert chosen["C"] in ODESteer().Cs
    assert isinstance(chosen["rank"], int)


def test_a_given_hyperparameter_is_kept_while_the_others_are_chosen():
    chosen = ODESteer(gamma=0.7, rank=3).fit(*two_gaussians(60, 60)).hyperparameters
    assert chosen["gamma"] == 0.7
    assert chosen["rank"] == 3
    assert chosen["C"] in ODESteer().Cs


def test_five_thousand_rows_take_seconds_with_landmarks():
    positive, negative = two_gaussians(2500, 2500, d=64, seed=17)
    start = time.perf_counter()
    steering = ODESteer(landmarks=300).fit(positive, negative)
    # About 4 s on one core.
    assert time.perf_counter() - start < 15
    assert steering.receipts["held_out"]["auc"] > 0.8
