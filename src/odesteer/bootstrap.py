"""How sure can we be of a mean, or of a paired difference?"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


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
    """The mean of values (or of paired differences) and its 95 % interval.

    Args:
        values: [n].
        seed: of the draws.
        draws: bootstrap samples.
        groups: one a value; values of one group (one prompt, say) are not independent, so whole
            groups are drawn. None: every value is its own.

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
