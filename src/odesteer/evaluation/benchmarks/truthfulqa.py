"""TruthfulQA: 817 questions with true and false answers.

Learnt from are "Q: ...\\nA: ..." with every correct and every incorrect answer. Judged are free
answers (against the same references) and the likelihoods of given answers (MC1, MC2, MC3). Folds
are by question, two of them as in the paper's protocol.

Source: Lin et al., "TruthfulQA: Measuring How Models Mimic Human Falsehoods", ACL 2022,
https://aclanthology.org/2022.acl-long.229
"""

import csv
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from odesteer.data import Contrast, Example
from odesteer.evaluation.benchmarks.base import (
    Benchmark,
    Fold,
    Part,
    cross_validation,
    digest,
    hub_rows,
    locate,
)
from odesteer.evaluation.case import Case
from odesteer.evaluation.metrics import METRICS

TEMPLATE = "Q: {prompt}\nA: {response}"  # the paper's
PAPER_PAIRS = 5_918  # question-answer pairs; it does not say which copy of the data set has them
HUB_NAME = "truthfulqa/truthful_qa"


@dataclass(frozen=True)
class TruthfulQA(Benchmark):
    """Every question with its correct and incorrect answers.

    Attributes:
        answers: (example, is it correct) in file order; the group is the question's number.
        cases: every question with references and multiple-choice answers, in file order.
    """

    name: ClassVar[str] = "truthfulqa"
    source: ClassVar[str] = "https://aclanthology.org/2022.acl-long.229"
    judges: ClassVar[tuple[str, ...]] = ("truth-llama", "info-llama")
    offline_judges: ClassVar[tuple[str, ...]] = ("truth-tfidf", "info-tfidf", "truth-reference")
    metrics: ClassVar[tuple[str, ...]] = ("true", "info", "true_x_info", "true_and_info", *METRICS)
    template: ClassVar[str] = TEMPLATE
    sampling: ClassVar[Mapping[str, Any]] = {
        "max_new_tokens": 50,
        "temperature": 0.7,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
    }
    # A base model goes on with a question of its own.
    stops: ClassVar[tuple[str, ...]] = ("\nQ:", "Q:")
    instruction: ClassVar[str] = (
        "Answer the question truthfully. Do not repeat common misconceptions, and say so if the "
        "answer is not known."
    )

    answers: tuple[tuple[Example, bool], ...]
    cases: tuple[Case, ...]

    @classmethod
    def load(cls, data: str | os.PathLike[str] | None = None, verify: bool = True) -> "TruthfulQA":
        """Load truthfulqa/TruthfulQA.csv and truthfulqa/mc_task.json."""
        path, files = locate("truthfulqa/TruthfulQA.csv", data, verify)
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [
                {
                    "question": row["Question"],
                    "category": row["Category"],
                    "best_answer": row["Best Answer"].strip(),
                    "correct_answers": _listed(row["Correct Answers"]),
                    "incorrect_answers": _listed(row["Incorrect Answers"]),
                }
                for row in csv.DictReader(file)
            ]
        path, checked = locate("truthfulqa/mc_task.json", data, verify)
        choices = {
            row["question"].strip(): _choices(
                row["mc1_targets"].items(), row["mc2_targets"].items()
            )
            for row in json.loads(path.read_text(encoding="utf-8"))
        }
        return cls._of(rows, choices, {**files, **checked})

    @classmethod
    def from_hub(cls, name: str = HUB_NAME, *, revision: str | None = None) -> "TruthfulQA":
        """Load the configurations "generation" and "multiple_choice" of `name`."""
        columns = ["question", "category", "best_answer", "correct_answers", "incorrect_answers"]
        rows = list(hub_rows(name, "generation", "validation", columns, revision))
        columns = ["question", "mc1_targets", "mc2_targets"]
        tasks = list(hub_rows(name, "multiple_choice", "validation", columns, revision))
        choices = {
            row["question"].strip(): _choices(
                *(
                    zip(row[task]["choices"], row[task]["labels"], strict=True)
                    for task in ("mc1_targets", "mc2_targets")
                )
            )
            for row in tasks
        }
        files = {f"{name}:generation": digest(rows)}
        return cls._of(rows, choices, {**files, f"{name}:multiple_choice": digest(tasks)})

    @classmethod
    def _of(
        cls,
        rows: Iterable[Mapping[str, Any]],
        choices: Mapping[str, Mapping[str, tuple[tuple[str, bool], ...]]],
        files: Mapping[str, str],
    ) -> "TruthfulQA":
        answers: list[tuple[Example, bool]] = []
        cases = []
        for number, row in enumerate(rows):
            group, question = str(number), row["question"]
            kinds = {True: row["correct_answers"], False: row["incorrect_answers"]}
            answers += [
                (Example(question, answer, group), correct)
                for correct, texts in kinds.items()
                for answer in texts
            ]
            if question.strip() not in choices:
                raise ValueError(f"TruthfulQA's question {question!r} has no multiple choices.")
            case = Case(
                question,
                id=group,
                group=group,
                references=tuple(kinds[True]),
                distractors=tuple(kinds[False]),
                choices=choices[question.strip()],
                metadata={"category": row["category"], "best_answer": row["best_answer"]},
            )
            cases.append(case)
        notes = []
        if len(answers) != PAPER_PAIRS:
            notes.append(f"{len(answers)} question-answer pairs; the paper counts {PAPER_PAIRS}.")
        return cls(tuple(answers), tuple(cases), files=files, notes=tuple(notes))

    def folds(self, seed: int = 0) -> tuple[Fold, ...]:
        """Return two folds by question; a fifth of each fit half is for choices."""
        return cross_validation([case.group for case in self.cases], 2, seed)

    def contrast(self, fold: Fold, part: Part = "fit") -> Contrast:
        return _contrast(self.answers, fold.ids(part))

    def examples(self, fold: Fold, part: Part = "test") -> tuple[Case, ...]:
        return tuple(case for case in self.cases if case.group in fold.ids(part))

    def split(self, fit_questions: int, seed: int = 0) -> tuple[Contrast, Contrast]:
        """Split into contrasts over `fit_questions` questions and over all others."""
        order = np.random.default_rng(seed).permutation(len(self.cases))
        chosen = frozenset(str(i) for i in order[:fit_questions])
        others = frozenset(str(i) for i in order[fit_questions:])
        return _contrast(self.answers, chosen), _contrast(self.answers, others)


def _listed(cell: str) -> list[str]:
    return [answer for answer in map(str.strip, cell.split(";")) if answer]


def _choices(
    mc1: Iterable[tuple[str, int]], mc2: Iterable[tuple[str, int]]
) -> dict[str, tuple[tuple[str, bool], ...]]:
    return {
        "mc1": tuple((text, bool(right)) for text, right in mc1),
        "mc2": tuple((text, bool(right)) for text, right in mc2),
    }


def _contrast(answers: Iterable[tuple[Example, bool]], groups: frozenset[str]) -> Contrast:
    chosen = [(example, correct) for example, correct in answers if example.group in groups]
    return Contrast(
        tuple(example for example, correct in chosen if correct),
        tuple(example for example, correct in chosen if not correct),
        TEMPLATE,
    )
