"""Jackknife intervals of Dist-n.

A bootstrap sample holds texts twice, which Dist-n counts as repetition: it would be biased
downwards. So its error is the jackknife's, leaving out one group at a time:

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
    """Dist-n of the texts with its 95 % jackknife interval."""
    seen = distinct([text for _, text in texts], n)
    left_out = _without_each(texts, n, sorted({group for group, _ in texts}))
    return _interval(seen, left_out, len(texts))


def difference(one: Texts, other: Texts, n: int) -> PairedDifference:
    """Dist-n of one minus that of the other; texts are those of the same cases."""
    groups = sorted({group for group, _ in one} | {group for group, _ in other})
    seen = distinct([t for _, t in one], n) - distinct([t for _, t in other], n)
    left_out = _without_each(one, n, groups) - _without_each(other, n, groups)
    found = _interval(seen, left_out, len(one))
    error = (found.high - found.low) / (2 * 1.96)
    if math.isnan(error):
        p = NAN
    elif error == 0.0:
        p = 1.0 if seen == 0.0 else 0.0
    else:
        p = math.erfc(abs(seen) / error / math.sqrt(2))
    return PairedDifference(found, len(groups), p)


def _without_each(texts: Texts, n: int, groups: Sequence[str]) -> np.ndarray:
    """Dist-n without each group's texts, [groups]; from counts, not by counting again."""
    own: dict[str, Counter[tuple[str, ...]]] = {group: Counter() for group in groups}
    for group, text in texts:
        own[group].update(grams(text, n))
    total: Counter[tuple[str, ...]] = Counter()
    for counts in own.values():
        total.update(counts)
    size = total.total()
    found = []
    for group in groups:
        only_here = sum(total[gram] == count for gram, count in own[group].items())
        rest = size - own[group].total()
        found.append((len(total) - only_here) / rest if rest else NAN)
    return np.array(found)


def _interval(seen: float, left_out: np.ndarray, n: int) -> Interval:
    groups = len(left_out)
    if groups < 2 or np.isnan(left_out).any():
        return Interval(seen, NAN, NAN, n)
    spread = np.square(left_out - left_out.mean()).sum() * (groups - 1) / groups
    error = 1.96 * math.sqrt(spread)
    return Interval(seen, seen - error, seen + error, n)
