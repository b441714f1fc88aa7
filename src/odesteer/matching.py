"""How strong must a steering be to move activations so far on average?

    find T with mean_i ||a_i(T) - a_i|| = displacement

so that methods can be compared at equal displacement, although their strengths count
different things and a gated method moves only some rows.
"""

from typing import NamedTuple

from torch import Tensor

from odesteer.ode import RotationField, Time, TransportField
from odesteer.steering import Steering

# At strength 1 their map is complete: beyond it they promise nothing.
MAPS = (TransportField, RotationField)
# Rows that have not come so far after this many times the straight path are not on their way.
DETOUR = 5.0


class Match(NamedTuple):
    """A strength, and the mean displacement it has."""

    strength: float
    displacement: float


def mean_displacement(steering: Steering, rows: Tensor, strength: float) -> float:
    """mean_i ||a_i(T) - a_i|| of rows [n, d] at T = strength."""
    moved = steering.with_strength(Time(strength))(rows)
    return float((moved - rows).norm(dim=-1).mean())


def match(
    steering: Steering, rows: Tensor, displacement: float, tolerance: float = 1e-3
) -> Match:
    """The least strength that moves the rows so far, to a relative tolerance.

    Where none does, the least with (nearly) the largest displacement there is: a map is at
    most carried out whole (`MAPS`), and other flows are followed for `DETOUR` times as long
    as their initial speed asks for.

    Args:
        steering: any; its own strength is not used.
        rows: [n, d].
        displacement: > 0.
        tolerance: relative.
    """
    field = steering.field.to(rows.device)
    speed = float(field(rows).norm(dim=-1).mean())
    if speed == 0:
        return Match(0.0, 0.0)
    straight = displacement / speed
    ceiling = 1.0 if isinstance(field, MAPS) else DETOUR * straight
    tried = [Match(0.0, 0.0)]
    # Upwards in small steps: on a sphere the displacement rises and falls again.
    strength = min(ceiling, straight) / 4.0
    while tried[-1].displacement < displacement and tried[-1].strength < ceiling:
        tried.append(Match(strength, mean_displacement(steering, rows, strength)))
        strength = min(ceiling, 1.25 * strength)
    low, high = tried[-2], tried[-1]
    if high.displacement < displacement:
        most = max(tried, key=lambda match: match.displacement).displacement
        return next(m for m in tried if m.displacement >= (1.0 - tolerance) * most)
    while high.displacement > (1.0 + tolerance) * displacement:
        middle = (low.strength + high.strength) / 2.0
        if not low.strength < middle < high.strength:
            break  # neighbours in floating point: the displacement jumps
        half = Match(middle, mean_displacement(steering, rows, middle))
        low, high = (half, high) if half.displacement < displacement else (low, half)
    return high
