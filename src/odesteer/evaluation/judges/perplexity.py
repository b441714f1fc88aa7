"""Perplexity of a generation after its prompt.

    NLL(y | x) = -1/|y| sum_t log p(y_t | x, y_<t)      in nats a token

exp of it is the perplexity. The mean over generations is taken of the NLL: one broken text has a
perplexity of thousands, and a mean of perplexities would be about that text.

A low value is not good by itself: repetition is likely, too. Read it beside Dist-n.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from odesteer.backends import Backend, TransformersBackend
from odesteer.evaluation.case import Case
from odesteer.evaluation.judges.base import EMPTY, Direction, Judge, Score
from odesteer.evaluation.judges.local_models import causal, limit, too_long
from odesteer.models.chat_template import encode


@dataclass(frozen=True)
class Perplexity(Judge):
    """Per-token NLL under any causal language model.

    Args:
        model: its name (a Hub model or a directory), used where no backend is given; the paper's
            is gpt2-xl.
        backend: a model that is loaded already, such as the unsteered one.
        template: how prompt and generation become one text for a `model`; a backend has its own.
        batch_size: for a `model`.
    """

    name: ClassVar[str] = "perplexity"
    unit: ClassVar[str] = "nats a token given the prompt; exp of it is the perplexity"
    higher_is: ClassVar[Direction] = "worse"
    agreement: ClassVar[str] = "not measured: it is a likelihood, not a judgement"

    model: str = "openai-community/gpt2-xl"
    backend: Backend | None = field(default=None, compare=False)
    template: str = "{prompt} {response}"
    batch_size: int = 16

    def score(self, cases: Sequence[Case], generations: Sequence[str]) -> list[Score]:
        scores = [Score(None, EMPTY)] * len(generations)
        places = [i for i, text in enumerate(generations) if text.strip()]
        backend = self.backend
        if backend is None:
            model, tokenizer = causal(self.model)
            backend = TransformersBackend(
                model, tokenizer, template=self.template, batch_size=self.batch_size
            )
            longest = limit(model, tokenizer)
            for i in list(places):
                size = len(encode(tokenizer, cases[i].prompt, generations[i], self.template))
                if size > longest:
                    scores[i] = too_long(size, longest)
                    places.remove(i)
        asked, said = [cases[i].prompt for i in places], [generations[i] for i in places]
        for i, logprobs in zip(places, backend.logprobs(asked, said), strict=True):
            if len(logprobs):
                scores[i] = Score(-float(logprobs.double().mean()))
        return scores
