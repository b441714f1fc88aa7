"""Jackknife intervals of Dist-n.

A bootstrap sample holds texts twice, which Dist-n counts as repetition, so it would be biased
downwards. The error is the jackknife's instead, leaving out one group at a time:

    se^2 = (G - 1) / G * sum_g (D_(-g) - mean_g D_(-g))^2

with the interval D +- 1.96 se and p from the normal distribution. For a difference, D is the
difference of both conditions without the same group.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 11.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from odesteer.evaluation.metrics import distinct, grams
from odesteer.evaluation.statistics.bootstrap import Interval
from odesteer.evaluation.statistics.paired_tests import NAN, PairedDifference

Texts = Sequence[tuple[str, str]]  # (group, text)


def value(texts: Texts, n: int) -> Interval:
    """Return Dist-n of the texts with its 95 % jackknife interval."""
    seen = distinct([text for _, text in texts], n)
    left_out = _without_each(texts, n, sorted({group for group, _ in texts}))
    return _interval(seen, left_out, len(texts))


def difference(one: Texts, other: Texts, n: int) -> PairedDifference:
    """Return Dist-n of `one` minus that of `other`, texts of the same cases."""
    groups = sorted({group for group, _ in one} | {group for group, _ in other})
    seen = distinct([t for _, t in one], n) - distinct([t for _, t in other], n)
    left_out = _without_each(one, n, groups) - _without_each(other, n, groups)
    jackknife = _interval(seen, left_out, len(one))
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


def _interval(seen: float, left_out: np.ndarray, n: int) -> Interval:
    groups = len(left_out)
    if groups < 2 or np.isnan(left_out).any():
        return Interval(seen, NAN, NAN, n)
    spread = np.square(left_out - left_out.mean()).sum() * (groups - 1) / groups
    error = 1.96 * math.sqrt(spread)
    return Interval(seen, seen - error, seen + error, n)
