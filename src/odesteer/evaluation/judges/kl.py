"""KL divergence from the unsteered model along a steered text.

    KL(p || q) = sum_y p(y) log p(y)/q(y)     p unsteered, q steered, in nats

at every token of the generation, with everything before it the same for both; their mean is the
generation's score. `odesteer.evaluation.selection` measures the same on continuations by the
unsteered model,
which are the same for all steerings; here it is along what the steered model itself said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from odesteer.data import Example
from odesteer.evaluation.case import Case
from odesteer.evaluation.judges.base import EMPTY, Direction, Judge, Score
from odesteer.steering import Steering


@dataclass(frozen=True)
class KLToUnsteered(Judge):
    """Mean KL over the tokens of a generation.

    Args:
        model, tokenizer: what was steered, without its steering attached.
        steering: with its dose; None is the unsteered model, whose KL is 0.
        template: how prompts became text.
    """

    name: ClassVar[str] = "kl"
    unit: ClassVar[str] = "KL(unsteered || steered), nats a token"
    higher_is: ClassVar[Direction] = "worse"
    agreement: ClassVar[str] = "not measured: it is a divergence, not a judgement"

    model: Any
    tokenizer: Any
    steering: Steering | None
    template: str = "auto"

    def score(self, cases: Sequence[Case], generations: Sequence[str]) -> list[Score]:
        from odesteer.evaluation.scoring.divergence import compare
        from odesteer.evaluation.scoring.replay import as_text

        texts = {}
        for i, (case, said) in enumerate(zip(cases, generations, strict=True)):
            example = Example(case.prompt, said.strip(), case.group)
            text = as_text(self.tokenizer, example, self.template) if said.strip() else None
            if text is not None:
                texts[i] = text
        scores: list[Score] = [Score(None, EMPTY)] * len(generations)
        if self.steering is None:
            shifts = [0.0] * len(texts)
        else:
            vocabulary = self.model.config.get_text_config().vocab_size
            found = compare(
                self.model, list(texts.values()), [self.steering], vocabulary=vocabulary
            )
            shifts = [float(shift.kl.double().mean()) for shift in found[0]]
        for i, value in zip(texts, shifts, strict=True):
            scores[i] = Score(value)
        return scores
