"""Differences, intervals and p-values have the values that can be worked out by hand."""

import math

import numpy as np
import pytest

from odesteer.evaluation.metrics import distinct, percentile, product_of_rates
from odesteer.evaluation.statistics import (
    Mean,
    Percentile,
    ProductOfMeans,
    Units,
    difference,
    distinct_difference,
    distinct_value,
    interval,
    paired,
    value,
)

GENERATOR = np.random.default_rng(0)


def units(values: object, groups: object = None) -> Units:
    found = np.asarray(values, dtype=float)
    found = found[:, None] if found.ndim == 1 else found
    keys = list(range(len(found)))
    return Units(found, [str(g).zfill(4) for g in (keys if groups is None else groups)], keys)


def test_a_constant_difference_has_no_width() -> None:
    start = GENERATOR.normal(size=30)
    found = difference(Mean(), units(start + 0.25), units(start))
    assert found.interval[:3] == pytest.approx((0.25, 0.25, 0.25), abs=1e-12)
    assert (found.interval.n, found.groups) == (30, 30)
    assert found.p == pytest.approx(1 / 10_001)


def test_no_difference_is_chance() -> None:
    start = GENERATOR.normal(size=30)
    found = difference(Mean(), units(start), units(start))
    assert found.interval[:3] == (0.0, 0.0, 0.0)
    assert found.p == 1.0


def test_few_groups_have_the_exact_p_value() -> None:
    # Of the 8 ways in which three groups can change places, two are as extreme: all and none.
    found = difference(Mean(), units([1.0, 1.0, 1.0]), units([0.0, 0.0, 0.0]))
    assert found.p == 0.25


def test_one_group_says_nothing_of_others() -> None:
    found = difference(Mean(), units([1.0, 2.0], "aa"), units([0.0, 0.0], "aa"))
    assert found.interval.mean == 1.5
    assert math.isnan(found.interval.low) and math.isnan(found.interval.high)
    assert found.p == 1.0


def test_groups_are_drawn_whole() -> None:
    values = GENERATOR.normal(size=40)
    alone = difference(Mean(), units(values), units(np.zeros(40)))
    copied = np.repeat(values, 5)
    groups = np.repeat(np.arange(40), 5)
    together = difference(Mean(), units(copied, groups), units(np.zeros(200), groups))
    naive = difference(Mean(), units(copied), units(np.zeros(200)))
    width = alone.interval.high - alone.interval.low
    assert together.interval.high - together.interval.low == pytest.approx(width, rel=0.03)
    assert naive.interval.high - naive.interval.low < 0.6 * width
    assert naive.p < together.p == pytest.approx(alone.p, abs=0.02)


def test_the_interval_of_a_mean_is_that_of_the_library() -> None:
    values = GENERATOR.normal(size=50)
    assert tuple(value(Mean(), units(values))) == pytest.approx(tuple(interval(values)))


def test_unscored_is_in_neither_and_never_zero() -> None:
    one, other = units([1.0, np.nan, 3.0, 4.0]), units([0.0, 0.0, np.nan, 2.0])
    found = difference(Mean(), one, other)
    assert found.interval.mean == 1.5
    assert (found.interval.n, found.groups) == (2, 2)
    assert value(Mean(), one)[0] == pytest.approx(8 / 3)
    assert value(Mean(), one).n == 3
    nothing = value(Mean(), units([np.nan]))
    assert nothing.n == 0 and math.isnan(nothing.mean)
    assert math.isnan(difference(Mean(), one, units([np.nan] * 4)).interval.mean)


def test_pairs_are_found_by_key_and_not_by_place() -> None:
    one = Units(np.array([[1.0], [2.0]]), ["a", "b"], ["a", "b"])
    other = Units(np.array([[20.0], [10.0], [0.0]]), ["b", "a", "c"], ["b", "a", "c"])
    first, second = paired(one, other)
    assert list(first.keys) == list(second.keys) == ["a", "b"]
    assert second.values[:, 0].tolist() == [10.0, 20.0]


@pytest.mark.parametrize("percent", [10.0, 50.0, 90.0])
@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_the_percentile_is_that_of_the_metrics(percent: float, size: int) -> None:
    values = GENERATOR.integers(0, 9, size).astype(float)
    found = value(Percentile(percent), units(values))
    assert found.mean == pytest.approx(percentile(values.tolist(), percent))


def test_the_product_of_rates_is_that_of_the_metrics() -> None:
    both = GENERATOR.integers(0, 2, (40, 2)).astype(float)
    both[3, 0] = np.nan
    expected = product_of_rates(both[:, 0], both[:, 1])
    assert value(ProductOfMeans(), units(both)).mean == pytest.approx(expected)


def test_a_function_of_the_mean_is_taken_of_the_mean() -> None:
    assert value(Mean(np.exp), units([1.0, 3.0])).mean == pytest.approx(np.exp(2.0))


def test_the_jackknife_leaves_out_every_group() -> None:
    texts = [("a", "x y"), ("b", "x z"), ("b", "x x"), ("c", "w w w")]
    found = distinct_value(texts, 1)
    left_out = [
        distinct([text for group, text in texts if group != gone], 1) for gone in ("a", "b", "c")
    ]
    error = np.sqrt(2 / 3 * np.square(left_out - np.mean(left_out)).sum())
    assert found.mean == distinct([text for _, text in texts], 1)
    assert found.high - found.mean == pytest.approx(1.96 * error)


def test_equal_texts_are_equally_diverse() -> None:
    texts = [("a", "x y"), ("b", "x z"), ("c", "w w w")]
    found = distinct_difference(texts, texts, 1)
    assert found.interval[:3] == (0.0, 0.0, 0.0)
    assert found.p == 1.0


def test_the_normal_p_value_of_the_interval() -> None:
    words = [" ".join(map(str, GENERATOR.integers(0, 40, 12))) for _ in range(60)]
    one = [(str(i), text) for i, text in enumerate(words[:30])]
    other = [(str(i), text) for i, text in enumerate(words[30:])]
    found = distinct_difference(one, other, 2)
    outside = not found.interval.low <= 0.0 <= found.interval.high
    assert (found.p < 0.05) == outside
