"""Sentiment: melancholy or cheerful answers to neutral prompts.

384 pairs of sentences that we wrote, melancholy against bright, on 24 topics, each with a prompt
that asks for neither. They come with the package, and the effect shows with a model of 135M
parameters. Learnt from are bare sentences; folds are by topic, so that no subject is shared.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files as package_files
from typing import Any, ClassVar, Literal

from odesteer.data import Contrast
from odesteer.data.behaviours import read
from odesteer.evaluation.benchmarks.base import Benchmark, Fold, Part, cross_validation
from odesteer.evaluation.case import Case

FILE = "data/behaviours/melancholy.jsonl"
SYSTEM = "You are a person writing to a friend."


def rows() -> list[dict[str, str]]:
    """Return the pairs: topic, prompt, positive (melancholy), negative (bright)."""
    return read("melancholy")


@dataclass(frozen=True)
class Sentiment(Benchmark):
    """The sentences of the package, melancholy as the positive class.

    Args:
        system: what chat models are told before each prompt (an assistant has no moods); None
            asks the bare prompt, as for models without a chat template.
    """

    name: ClassVar[str] = "sentiment"
    source: ClassVar[str] = "written for odesteer"
    judges: ClassVar[tuple[str, ...]] = ("vader", "perplexity")
    offline_judges: ClassVar[tuple[str, ...]] = ("vader", "perplexity")
    metrics: ClassVar[tuple[str, ...]] = ("vader", "perplexity")
    wanted: ClassVar[Mapping[str, Literal["higher", "lower"]]] = {"vader": "lower"}
    sampling: ClassVar[Mapping[str, Any]] = {"max_new_tokens": 32, "temperature": 0.0}
    instruction: ClassVar[str] = "Answer in a gloomy, melancholy mood."

    system: str | None = SYSTEM

    @classmethod
    def load(cls, data: Any = None, verify: bool = True) -> "Sentiment":
        """Load the file of the package; `data` and `verify` do not matter."""
        return cls(files={FILE: hashlib.sha256(_text().encode()).hexdigest()})

    @classmethod
    def from_hub(cls, *, revision: str | None = None) -> "Sentiment":
        """Load the file of the package: the sentences are nowhere else."""
        return cls.load()

    def folds(self, seed: int = 0) -> tuple[Fold, ...]:
        """Return two folds of 12 topics each; two of the fit topics are for choices."""
        return cross_validation(list(dict.fromkeys(row["topic"] for row in rows())), 2, seed)

    def contrast(self, fold: Fold, part: Part = "fit") -> Contrast:
        return Contrast.from_rows(
            [
                {key: value for key, value in row.items() if key != "prompt"}
                for row in rows()
                if row["topic"] in fold.ids(part)
            ]
        )

    def examples(self, fold: Fold, part: Part = "test") -> tuple[Case, ...]:
        return tuple(
            Case(
                self._prompt(row["prompt"]),
                id=str(number),
                group=row["topic"],
                references=(row["positive"],),
                distractors=(row["negative"],),
            )
            for number, row in enumerate(rows())
            if row["topic"] in fold.ids(part)
        )

    def _prompt(self, prompt: str) -> Any:
        if self.system is None:
            return prompt
        return ({"role": "system", "content": self.system}, {"role": "user", "content": prompt})


def _text() -> str:
    return package_files("odesteer").joinpath(FILE).read_text(encoding="utf-8")
