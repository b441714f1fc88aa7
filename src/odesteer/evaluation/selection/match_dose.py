"""Doses matched by mean displacement or by damage.

    find T with mean_i ||a_i(T) - a_i|| = displacement

so that methods can be compared at equal displacement, although their strengths have different
units and a gated method moves only some rows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from odesteer.ode import RotationField, Time, TransportField
from odesteer.steering import Steering

# At strength 1 their map is complete: beyond it they are undefined.
MAPS = (TransportField, RotationField)
# Rows that are not there after this many times the straight path will not get there.
DETOUR = 5.0


class Match(NamedTuple):
    """A strength, and the mean displacement it has."""

    strength: float
    displacement: float


def mean_displacement(
    steering: Steering, rows: Tensor, strength: float, relative: bool = False
) -> float:
    """Return mean_i ||a_i(T) - a_i|| of rows [n, d] at T = strength, or relative to ||a_i||."""
    moved = steering.with_strength(Time(strength))(rows)
    return _mean_length(moved - rows, rows, relative)


def _mean_length(steps: Tensor, rows: Tensor, relative: bool) -> float:
    length = steps.norm(dim=-1)
    return float((length / rows.norm(dim=-1) if relative else length).mean())


def match_displacement(
    steering: Steering,
    rows: Tensor,
    displacement: float,
    tolerance: float = 2e-3,
    relative: bool = False,
) -> Match:
    """Find the least strength with a given mean displacement, to a relative tolerance.

    Where none has it, the least strength that moves the rows (nearly) as far as they go: a map
    is at most carried out whole (`MAPS`), and other flows are followed for `DETOUR` times as long
    as their initial speed needs.

    Args:
        steering: any; its own strength is not used.
        rows: [n, d].
        displacement: > 0.
        tolerance: the displacement is at most (1 + tolerance) times as large.
        relative: displacements are over ||a_i||.
    """
    with torch.no_grad():
        speed = _mean_length(steering.field(rows), rows, relative)
    if speed == 0:
        return Match(0.0, 0.0)
    # A little more than a straight line needs, so that for one this is the answer.
    straight = (1.0 + tolerance / 2.0) * displacement / speed
    ceiling = 1.0 if isinstance(steering.field, MAPS) else DETOUR * straight
    tried = [Match(0.0, 0.0)]
    # In small steps: on a sphere the displacement grows and shrinks again.
    strength = min(ceiling, straight) / 2.0
    while tried[-1].displacement < displacement and tried[-1].strength < ceiling:
        tried.append(Match(strength, mean_displacement(steering, rows, strength, relative)))
        strength = min(ceiling, straight if strength < straight else 1.25 * strength)
    low, high = tried[-2:]
    if high.displacement < displacement:
        most = max(match.displacement for match in tried)
        return next(match for match in tried if match.displacement >= (1.0 - tolerance) * most)
    while high.displacement > (1.0 + tolerance) * displacement:
        middle = (low.strength + high.strength) / 2.0
        if not low.strength < middle < high.strength:
            break  # neighbours in floating point: the displacement jumps there
        half = Match(middle, mean_displacement(steering, rows, middle, relative))
        low, high = (half, high) if half.displacement < displacement else (low, half)
    return high
