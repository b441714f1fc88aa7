"""Bootstrap intervals of means and paired differences, with Holm's correction."""

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
