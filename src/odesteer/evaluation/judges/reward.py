"""Score of a reward model.

The model reads the prompt and the answer as a chat and gives one number, a log-odds scale whose
zero means nothing: only differences between answers to the same prompt do (P(people prefer a to
b) = sigmoid(r(a) - r(b)), Bradley and Terry).

Source: Liu et al., "Skywork-Reward-V2: Scaling Preference Data Curation via Human-AI Synergy",
2025, https://arxiv.org/abs/2507.01352 (the default model)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from odesteer.evaluation.case import Case
from odesteer.evaluation.judges.base import Direction, Judge, Score
from odesteer.evaluation.judges.local_models import class_logits, classifier, limit, score_rows


@dataclass(frozen=True)
class Reward(Judge):
    """The output of a sequence classification model with one label.

    Args:
        model: its name (a Hub model or a directory).
        batch_size: answers a forward pass.

    Raises:
        ValueError: at the first score, if the model has several labels or no chat template.
    """

    name: ClassVar[str] = "reward"
    unit: ClassVar[str] = "reward (log-odds; only differences on one prompt mean something)"
    higher_is: ClassVar[Direction] = "better"
    agreement: ClassVar[str] = "not measured here: the weights need the Hub and a GPU"

    model: str = "Skywork/Skywork-Reward-V2-Llama-3.1-8B"
    batch_size: int = 8

    def score(self, cases: Sequence[Case], generations: Sequence[str]) -> list[Score]:
        model, tokenizer = classifier(self.model)
        if model.config.num_labels != 1 or tokenizer.chat_template is None:
            raise ValueError(
                f"'{self.model}' is no reward model: it has {model.config.num_labels} labels and "
                f"{'no' if tokenizer.chat_template is None else 'a'} chat template; a reward "
                f"model has one label and a chat template."
            )

        def row(i: int) -> list[int]:
            asked = cases[i].prompt
            turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else [*asked]
            chat = tokenizer.apply_chat_template(
                [*turns, {"role": "assistant", "content": generations[i].strip()}], tokenize=False
            )
            # The template has written the special tokens.
            return list(tokenizer(chat, add_special_tokens=False).input_ids)

        return score_rows(
            generations,
            row,
            limit(model, tokenizer),
            lambda rows: class_logits(model, rows, self.batch_size).flatten().tolist(),
        )
