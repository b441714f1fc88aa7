"""TruthfulQA: 817 questions that people answer wrongly, with true and false answers.

Source: Lin et al., "TruthfulQA: Measuring How Models Mimic Human Falsehoods", ACL 2022,
https://aclanthology.org/2022.acl-long.229
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from odesteer.benchmarks.data import data_dir
from odesteer.contrast import Contrast, Example

TEMPLATE = "Q: {prompt}\nA: {response}"  # the paper's


@dataclass(frozen=True)
class TruthfulQA:
    """Every question with its correct and incorrect answers.

    Attributes:
        examples: (example, is it correct) in file order; the group is the question's number.
    """

    examples: tuple[tuple[Example, bool], ...]

    @classmethod
    def load(cls, folder: Path | None = None) -> "TruthfulQA":
        """From TruthfulQA.csv in `folder`, or in the data directory."""
        path = (folder or data_dir("truthfulqa")) / "TruthfulQA.csv"
        examples = []
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file)):
                for column, correct in (("Correct Answers", True), ("Incorrect Answers", False)):
                    answers = filter(None, map(str.strip, row[column].split(";")))
                    examples += [
                        (Example(row["Question"], answer, str(number)), correct)
                        for answer in answers
                    ]
        return cls(tuple(examples))

    def split(self, fit_questions: int, seed: int = 0) -> tuple[Contrast, Contrast]:
        """Contrasts over `fit_questions` questions and over all the others."""
        questions = len({example.group for example, _ in self.examples})
        order = np.random.default_rng(seed).permutation(questions)
        chosen = {str(i) for i in order[:fit_questions]}
        fit = [(e, c) for e, c in self.examples if e.group in chosen]
        test = [(e, c) for e, c in self.examples if e.group not in chosen]
        return _contrast(fit), _contrast(test)


def _contrast(examples: list[tuple[Example, bool]]) -> Contrast:
    return Contrast(
        tuple(example for example, correct in examples if correct),
        tuple(example for example, correct in examples if not correct),
        TEMPLATE,
    )
