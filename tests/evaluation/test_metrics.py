"""Metrics have their known values, and an unscored case is never a zero."""

import math

import numpy as np
import pytest

from odesteer.evaluation.metrics import (
    array,
    both,
    distinct,
    from_threshold,
    maxima,
    percentile,
    product_of_rates,
    wins,
)


def test_the_product_of_rates_is_not_the_rate_of_both():
    true = from_threshold([0.9, 0.8, 0.1, 0.2])
    info = from_threshold([0.1, 0.2, 0.9, 0.8])
    assert product_of_rates(true, info) == 0.25
    assert both(true, info).mean() == 0.0
    assert product_of_rates(true, true) == 0.25 < both(true, true).mean() == 0.5


def test_the_threshold_itself_counts():
    assert from_threshold([0.5, 0.4999, None]).tolist()[:2] == [1.0, 0.0]


def test_unscored_stays_unscored():
    assert np.isnan(array([None, 1.0])).tolist() == [True, False]
    for found in (
        from_threshold([None, 1.0]),
        wins([None, 1.0], [0.0, 0.0]),
        wins([0.0, 1.0], [None, 0.0]),
        both(array([None, 1.0]), array([1.0, 1.0])),
        maxima([1.0, None, 0.5, 0.2], ["a", "a", "b", "b"]),
    ):
        assert np.isnan(found).tolist() == [True, False]
    assert product_of_rates(array([None, 1.0]), array([0.0, 1.0])) == 1.0
    assert math.isnan(product_of_rates(array([None]), array([1.0])))
    assert percentile([None, 1.0, 2.0], 50) == 1.5
    assert math.isnan(percentile([None]))


def test_a_tie_is_half_a_win_and_the_model_never_beats_itself():
    assert wins([2.0, 1.0, 1.0], [1.0, 2.0, 1.0]).tolist() == [1.0, 0.0, 0.5]
    scores = list(np.random.default_rng(0).normal(size=20))
    assert wins(scores, scores).mean() == 0.5
    other = list(np.random.default_rng(1).normal(size=20))
    assert wins(scores, other).mean() + wins(other, scores).mean() == pytest.approx(1.0)


def test_the_maximum_is_over_a_prompts_own_samples():
    assert maxima([0.1, 0.9, 0.4, 0.2], ["a", "b", "a", "b"]).tolist() == [0.4, 0.9]


def test_distinct_counts_different_over_all():
    assert distinct(["a b c"], 1) == distinct(["a b c"], 2) == 1.0
    assert distinct(["a a a a"], 1) == 0.25
    assert distinct(["a a", "a a"], 2) == 0.5
    # "b c" across the border is no bigram
    assert distinct(["a b", "c d"], 2) == 1.0
    assert math.isnan(distinct(["a", ""], 2))
    with pytest.raises(ValueError, match="n=0"):
        distinct(["a"], 0)
