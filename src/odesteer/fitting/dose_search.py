"""Doses found by search: of a mean displacement, of a damage, of a KL budget.

    find T with mean_i ||a_i(T) - a_i|| = displacement

so that methods can be compared at equal displacement, although their strengths have different
units and a gated method moves only some rows. Where only the model can measure the damage (KL to
the unsteered next token, say), `match_damage` searches for the dose.

KL(p || q) in nats a token, p unsteered and q steered, says what a steering costs in the same unit
for every method, layer and model. The dose that has it is found by bisection on texts of the
contrast, steered by a direction that was fitted without them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from odesteer.common.catalogue import KL_BUDGETS
from odesteer.extraction.packing import PromptWithAnswers
from odesteer.extraction.score_texts import baselines, score_texts
from odesteer.models.layers import text_config
from odesteer.ode import Angle, Dose, RotationField, Time, TransportField
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


# Texts on which a dose is measured: their KL is a mean over hundreds of tokens.
MEASURED = 48
# Predicted tokens times vocabulary up to which the unsteered pass is kept: 512 MB in float32.
KEPT = 2**27
# Radians: the first to measure, and the one beyond which no text is left whole.
FIRST, LARGEST = 0.1, 3.0


@dataclass(frozen=True)
class KL:
    """Strength as a KL divergence, in nats a token; `fit` turns it into a dose.

    Args:
        budget: > 0, or "light" (0.15), "medium" (0.3), "strong" (0.6).

    Raises:
        ValueError: for another word, or a number that is not positive.

    Example:
        >>> KL("medium").budget
        0.3
    """

    budget: float | str

    def __post_init__(self) -> None:
        number = KL_BUDGETS.get(self.budget) if isinstance(self.budget, str) else float(self.budget)
        if number is None or not (math.isfinite(number) and number > 0):
            raise ValueError(
                f"A KL budget is a positive number of nats a token, or one of "
                f"{', '.join(KL_BUDGETS)}; got {self.budget!r}."
            )
        object.__setattr__(self, "budget", number)

    def __str__(self) -> str:
        return f"KL {self.budget:g}"


class MeasuredDose(NamedTuple):
    """Dose with a KL budget, and what it does to texts that the direction was not fitted on.

    Attributes:
        dose: an `Angle`; for a map that is complete at strength 1, a `Time`.
        kl: KL(unsteered || steered), nats a token.
        margin: what steering adds to log p(wanted) - log p(unwanted), nats a token.
        texts: on how many texts.
    """

    dose: Dose
    kl: float
    margin: float
    texts: int


def find_kl_dose(
    model: Any,
    steering: Steering,
    texts: Sequence[tuple[PromptWithAnswers, bool]],
    budget: float,
    positions: str = "last+generated",
) -> MeasuredDose:
    """Find the dose of a steering at which texts cost `budget` nats of KL a token.

    Args:
        model: a transformers causal language model.
        steering: of any method; its own strength is not used.
        texts: each with whether it is wanted; `MEASURED` of them are used.
        budget: > 0.
        positions: which tokens are steered.
    """
    if len(texts) > MEASURED:
        chosen = np.linspace(0, len(texts) - 1, MEASURED).round().astype(int)
        texts = [texts[i] for i in chosen]
    complete = isinstance(steering.parts[0].field, MAPS)
    kind, most = (Time, 1.0) if complete else (Angle, LARGEST)
    measured: dict[float, MeasuredDose] = {}
    prompts = [text for text, _ in texts]
    predicted = sum(len(answer) for prompt in prompts for answer in prompt.answers)
    unsteered = None
    if predicted * int(text_config(model).vocab_size) <= KEPT:
        # Parts say which blocks lie below; no dose changes that.
        unsteered = list(baselines(model, prompts, [steering], packed=False))

    def damage(size: float) -> float:
        size = min(size, most)
        if size not in measured:
            steered = steering.with_strength(kind(size))
            [rows] = score_texts(
                model, prompts, [steered], packed=False, positions=positions, passes=unsteered
            )
            scores = [answer for row in rows for answer in row]
            kl = sum(each.kl for each in scores) / sum(each.tokens for each in scores)
            changes = [(each.logprob - each.unsteered) / each.tokens for each in scores]
            sides = [
                [c for c, (_, wanted) in zip(changes, texts, strict=True) if wanted is side]
                for side in (True, False)
            ]
            means = [float(np.mean(side)) if side else math.nan for side in sides]
            measured[size] = MeasuredDose(kind(size), kl, means[0] - means[1], len(texts))
        return measured[size].kl

    size, _ = match_damage(damage, budget, start=min(FIRST, most), power=2.0)
    return measured[min(size, most)]
