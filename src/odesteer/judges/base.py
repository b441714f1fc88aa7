"""What does a judge say about a generation?"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Score:
    """A value, or the reason why there is none: unscored is counted, never zero."""

    value: float | None
    reason: str = ""


class Judge(ABC):
    """Scores generations one by one. `unit` says what a value means."""

    name: ClassVar[str]
    unit: ClassVar[str]

    @abstractmethod
    def score(self, prompts: Sequence[str], generations: Sequence[str]) -> list[Score]:
        """One score a generation."""
