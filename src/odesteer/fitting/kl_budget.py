"""Doses given as a KL divergence from the unsteered model.

KL(p || q) in nats a token, p unsteered and q steered, says what a steering costs in the same unit
for every method, layer and model. The dose that has it is found by bisection on texts of the
contrast, steered by a direction that was fitted without them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from odesteer.common.catalogue import KL_BUDGETS
from odesteer.extraction.scoring.packing import PromptWithAnswers
from odesteer.extraction.scoring.score_texts import baselines, score_texts
from odesteer.fitting.match_dose import MAPS, match_damage
from odesteer.models.layers import text_config
from odesteer.ode import Angle, Dose, Time
from odesteer.steering import Steering

# Texts on which a dose is measured: their KL is a mean over hundreds of tokens.
MEASURED = 48
# Predicted tokens times vocabulary up to which the unsteered pass is kept: 512 MB in float32.
KEPT = 2**27
# Radians; beyond it no text is left whole.
LARGEST = 3.0


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
    start: float = 0.1,
) -> MeasuredDose:
    """Find the dose of a steering at which texts cost `budget` nats of KL a token.

    Args:
        model: a transformers causal language model.
        steering: of any method; its own strength is not used.
        texts: each with whether it is wanted; `MEASURED` of them are used.
        budget: > 0.
        positions: which tokens are steered.
        start: the first angle to measure.
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

    size, _ = match_damage(damage, budget, start=min(start, most), power=2.0)
    return measured[min(size, most)]
