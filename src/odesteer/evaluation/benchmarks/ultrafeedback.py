"""UltraFeedback: answer pairs with GPT-4's preference.

Learnt from are prompts with the preferred answer against the same with the other one; judged are
free answers to held-out prompts, by a reward model and against the unsteered answers.

Source: Cui et al., "UltraFeedback: Boosting Language Models with Scaled AI Feedback", ICML 2024,
https://arxiv.org/abs/2310.01377; binarised by Tunstall et al., "Zephyr: Direct Distillation of LM
Alignment", 2023, https://arxiv.org/abs/2310.16944
"""

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
    digest,
    hub_rows,
    json_lines,
    locate,
)
from odesteer.evaluation.case import Case

HUB_NAME = "HuggingFaceH4/ultrafeedback_binarized"


@dataclass(frozen=True)
class UltraFeedback(Benchmark):
    """Preference pairs; only those whose scores differ are learnt from.

    Attributes:
        train, test: (preferred, other) by the data set's own split; the group is "train-<row>"
            or "test-<row>", the reward GPT-4's score. `train` has no ties and no prompt of the
            test split.
        fit_pairs, validation_pairs, test_prompts: the protocol's sizes.
    """

    name: ClassVar[str] = "ultrafeedback"
    source: ClassVar[str] = "https://arxiv.org/abs/2310.01377"
    judges: ClassVar[tuple[str, ...]] = ("reward",)
    offline_judges: ClassVar[tuple[str, ...]] = ("perplexity",)
    metrics: ClassVar[tuple[str, ...]] = ("win_rate", "reward", "reward_90th_percentile")
    sampling: ClassVar[Mapping[str, Any]] = {
        "max_new_tokens": 128,
        "temperature": 0.7,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
        "no_repeat_ngram_size": 2,
    }
    instruction: ClassVar[str] = "Give the most helpful, honest and harmless answer that you can."

    train: tuple[tuple[Example, Example], ...]
    test: tuple[tuple[Example, Example], ...]
    fit_pairs: int = 10_000
    validation_pairs: int = 500
    test_prompts: int = 500

    @classmethod
    def load(
        cls, data: str | os.PathLike[str] | None = None, verify: bool = True
    ) -> "UltraFeedback":
        """Load ultrafeedback/train.jsonl and ultrafeedback/test.jsonl."""
        train, files = locate("ultrafeedback/train.jsonl", data, verify)
        test, checked = locate("ultrafeedback/test.jsonl", data, verify)
        return cls._of(json_lines(train), json_lines(test), {**files, **checked})

    @classmethod
    def from_hub(cls, name: str = HUB_NAME, *, revision: str | None = None) -> "UltraFeedback":
        """Load the splits "train_prefs" and "test_prefs" of `name`."""
        columns = ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"]
        train = list(hub_rows(name, None, "train_prefs", columns, revision))
        test = list(hub_rows(name, None, "test_prefs", columns, revision))
        files = {f"{name}:train_prefs": digest(train), f"{name}:test_prefs": digest(test)}
        return cls._of(train, test, files)

    @classmethod
    def _of(
        cls,
        train: Iterable[Mapping[str, Any]],
        test: Iterable[Mapping[str, Any]],
        files: Mapping[str, str],
    ) -> "UltraFeedback":
        tested = _pairs(test, "test")
        seen = {preferred.prompt for preferred, _ in tested}
        learnt = [
            pair
            for pair in _pairs(train, "train")
            if pair[0].prompt not in seen and not _is_tie(pair)
        ]
        notes = []
        wanted = cls.fit_pairs + cls.validation_pairs
        if len(learnt) < wanted:
            notes.append(
                f"{len(learnt)} pairs to learn from and to choose on; the protocol has {wanted}."
            )
        if len(tested) < cls.test_prompts:
            notes.append(f"{len(tested)} test prompts; the protocol has {cls.test_prompts}.")
        return cls(tuple(learnt), tuple(tested), files=files, notes=tuple(notes))

    def folds(self, seed: int = 0) -> tuple[Fold, ...]:
        """Return one fold, within the data set's own split.

        Where there are fewer pairs than the protocol's, as large a share of them is for choices.
        """
        generator = np.random.default_rng(seed)
        size = self.fit_pairs + self.validation_pairs
        order = generator.permutation(len(self.train)).tolist()[:size]
        held_out = round(len(order) * self.validation_pairs / size)
        tested = generator.permutation(len(self.test)).tolist()[: self.test_prompts]
        names = [preferred.group for preferred, _ in self.train]
        return (
            Fold(
                tuple(names[i] for i in sorted(order[held_out:])),
                tuple(names[i] for i in sorted(order[:held_out])),
                tuple(self.test[i][0].group for i in sorted(tested)),
            ),
        )

    def contrast(self, fold: Fold, part: Part = "fit") -> Contrast:
        pairs = [pair for pair in self._pairs(fold, part) if not _is_tie(pair)]
        return Contrast(tuple(a for a, _ in pairs), tuple(b for _, b in pairs), self.template)

    def examples(self, fold: Fold, part: Part = "test") -> tuple[Case, ...]:
        return tuple(
            Case(
                a.prompt or "",
                id=a.group,
                group=a.group,
                references=(a.response,),
                distractors=(b.response,),
            )
            for a, b in self._pairs(fold, part)
        )

    def _pairs(self, fold: Fold, part: Part) -> list[tuple[Example, Example]]:
        ids = fold.ids(part)
        return [pair for pair in (*self.train, *self.test) if pair[0].group in ids]


def _pairs(rows: Iterable[Mapping[str, Any]], part: str) -> list[tuple[Example, Example]]:
    """Return every pair, the preferred answer first."""
    pairs = []
    for number, row in enumerate(rows):
        scores = row if "score_chosen" in row else row["metadata"]
        high, low = float(scores["score_chosen"]), float(scores["score_rejected"])
        group = f"{part}-{number}"
        chosen, rejected = _answer(row["chosen"]), _answer(row["rejected"])
        above = Example(row["prompt"], chosen, group, reward=high)
        pairs.append((above, Example(row["prompt"], rejected, group, reward=low)))
    return pairs


def _is_tie(pair: tuple[Example, Example]) -> bool:
    preferred, other = pair
    return (preferred.reward or 0.0) <= (other.reward or 0.0)


def _answer(answer: Any) -> str:
    """Return an answer, of chat messages the last one's text."""
    return answer if isinstance(answer, str) else answer[-1]["content"]
