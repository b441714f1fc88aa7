"""Interface of a judge and its scores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from odesteer.evaluation.case import Case

EMPTY = "empty generation"
Direction = Literal["better", "worse", "neither"]


@dataclass(frozen=True)
class Score:
    """Value, or the reason why there is none: unscored is counted, never zero."""

    value: float | None
    reason: str = ""


@dataclass(frozen=True)
class Judge(ABC):
    """Scorer of generations, one by one.

    `unit` says what a value means, `higher_is` whether more of it is wanted, and `agreement` how
    well it agrees with people or with a reference, measured on how many texts; reports print all
    three beside the judge's numbers.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    higher_is: ClassVar[Direction]
    agreement: ClassVar[str]

    @abstractmethod
    def score(self, cases: Sequence[Case], generations: Sequence[str]) -> list[Score]:
        """Score each generation independently of the others."""


def each_text(
    generations: Sequence[str], values: Callable[[list[str]], Sequence[float]]
) -> list[Score]:
    """Score all texts in one call; empty ones are unscored."""
    indices = [i for i, text in enumerate(generations) if text.strip()]
    scores = [Score(None, EMPTY)] * len(generations)
    if indices:
        for i, value in zip(indices, values([generations[i] for i in indices]), strict=True):
            scores[i] = Score(float(value))
    return scores
