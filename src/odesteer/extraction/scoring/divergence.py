"""Damage of a steering: KL and perplexity along what the unsteered model says.

The unsteered model continues neutral prompts greedily; then both models read the same
continuations, and at each token

    KL(p || q) = sum_y p(y) log p(y)/q(y)      p unsteered, q steered, in nats

The mean KL says how much changes on the whole; its 95th percentile says how bad the worst
tokens are, which is where fluency breaks. The perplexity ratio exp(mean(log p - log q)) over
the tokens of the continuation says how much less likely the model finds its own words.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from odesteer.extraction.scoring.packing import GivenText, PromptWithAnswers
from odesteer.extraction.scoring.score_texts import TokenScores, score_tokens
from odesteer.models.batching import batches, end_tokens, pad
from odesteer.models.layers import input_device
from odesteer.steering import Steering

_BATCH = 16


class Damage(NamedTuple):
    """Damage over all tokens of the continuations; 0, 0 and 1 where nothing changes."""

    kl: float  # mean, nats a token
    kl_95: float  # 95th percentile over tokens
    perplexity_ratio: float
    tokens: int


def continuations(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[GivenText]:
    """Continue each prompt greedily, unsteered, up to the end-of-sequence token.

    Returns:
        Texts in the order of their prompts' lengths.
    """
    texts = []
    ends = end_tokens(model, tokenizer)
    for batch in batches([len(prompt) for prompt in prompts], rows=_BATCH):
        rows = [list(prompts[i]) for i in batch]
        ids, mask = pad(rows, left=True, device=input_device(model))
        with torch.no_grad():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                do_sample=False,
                repetition_penalty=1.0,  # some models' own settings are not the model's argmax
                pad_token_id=0 if not ends else min(ends),
            )
        for prompt, row in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
            last = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
            texts.append(GivenText(prompt, row[: last + 1]))
    return texts


def measure(
    model: nn.Module,
    texts: Sequence[GivenText],
    steerings: Sequence[Steering],
    progress: Callable[[int], None] | None = None,
) -> list[Damage]:
    """Measure the damage that each steering does to the texts.

    Args:
        model: a transformers causal language model, in eval mode.
        texts: continuations by the unsteered model.
        steerings: each with its dose.
        progress: called with the number of texts read since the last call.
    """
    return [_damage(scores) for scores in compare(model, texts, steerings, progress)]


def compare(
    model: nn.Module,
    texts: Sequence[GivenText],
    steerings: Sequence[Steering],
    progress: Callable[[int], None] | None = None,
) -> list[list[TokenScores]]:
    """Score each text under each steering; arguments are those of `measure`."""
    rows = [PromptWithAnswers(text.prompt, [text.answer]) for text in texts]
    results = score_tokens(model, rows, steerings, packed=False, progress=progress)
    return [[scores for [scores] in row] for row in results]


def _damage(scores: Sequence[TokenScores]) -> Damage:
    kl = torch.cat([tokens.kl for tokens in scores]).double().numpy()
    log_ratio = torch.cat([tokens.unsteered - tokens.logprob for tokens in scores]).double()
    ratio = float(log_ratio.mean().exp())
    return Damage(float(kl.mean()), float(np.quantile(kl, 0.95)), ratio, len(kl))
