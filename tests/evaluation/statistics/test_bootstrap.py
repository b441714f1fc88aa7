"""Bootstrap intervals cover what they should, also for values that come in groups."""

import numpy as np
import pytest

from odesteer.evaluation.statistics import drawn, holm, interval, randomisation_p, swaps


def test_the_interval_is_as_wide_as_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=400)
    mean, low, high, n = interval(values)
    assert (mean, n) == (values.mean(), 400)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_copies_of_one_value_in_a_group_count_once() -> None:
    values = np.random.default_rng(0).normal(size=50)
    alone = interval(values)
    copied = interval(np.repeat(values, 7), groups=np.repeat(np.arange(50), 7))
    assert copied[:3] == pytest.approx(alone[:3], abs=0.03)  # other draws
    assert copied.n == 350
    naive = interval(np.repeat(values, 7))
    assert naive.high - naive.low < 0.5 * (copied.high - copied.low)


def test_groups_of_different_sizes_keep_the_mean_of_the_values() -> None:
    values = np.array([0.0, 0.0, 0.0, 1.0])
    mean, low, high, _ = interval(values, groups=["a", "a", "a", "b"])
    assert (mean, low, high) == (0.25, 0.0, 1.0)


def test_a_draw_has_as_many_groups_as_there_are() -> None:
    counts = drawn(7, draws=50)
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()


def test_drawing_groups_is_how_a_mean_is_bootstrapped() -> None:
    values = np.random.default_rng(0).normal(size=30)
    low, high = np.quantile(drawn(30) @ values / 30, [0.025, 0.975])
    assert interval(values)[1:3] == pytest.approx((low, high))


def test_few_groups_change_places_in_every_way_once() -> None:
    assert sorted(map(tuple, swaps(2).tolist())) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert swaps(20, draws=100).shape == (100, 20)


def test_p_counts_ties_and_what_was_seen() -> None:
    assert randomisation_p(1.0, np.array([1.0, -1.0, 0.5, 0.0]), exact=True) == 0.5
    assert randomisation_p(1.0, np.array([0.0, 0.5, -0.5]), exact=False) == 0.25


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
