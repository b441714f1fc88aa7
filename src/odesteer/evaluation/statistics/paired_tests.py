"""Estimates, paired differences and randomisation tests.

A condition's cases come as `Units`: some numbers each (one score, or two that belong together),
the group they are drawn in, and a key that pairs them with another condition's. A `Statistic`
turns sums over units into the metric, so that bootstrap samples (whole groups, drawn alike in
both conditions) and randomisations (a group's two conditions change places) are one matrix
product each.

A unit that is unscored in one of two conditions is left out of their difference, and counted; it
never becomes a number.

Dist-n is no function of sums, and a bootstrap sample holds texts twice, which Dist-n counts as
repetition. Its error is the jackknife's, leaving out one group at a time:

    se^2 = (G - 1) / G * sum_g (D_(-g) - mean_g D_(-g))^2

with the interval D +- 1.96 se and p from the normal distribution. For a difference, D is the
difference of both conditions without the same group.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from odesteer.evaluation.metrics import distinct, grams
from odesteer.evaluation.statistics.bootstrap import Interval, drawn, randomisation_p, swaps

DRAWS, FEWER = 10_000, 2_000  # the second where a draw takes many sums
NUMBERS = 20_000_000  # of a matrix of draws: 160 MB
_draws = lru_cache(maxsize=2)(drawn)
_swaps = lru_cache(maxsize=2)(swaps)
NAN = float("nan")


@dataclass(frozen=True)
class Units:
    """Cases of one condition, or other units that a metric counts.

    Attributes:
        values: [n, c], nan where unscored.
        groups: n names; units of one group are not independent.
        keys: n; equal ones of two conditions are compared.
    """

    values: np.ndarray
    groups: Sequence[str]
    keys: Sequence[Hashable]

    @property
    def measured(self) -> np.ndarray:
        return ~np.isnan(self.values).any(axis=1)

    def at(self, keys: Sequence[Hashable]) -> "Units":
        """Return the units of these keys, in their order."""
        index = {key: i for i, key in enumerate(self.keys)}
        rows = [index[key] for key in keys]
        return Units(self.values[rows], [self.groups[i] for i in rows], list(keys))


class Statistic(ABC):
    """Metric that is a function of sums over units."""

    @abstractmethod
    def parts(self, values: np.ndarray, pool: np.ndarray) -> np.ndarray:
        """Return the summands: [n, c] -> [n, k]; `pool` has all values of the comparison."""

    @abstractmethod
    def number(self, sums: np.ndarray, pool: np.ndarray) -> np.ndarray:
        """Return the metric of sums, [..., k] -> [...]; nan where nothing was summed."""


class Mean(Statistic):
    """The mean, or a function of it such as exp."""

    def __init__(self, of: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self._of = of

    def parts(self, values: np.ndarray, pool: np.ndarray) -> np.ndarray:
        return np.column_stack([values[:, 0], np.ones(len(values))])

    def number(self, sums: np.ndarray, pool: np.ndarray) -> np.ndarray:
        mean = _ratio(sums[..., 0], sums[..., 1])
        return mean if self._of is None else self._of(mean)


class ProductOfMeans(Statistic):
    """mean(one) * mean(other), over units that have both: `metrics.product_of_rates`."""

    def parts(self, values: np.ndarray, pool: np.ndarray) -> np.ndarray:
        return np.column_stack([values[:, :2], np.ones(len(values))])

    def number(self, sums: np.ndarray, pool: np.ndarray) -> np.ndarray:
        return _ratio(sums[..., 0], sums[..., 2]) * _ratio(sums[..., 1], sums[..., 2])


class Percentile(Statistic):
    """The percentile, interpolated between neighbours as `metrics.percentile` does.

    Summed are how often each value occurs, from which the values at any rank follow.
    """

    def __init__(self, percent: float) -> None:
        self.percent = percent

    def parts(self, values: np.ndarray, pool: np.ndarray) -> np.ndarray:
        return (values[:, :1] == np.unique(pool)).astype(float)

    def number(self, sums: np.ndarray, pool: np.ndarray) -> np.ndarray:
        grid, upto = np.unique(pool), np.cumsum(sums, axis=-1)
        rank = self.percent / 100 * np.maximum(upto[..., -1] - 1, 0)

        def at(rank: np.ndarray) -> np.ndarray:
            below = (upto <= rank[..., None] + 1e-9).sum(axis=-1)
            return grid[np.minimum(below, len(grid) - 1)]

        low, share = np.floor(rank), rank - np.floor(rank)
        between = (1 - share) * at(low) + share * at(np.minimum(low + 1, upto[..., -1] - 1))
        return np.where(upto[..., -1] > 0, between, NAN)


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(np.shape(sums), NAN), where=counts > 0)


class PairedDifference(NamedTuple):
    """Difference of two conditions over the units that both have.

    `interval` is in the metric's unit, `groups` how many independent ones there are, `p` the
    chance of a difference as large if the two conditions were the same one.
    """

    interval: Interval
    groups: int
    p: float


def grouped(parts: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Sum within each group: [n, k] -> [groups, k], groups by name."""
    _, of_row = np.unique(np.asarray(groups), return_inverse=True)
    return np.column_stack([np.bincount(of_row, column) for column in parts.T])


def value(statistic: Statistic, units: Units) -> Interval:
    """Return the metric with its 95 % bootstrap interval, over the scored units."""
    measured = units.measured
    if not measured.any():
        return Interval(NAN, NAN, NAN, 0)
    values, groups = units.values[measured], np.asarray(units.groups)[measured]
    sums = grouped(statistic.parts(values, values), list(groups))
    mean = float(statistic.number(sums.sum(axis=0), values))
    low, high = bounds(statistic.number(resampled(sums), values), len(sums))
    return Interval(mean, low, high, len(values))


def difference(statistic: Statistic, one: Units, other: Units) -> PairedDifference:
    """Return `one - other`, paired, with bootstrap interval and randomisation test."""
    one, other = paired(one, other)
    if not len(one.keys):
        return PairedDifference(Interval(NAN, NAN, NAN, 0), 0, NAN)
    pool = np.concatenate([one.values, other.values])
    first, second = (grouped(statistic.parts(u.values, pool), one.groups) for u in (one, other))

    def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return statistic.number(a, pool) - statistic.number(b, pool)

    seen = float(apart(first.sum(axis=0), second.sum(axis=0)))
    low, high = bounds(apart(resampled(first), resampled(second)), len(first))
    changed = swapped(second - first)
    null = apart(first.sum(axis=0) + changed, second.sum(axis=0) - changed)
    p = randomisation_p(seen, null, exact=len(null) == 2 ** len(first))
    return PairedDifference(Interval(seen, low, high, len(one.keys)), len(first), p)


def paired(one: Units, other: Units) -> tuple[Units, Units]:
    """Return the units that both have a score for, in the same order."""
    scored = {key for key, measured in zip(other.keys, other.measured, strict=True) if measured}
    keys = [
        key
        for key, measured in zip(one.keys, one.measured, strict=True)
        if measured and key in scored
    ]
    return one.at(keys), other.at(keys)


def resampled(sums: np.ndarray) -> np.ndarray:
    """Resample sums, [groups, k] -> [draws, k]; equal groups have equal draws."""
    return _draws(len(sums), draws=_draws_for(sums)) @ sums


def swapped(change: np.ndarray) -> np.ndarray:
    """Return the change of sums under random swaps, [groups, k] -> [draws, k]."""
    return _swaps(len(change), draws=_draws_for(change)) @ change


def _draws_for(sums: np.ndarray) -> int:
    return max(min(DRAWS, NUMBERS // len(sums)), FEWER) if sums.shape[1] <= 8 else FEWER


def bounds(samples: np.ndarray, groups: int) -> tuple[float, float]:
    """Return the middle 95 % of samples; nan for fewer than two groups."""
    if groups < 2 or np.isnan(samples).all():
        return NAN, NAN
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return float(low), float(high)


Texts = Sequence[tuple[str, str]]  # (group, text)


def distinct_value(texts: Texts, n: int) -> Interval:
    """Return Dist-n of the texts with its 95 % jackknife interval."""
    seen = distinct([text for _, text in texts], n)
    left_out = _without_each(texts, n, sorted({group for group, _ in texts}))
    return _jackknife_interval(seen, left_out, len(texts))


def distinct_difference(one: Texts, other: Texts, n: int) -> PairedDifference:
    """Return Dist-n of `one` minus that of `other`, texts of the same cases."""
    groups = sorted({group for group, _ in one} | {group for group, _ in other})
    seen = distinct([t for _, t in one], n) - distinct([t for _, t in other], n)
    left_out = _without_each(one, n, groups) - _without_each(other, n, groups)
    jackknife = _jackknife_interval(seen, left_out, len(one))
    error = (jackknife.high - jackknife.low) / (2 * 1.96)
    if math.isnan(error):
        p = NAN
    elif error == 0.0:
        p = 1.0 if seen == 0.0 else 0.0
    else:
        p = math.erfc(abs(seen) / error / math.sqrt(2))
    return PairedDifference(jackknife, len(groups), p)


def _without_each(texts: Texts, n: int, groups: Sequence[str]) -> np.ndarray:
    """Return Dist-n without each group's texts, [groups], from one count."""
    counts: dict[str, Counter[tuple[str, ...]]] = {group: Counter() for group in groups}
    for group, text in texts:
        counts[group].update(grams(text, n))
    total: Counter[tuple[str, ...]] = Counter()
    for count in counts.values():
        total.update(count)
    size = total.total()
    values = []
    for group in groups:
        only_here = sum(total[gram] == count for gram, count in counts[group].items())
        rest = size - counts[group].total()
        values.append((len(total) - only_here) / rest if rest else NAN)
    return np.array(values)


def _jackknife_interval(seen: float, left_out: np.ndarray, n: int) -> Interval:
    groups = len(left_out)
    if groups < 2 or np.isnan(left_out).any():
        return Interval(seen, NAN, NAN, n)
    spread = np.square(left_out - left_out.mean()).sum() * (groups - 1) / groups
    error = 1.96 * math.sqrt(spread)
    return Interval(seen, seen - error, seen + error, n)
