"""Doses matched by mean displacement or by damage.

    find T with mean_i ||a_i(T) - a_i|| = displacement

so that methods can be compared at equal displacement, although their strengths have different
units and a gated method moves only some rows. Where only the model can measure the damage (KL to
the unsteered next token, say), `match_damage` searches for the dose.
"""

import math
from collections.abc import Callable
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


def match_damage(
    damage: Callable[[float], float],
    value: float,
    start: float,
    power: float = 1.0,
    tolerance: float = 0.03,
    most: int = 12,
) -> tuple[float, float]:
    """Find a dose with a given damage in few measurements; return it and its damage.

    Damage is taken to grow like a power of the dose near the solution: a secant in logarithms,
    bracketed by the doses known to be too small and too large. Where no dose has the damage (a
    map that is complete, a gate that stays shut), the closest one.

    Args:
        damage: of a dose > 0; slow.
        value: the damage to reach, > 0.
        start: the first dose to measure.
        power: how the damage grows with small doses: 2 for KL, 1 for displacement.
        tolerance: relative.
        most: number of measurements.
    """
    tried: list[tuple[float, float]] = []
    dose = start
    for _ in range(most):
        tried.append((dose, damage(dose)))
        closest = min(tried, key=lambda pair: _apart(pair[1], value))
        if abs(closest[1] / value - 1.0) <= tolerance:
            return closest
        dose = _next(sorted(tried), value, power)
        if any(math.isclose(dose, known, rel_tol=1e-6) for known, _ in tried):
            break
    return closest


def _next(tried: list[tuple[float, float]], value: float, power: float) -> float:
    """Return the dose to measure next, from (dose, damage) in order of the dose."""
    # The first crossing counts: damage may fall again far out.
    above = next((i for i, (_, damage) in enumerate(tried) if damage >= value), len(tried))
    low = tried[above - 1] if above > 0 else None
    high = tried[above] if above < len(tried) else None
    if low is not None and high is not None:
        if low[1] <= 0.0:
            return math.sqrt(low[0] * high[0])
        slope = math.log(high[1] / low[1]) / math.log(high[0] / low[0])
        guess = low[0] * (value / low[1]) ** (1.0 / slope) if slope > 0 else 0.0
        # Not at an end, where nothing new would be learnt.
        width = (high[0] / low[0]) ** 0.1
        return min(max(guess, low[0] * width), high[0] / width)
    dose, damage = high if high is not None else tried[-1]
    if damage <= 0.0:
        return 4.0 * dose
    if len(tried) > 1:
        # The measured power, from the two nearest.
        (left, at_left), (right, at_right) = tried[:2] if high is not None else tried[-2:]
        slope = math.log(at_right / at_left) / math.log(right / left) if at_left > 0 else 0.0
        power = slope if slope > 0.1 else power
    return float(dose * min(max((value / damage) ** (1.0 / power), 0.1), 10.0))


def _apart(damage: float, value: float) -> float:
    return abs(math.log(damage / value)) if damage > 0 else math.inf
