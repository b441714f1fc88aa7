"""KL between next-token distributions under a steering and its exported vector.

    KL(p || q) = sum_y p(y) log p(y)/q(y)      p: the next token under the flow, in nats

with q under the vector, and, for a scale, with q of the unsteered model. A vector that is as far
from the flow as no steering at all stands for nothing, however well it agrees in direction.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from odesteer.data import Example
from odesteer.evaluation.scoring.divergence import kl
from odesteer.evaluation.scoring.replay import GivenText, as_texts, replay
from odesteer.integrations.control_vectors.vectors import Vectors
from odesteer.steering import Steering


class Divergence(NamedTuple):
    """Mean KL from the flow's next token, nats a token; both are 0 where nothing is steered.

    Attributes:
        vector: KL(flow || vector).
        unsteered: KL(flow || unsteered).
        tokens: how many distributions are compared.
    """

    vector: float
    unsteered: float
    tokens: int

    def __str__(self) -> str:
        return (
            f"KL(flow || vector) {self.vector:.3g}, KL(flow || unsteered) {self.unsteered:.3g} "
            f"nats a token, {self.tokens} tokens"
        )


def divergence(
    model: Any,
    tokenizer: Any,
    steering: Steering,
    vectors: Vectors,
    examples: Sequence[Example],
    template: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Divergence:
    """How far what a vector makes the model say is from what the flow does.

    Both steer the last token of each prompt and all that follow, of the same texts; the second
    half of a text without a prompt is what follows.

    Args:
        model: a transformers causal language model, in eval mode.
        tokenizer: its own.
        steering: the flow, at its dose.
        vectors: what `flattened` made of it.
        examples: held out from fitting.
        template: how they become texts, see `odesteer.models.chat_template`.
        progress: called with how many texts are read, and of how many.

    Raises:
        ValueError: if no text has two tokens.
    """
    texts: list[GivenText] = [text for text, _ in as_texts(tokenizer, examples, template)]
    if not texts:
        raise ValueError(f"No next token can be compared: of {len(examples)} texts, none has two.")
    vocabulary = model.config.get_text_config().vocab_size
    to_vector, to_unsteered, read = [], [], 0
    flows: list[torch.Tensor] = []
    # Of every batch the flow comes first, then the vector.
    both = [steering, vectors.steering()]
    for batch, number, unsteered, steered in replay(model, texts, both, vocabulary=vocabulary):
        if number == 0:
            flows = []
        for row, i in enumerate(batch):
            # The distribution over an answer's token stands one position before it.
            before = slice(-1 - len(texts[i].answer), -1)
            log_q = steered.logits[row, before].float().log_softmax(dim=-1)
            if number == 0:
                flows.append(log_q)
                plain = unsteered.logits[row, before].float().log_softmax(dim=-1)
                to_unsteered.append(kl(log_q, plain).cpu())
            else:
                to_vector.append(kl(flows[row], log_q).cpu())
        if number == 1:
            read += len(batch)
            if progress is not None:
                progress(read, len(texts))
    near, far = torch.cat(to_vector).double(), torch.cat(to_unsteered).double()
    return Divergence(float(near.mean()), float(far.mean()), len(near))
