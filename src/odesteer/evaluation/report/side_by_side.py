"""Example texts, unsteered beside steered."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from odesteer.evaluation.report.measures import Measure
from odesteer.evaluation.report.rows import RANDOM, Row, steered, unsteered
from odesteer.evaluation.report.run import Answer

MOST_ROWS, MOST_PAIRS = 24, 6
LONGEST = 1_500  # characters of a text that are shown


@dataclass(frozen=True)
class Pair:
    """One case: what was asked, both answers, and their scores (None: unscored, and why)."""

    prompt: str
    left: str
    right: str
    before: float | None
    after: float | None
    why: str = ""

    @property
    def change(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True)
class Beside:
    """A condition's texts beside the unsteered ones, sorted by how much `score` changed."""

    label: str
    setting: str
    score: str
    pairs: tuple[Pair, ...]
    of: int


def side_by_side(
    rows: Sequence[Row], measure: Measure, pairs: int = MOST_PAIRS
) -> tuple[Beside, ...]:
    """Every steered condition, or one a method where there are many of them.

    Args:
        rows: of a run.
        measure: whose first judge's score sorts.
        pairs: shown of each.
    """
    base, shown = unsteered(rows), _shown(rows)
    if base is None or not measure.judges[0]:
        return ()
    judge = measure.judges[0][0]
    found = []
    for row in shown:
        there = dict(base.beside(row))
        own = [_pair(there[key], answer, judge) for key, answer in row.keyed if key in there]
        # An unscored text is not a small change: it stands after those that are known.
        own.sort(key=lambda p: np.inf if p.change is None else -abs(p.change))
        if own:
            found.append(Beside(row.label, row.setting, judge, tuple(own[:pairs]), len(own)))
    return tuple(found)


def _shown(rows: Sequence[Row]) -> list[Row]:
    own = [row for row in steered(rows) if row.method != RANDOM]
    if len(own) <= MOST_ROWS:
        return own
    chosen = [row for row in own if row.condition.chosen]
    if chosen:
        return chosen
    # One a method: in the middle of what was tried, neither without effect nor broken.
    by_method: dict[str, list[Row]] = {}
    for row in own:
        by_method.setdefault(row.family, []).append(row)
    return [of[len(of) // 2] for of in by_method.values()]


def _pair(before: Answer, after: Answer, judge: str) -> Pair:
    why = "; ".join(
        f"{side}: {answer.reasons.get(judge) or 'not judged'}"
        for side, answer in (("left", before), ("right", after))
        if answer.scores.get(judge) is None
    )
    left, right = _text(before), _text(after)
    scores = before.scores.get(judge), after.scores.get(judge)
    return Pair(_asked(after.prompt), left, right, *scores, why)


def _asked(prompt: Any) -> str:
    """A prompt as text: of chat messages, the last one's."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        prompt = prompt[-1].get("content", "")
    return _short(str(prompt))


def _text(answer: Answer) -> str:
    """The generation, or of given answers the likeliest ones."""
    if answer.generation is not None:
        return _short(answer.generation)
    if not answer.choices:
        return ""
    names = list(answer.choices)
    logprobs = np.array([answer.choices[name] for name in names], dtype=float)
    shares = np.exp(logprobs - np.logaddexp.reduce(logprobs))
    best = np.argsort(-shares, kind="stable")[:3]
    return "\n".join(f"{shares[i]:.0%} {_short(names[i])}" for i in best)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
