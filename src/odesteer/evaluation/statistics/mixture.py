"""Comparison at equal damage by mixing two doses.

One of them was run at other doses. It is a mixture of two: a share w of its cases at a higher
dose j and the rest at a lower one i, such that the mean damage is the other method's,

    (1 - w) damage_i + w damage_j = damage_other

which is what one would get by tossing a coin for every case. Chords lie below a curve that bends
down, so the mixture counts against the method. w is found anew in every bootstrap sample; the
randomisation test keeps it.
"""

from collections.abc import Sequence

import numpy as np

from odesteer.evaluation.statistics.bootstrap import Interval, randomisation_p
from odesteer.evaluation.statistics.paired_tests import (
    NAN,
    Mean,
    PairedDifference,
    Statistic,
    Units,
    bounds,
    grouped,
    resampled,
    swapped,
)


def common(units: Sequence[Units]) -> list[Units]:
    """What all have a score for, in the order of the last."""
    known = [{k for k, yes in zip(u.keys, u.known, strict=True) if yes} for u in units]
    keys = [key for key in units[-1].keys if all(key in own for own in known)]
    return [u.at(keys) for u in units]


def share(costs: Sequence[np.ndarray]) -> np.ndarray:
    """w of mean damages (lower, upper, other), within 0 and 1; 0 where the two are equal."""
    lower, upper, other = costs
    apart = np.where(upper == lower, 1.0, upper - lower)
    return np.clip((other - lower) / apart, 0.0, 1.0)


def difference(
    statistic: Statistic, units: Sequence[Units], paid: Sequence[Units]
) -> PairedDifference:
    """The mixture of units (lower, upper) minus the other's.

    Args:
        statistic: what differs.
        units: of (lower, upper, other).
        paid: the damage of the same cases of the same three.
    """
    units, paid = common(units), common(paid)
    both = set(units[-1].groups) & set(paid[-1].groups)
    units, paid = ([_within(u, both) for u in some] for some in (units, paid))
    if not both:
        return PairedDifference(Interval(NAN, NAN, NAN, 0), 0, NAN)
    pool = np.concatenate([u.values for u in units])
    sums = [grouped(statistic.parts(u.values, pool), u.groups) for u in units]
    costs = [grouped(Mean().parts(u.values, pool), u.groups) for u in paid]

    def number(totals: np.ndarray) -> np.ndarray:
        return statistic.number(totals, pool)

    def mixed(lower: np.ndarray, upper: np.ndarray, w: np.ndarray) -> np.ndarray:
        return (1 - w) * lower + w * upper

    def weight(totals: Sequence[np.ndarray]) -> np.ndarray:
        return share([Mean().number(each, pool) for each in totals])

    w = weight([each.sum(axis=0) for each in costs])
    mixture = mixed(sums[0], sums[1], w)
    seen = float(number(mixture.sum(axis=0)) - number(sums[2].sum(axis=0)))

    drawn = [resampled(each) for each in sums]
    shares = weight([resampled(each) for each in costs])[: len(drawn[0]), None]
    samples = number(mixed(drawn[0], drawn[1], shares)) - number(drawn[2])
    low, high = bounds(samples, len(both))

    changed = swapped(sums[2] - mixture)
    null = number(mixture.sum(axis=0) + changed) - number(sums[2].sum(axis=0) - changed)
    p = randomisation_p(seen, null, exact=len(null) == 2 ** len(both))
    return PairedDifference(Interval(seen, low, high, len(units[-1].keys)), len(both), p)


def _within(units: Units, groups: set[str]) -> Units:
    keys = [key for key, group in zip(units.keys, units.groups, strict=True) if group in groups]
    return units.at(keys)
