"""Detection statistics: AUC with intervals, error rates and thresholds.

All statistics are at even priors, as log-odds are: both classes weigh the same, whatever their
numbers of rows.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from odesteer.evaluation.statistics.bootstrap import Interval, drawn, interval
from odesteer.steering.calibration import binary_quality

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
