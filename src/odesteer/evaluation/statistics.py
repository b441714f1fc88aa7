"""Bootstrap intervals, paired differences, randomisation tests and detection statistics.

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

Detection statistics (AUC, error rates, thresholds) are at even priors, as log-odds are: both
classes weigh the same, whatever their numbers of rows.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from odesteer.evaluation.metrics import distinct, grams
from odesteer.steering.calibration import binary_quality


class Interval(NamedTuple):
    """A mean with its 95 % percentile-bootstrap interval over n values."""

    mean: float
    low: float
    high: float
    n: int


def interval(
    values: np.ndarray,
    seed: int = 0,
    draws: int = 10_000,
    groups: Sequence[Any] | np.ndarray | None = None,
) -> Interval:
    """Return the mean of values (or of paired differences) with its 95 % interval.

    Args:
        values: [n].
        seed: of the draws.
        draws: bootstrap samples.
        groups: one per value; values of one group (one prompt, say) are not independent, so whole
            groups are drawn. None: every value is its own group.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; Field and
    Welsh, "Bootstrapping Clustered Data", JRSS B 69, 2007, for groups.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    sums, counts = values, np.ones(len(values))
    if groups is not None:
        _, of_row = np.unique(np.asarray(groups).astype(str), return_inverse=True)
        sums, counts = np.bincount(of_row, values), np.bincount(of_row).astype(float)
    picks = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def drawn(groups: int, seed: int = 0, draws: int = 10_000) -> np.ndarray:
    """Draw bootstrap samples: the count of each group in each, [draws, groups].

    A statistic of sums over groups, parts [groups, k], is resampled as statistic(drawn @ parts).
    """
    picks = np.random.default_rng(seed).integers(groups, size=(draws, groups))
    flat = picks + groups * np.arange(draws)[:, None]
    counts = np.bincount(flat.ravel(), minlength=draws * groups)
    return counts.reshape(draws, groups).astype(float)


def swaps(groups: int, seed: int = 0, draws: int = 10_000) -> np.ndarray:
    """Draw permutations: 1 where a group's two conditions swap, else 0, [draws, groups].

    All of them, once each, if there are no more than `draws`; else random ones. If the condition
    makes no difference, the observation is as likely as any of them.

    Source: Fisher, "The Design of Experiments", 1935, section 21; Edgington and Onghena,
    "Randomization Tests", 4th edition, 2007, chapter 5.
    """
    if 2**groups <= draws:
        return (np.arange(2**groups)[:, None] >> np.arange(groups) & 1).astype(float)
    return np.random.default_rng(seed).integers(2, size=(draws, groups)).astype(float)


def randomisation_p(seen: float, swapped: np.ndarray, exact: bool) -> float:
    """Return the two-sided p-value of a randomisation test.

    Args:
        seen: the observed difference.
        swapped: the difference under each of `swaps`, [draws].
        exact: whether `swaps` were all permutations, the observed one among them; else the
            observation counts as one more draw, so that p is never zero.
    """
    # Sums in another order differ in their last bits; a tie is a tie.
    as_large = int((np.abs(swapped) >= abs(seen) * (1 - 1e-9) - 1e-15).sum())
    return as_large / len(swapped) if exact else (as_large + 1) / (len(swapped) + 1)


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for their number: rejecting up to 0.05 errs anywhere with P <= 0.05.

    Source: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal
    of Statistics 6, 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min((len(p) - rank) * p[i], 1.0))
        adjusted[i] = largest
    return adjusted


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


BINS = 10
_CHUNK = 2_000_000  # numbers in a chunk of bootstrap samples


class Detection(NamedTuple):
    """Quality of log-odds on rows with labels, each with a 95 % bootstrap interval.

    `auc`: chance that a positive ranks above a negative. `log_loss`: mean -log P(label), in nats;
    chance is 0.693. `ece`: expected calibration error over ten bins of equal count; of a
    bootstrap sample it is a little larger than of the rows themselves, so its interval lies high.
    `positive` and `negative`: rows. `groups`: of which whole ones were drawn.
    """

    auc: Interval
    log_loss: Interval
    ece: Interval
    positive: int
    negative: int
    groups: int


class Threshold(NamedTuple):
    """Level of a detector with a given false-positive rate.

    A row is called positive if its log-odds are above `log_odds`. `false_positives` and
    `recall`: the shares of negatives and of positives that are, with 95 % intervals for this
    threshold as it is; it was chosen on the very negatives that `false_positives` counts.
    """

    log_odds: float
    probability: float
    false_positives: Interval
    recall: Interval


def detection(
    log_odds: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
    draws: int = 2_000,
) -> Detection:
    """Measure how well log-odds [n] tell labels [n], 1 and 0.

    Args:
        log_odds: [n].
        labels: [n].
        groups: one per row; rows of one group (answers to one prompt, say) are not independent,
            so whole groups are drawn. None: every row is its own group.
        seed: of the draws.
        draws: bootstrap samples.

    Raises:
        ValueError: if a class has no row.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    labels = _both_classes(labels)
    names = list(range(len(labels))) if groups is None else [str(group) for group in groups]
    _, of_row = np.unique(np.asarray(names), return_inverse=True)
    count = int(of_row.max()) + 1
    quality = binary_quality(log_odds, labels, balanced=True)
    samples = drawn(count, seed, draws)
    size = max(_CHUNK // len(labels), 1)
    chunks = (samples[i : i + size][:, of_row] for i in range(0, draws, size))
    # A sample may lack a class; it says nothing, and is left out.
    resampled = np.concatenate(list(_statistics(np.asarray(log_odds, dtype=float), labels, chunks)))
    low, high = np.nanquantile(resampled, [0.025, 0.975], axis=0)
    auc, log_loss, ece = (
        Interval(value, float(low[i]), float(high[i]), len(labels))
        for i, value in enumerate(quality[:3])
    )
    positive = int(labels.sum())
    return Detection(auc, log_loss, ece, positive, len(labels) - positive, count)


def threshold(
    log_odds: np.ndarray,
    labels: np.ndarray,
    false_positives: float = 0.05,
    groups: Sequence[Any] | None = None,
    seed: int = 0,
) -> Threshold:
    """Return the lowest threshold that calls at most a share of negatives positive.

    Args:
        log_odds: [n].
        labels: [n], 1 and 0.
        false_positives: the share, between 0 and 1.
        groups, seed: as of `detection`.

    Raises:
        ValueError: if a class has no row, or there are too few negatives to measure the share.
    """
    if not 0.0 < false_positives < 1.0:
        raise ValueError(
            f"A false-positive rate is between 0 and 1 (exclusive); got {false_positives}."
        )
    labels = _both_classes(labels)
    values = np.asarray(log_odds, dtype=float)
    negatives = np.sort(values[labels == 0])[::-1]
    # As a share of 20 rows, 0.15 is a little less than 3.
    allowed = math.floor(false_positives * len(negatives) + 1e-9)
    if not allowed:
        raise ValueError(
            f"A false-positive rate of {false_positives} can be measured on "
            f"{math.ceil(1 / false_positives)} negatives or more; got {len(negatives)}."
        )
    level = float(negatives[allowed])
    above = (values > level).astype(float)

    def share(label: int) -> Interval:
        rows = labels == label
        names = None if groups is None else [str(g) for g, r in zip(groups, rows, strict=True) if r]
        return interval(above[rows], seed, groups=names)

    return Threshold(level, _sigmoid(level), share(0), share(1))


def _statistics(
    log_odds: np.ndarray, labels: np.ndarray, chunks: Iterator[np.ndarray]
) -> Iterator[np.ndarray]:
    """Yield AUC, log-loss and calibration error of bootstrap samples, [samples, 3] per chunk.

    Bins are those of the rows themselves, not recomputed for each sample.
    """
    order = np.argsort(log_odds, kind="stable")
    log_odds, labels = log_odds[order], labels[order]
    positive, negative = labels == 1, labels == 0
    losses = np.logaddexp(0.0, np.where(positive, -log_odds, log_odds))
    probability = 1.0 / (1.0 + np.exp(-np.clip(log_odds, -500, 500)))
    _, value_of = np.unique(log_odds, return_inverse=True)
    starts = np.flatnonzero(np.diff(value_of, prepend=-1))
    bins = [part[0] for part in np.array_split(np.arange(len(order)), min(BINS, len(order)))]
    for unordered in chunks:
        times = unordered[:, order]
        n, m = times @ positive, times @ negative
        with np.errstate(divide="ignore", invalid="ignore"):
            ups = np.add.reduceat(times * positive, starts, axis=1)
            downs = np.add.reduceat(times * negative, starts, axis=1)
            # Of equal values a positive is above half of the negatives.
            below = np.cumsum(downs, axis=1) - 0.5 * downs
            auc = (ups * below).sum(axis=1) / (n * m)
            weights = times * np.where(positive, 0.5 / n[:, None], 0.5 / m[:, None])
            log_loss = weights @ losses
            gaps = np.add.reduceat(weights * (probability - labels), bins, axis=1)
        yield np.stack([auc, log_loss, np.abs(gaps).sum(axis=1)], axis=1)


def _both_classes(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels, dtype=float)
    if set(np.unique(labels)) != {0.0, 1.0}:
        raise ValueError(
            "A detector is measured on rows of both classes, labelled 1 and 0; got the labels "
            f"{', '.join(f'{label:g}' for label in np.unique(labels)) or 'of no row'}."
        )
    return labels


def _sigmoid(value: float) -> float:
    return float(np.exp(-np.logaddexp(0.0, -value)))
