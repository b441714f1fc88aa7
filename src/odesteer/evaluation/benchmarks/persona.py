"""Persona: statements that a model would or would not make.

1,000 yes/no questions a trait, half of which are answered "Yes" by who has it. Learnt from are
questions with the answer that shows the trait against the other one; judged is the probability
of that answer (`multiple_choice`: MC1 is the share of questions answered that way, MC2 its mean
probability among the two). No text is generated and no judge is needed.

Source: Perez et al., "Discovering Language Model Behaviors with Model-Written Evaluations",
Findings of ACL 2023, https://arxiv.org/abs/2212.09251
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from odesteer.common.registry import lookup
from odesteer.data import Contrast, Example
from odesteer.evaluation.benchmarks.base import (
    Benchmark,
    Fold,
    Part,
    cross_validation,
    digest,
    hub_rows,
    json_lines,
    locate,
)
from odesteer.evaluation.case import Case

HUB_NAME = "Anthropic/model-written-evals"
# trait: (local file, the Hub's file without its suffix)
TRAITS = {
    "agreeableness": ("persona_agreeableness.jsonl", "persona/agreeableness"),
    "corrigible": (
        "human_corrigible-neutral-HHH.jsonl",
        "advanced-ai-risk/human_generated_evals/corrigible-neutral-HHH",
    ),
}


@dataclass(frozen=True)
class Persona(Benchmark):
    """Questions about one trait.

    Attributes:
        cases: in file order.
    """

    name: ClassVar[str] = "persona"
    source: ClassVar[str] = "https://arxiv.org/abs/2212.09251"
    judges: ClassVar[tuple[str, ...]] = ()
    offline_judges: ClassVar[tuple[str, ...]] = ()
    metrics: ClassVar[tuple[str, ...]] = ("mc1", "mc2")
    instruction: ClassVar[str] = "Answer as a person who has this trait to a high degree would."

    cases: tuple[Case, ...]

    @classmethod
    def load(
        cls,
        data: str | os.PathLike[str] | None = None,
        verify: bool = True,
        trait: str = "agreeableness",
    ) -> "Persona":
        """Load a file in persona/, one of `TRAITS`."""
        path, files = locate(f"persona/{lookup(TRAITS, trait, 'trait')[0]}", data, verify)
        return cls(_cases(json_lines(path)), files=files)

    @classmethod
    def from_hub(
        cls,
        name: str = HUB_NAME,
        trait: str = "agreeableness",
        *,
        revision: str | None = None,
    ) -> "Persona":
        """Load the file of the trait in the data set `name`."""
        file = f"{lookup(TRAITS, trait, 'trait')[1]}.jsonl"
        columns = ["question", "answer_matching_behavior", "answer_not_matching_behavior"]
        rows = list(hub_rows(name, None, "train", columns, revision, file=file))
        return cls(_cases(rows), files={f"{name}:{file}": digest(rows)})

    def folds(self, seed: int = 0) -> tuple[Fold, ...]:
        """Return two folds by question; a fifth of each fit half is for choices."""
        return cross_validation([case.group for case in self.cases], 2, seed)

    def contrast(self, fold: Fold, part: Part = "fit") -> Contrast:
        cases = self.examples(fold, part)
        positive = tuple(Example(case.prompt, case.references[0], case.group) for case in cases)
        negative = tuple(Example(case.prompt, case.distractors[0], case.group) for case in cases)
        return Contrast(positive, negative, self.template)

    def examples(self, fold: Fold, part: Part = "test") -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.group in fold.ids(part))


def _cases(rows: Iterable[Mapping[str, Any]]) -> tuple[Case, ...]:
    cases = []
    for number, row in enumerate(rows):
        keys = ("answer_matching_behavior", "answer_not_matching_behavior")
        # They come with a space; the template decides what stands before an answer.
        shows, hides = (row[key].strip() for key in keys)
        task = ((shows, True), (hides, False))
        id_ = str(number)
        cases.append(
            Case(row["question"], id_, id_, (shows,), (hides,), {"mc1": task, "mc2": task})
        )
    return tuple(cases)
