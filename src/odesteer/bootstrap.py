"""How sure can we be of a mean, or of a paired difference?"""

from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A mean with its 95 % percentile-bootstrap interval over n values."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: np.ndarray, seed: int = 0, draws: int = 10_000) -> Interval:
    """The mean of values (or of paired differences) and its 95 % interval.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    picks = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high), len(values))
