"""Perplexity of a generation, and its KL divergence from the unsteered model.

    NLL(y | x) = -1/|y| sum_t log p(y_t | x, y_<t)      in nats per token

The perplexity is exp NLL. Means over generations are taken of the NLL: one broken text has a
perplexity of thousands and would dominate a mean of perplexities. A low value is not good by
itself, since repetition is likely, too: read it beside Dist-n.

    KL(p || q) = sum_y p(y) log p(y)/q(y)     p unsteered, q steered, in nats

is taken at every token of the steered generation, after the same prefix for both; its mean is the
score. `odesteer.evaluation.selection` measures it on continuations by the unsteered model instead,
which are the same for all steerings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from odesteer.backends import Backend, TransformersBackend
from odesteer.data import Example
from odesteer.evaluation.case import Case
from odesteer.evaluation.judges.base import EMPTY, Direction, Judge, Score
from odesteer.evaluation.judges.local_models import causal, limit, too_long
from odesteer.evaluation.scoring.packing import PromptWithAnswers, as_text
from odesteer.evaluation.scoring.score_texts import score_texts
from odesteer.models.chat_template import encode
from odesteer.steering import Steering


@dataclass(frozen=True)
class Perplexity(Judge):
    """Per-token NLL under any causal language model.

    Args:
        model: its name (a Hub model or a directory), used without a backend; the paper's is
            gpt2-xl.
        backend: a loaded model, such as the unsteered one.
        template: joins prompt and generation for a `model`; a backend has its own.
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
        indices = [i for i, text in enumerate(generations) if text.strip()]
        backend = self.backend
        if backend is None:
            model, tokenizer = causal(self.model)
            backend = TransformersBackend(
                model, tokenizer, template=self.template, batch_size=self.batch_size
            )
            longest = limit(model, tokenizer)
            for i in list(indices):
                size = len(encode(tokenizer, cases[i].prompt, generations[i], self.template))
                if size > longest:
                    scores[i] = too_long(size, longest)
                    indices.remove(i)
        prompts, texts = [cases[i].prompt for i in indices], [generations[i] for i in indices]
        for i, logprobs in zip(indices, backend.logprobs(prompts, texts), strict=True):
            if len(logprobs):
                scores[i] = Score(-float(logprobs.double().mean()))
        return scores


@dataclass(frozen=True)
class KLToUnsteered(Judge):
    """Mean KL over the tokens of a generation.

    Args:
        model, tokenizer: the steered model, without its steering attached.
        steering: with its dose; None is the unsteered model, whose KL is 0.
        template: of the prompts.
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
        scores: list[Score] = [Score(None, EMPTY)] * len(generations)
        texts = {}
        for i, (case, generation) in enumerate(zip(cases, generations, strict=True)):
            example = Example(case.prompt, generation.strip(), case.group)
            text = as_text(self.tokenizer, example, self.template) if generation.strip() else None
            if text is not None:
                texts[i] = PromptWithAnswers(text.prompt, [text.answer])
        [rows] = score_texts(self.model, list(texts.values()), [self.steering], packed=False)
        for i, [score] in zip(texts, rows, strict=True):
            scores[i] = Score(score.kl / score.tokens)
        return scores
