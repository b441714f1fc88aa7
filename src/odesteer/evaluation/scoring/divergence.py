"""KL divergence and repetition caused by a steering.

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
from torch import Tensor, nn

from odesteer.evaluation.scoring.replay import GivenText, padded, replay
from odesteer.steering import Steering

_BATCH = 16
ROWS = 16  # of the vocabulary's size: few enough to stay in a processor's cache


class Shift(NamedTuple):
    """What a steering changes at every token of one answer: [t] each, in nats."""

    kl: Tensor
    log_ratio: Tensor  # log p - log q of the token that stands there


class Damage(NamedTuple):
    """Damage over all tokens of the continuations; 0, 0 and 1 where nothing changes."""

    kl: float  # mean, nats a token
    kl_95: float  # 95th percentile over tokens
    perplexity_ratio: float
    tokens: int


def continuations(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[GivenText]:
    """What the unsteered model says after each prompt, up to its end-of-sequence token."""
    texts = []
    ends = _end_tokens(model, tokenizer)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), _BATCH):
        batch = [prompts[i] for i in order[start : start + _BATCH]]
        ids, mask = padded(model, batch)
        with torch.no_grad():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                do_sample=False,
                repetition_penalty=1.0,  # some models' own settings are not the model's argmax
                pad_token_id=0 if not ends else min(ends),
            )
        for prompt, row in zip(batch, output[:, ids.shape[1] :].tolist(), strict=True):
            last = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
            texts.append(GivenText(list(prompt), row[: last + 1]))
    return texts


def measure(
    model: nn.Module,
    texts: Sequence[GivenText],
    steerings: Sequence[Steering],
    *,
    vocabulary: int = 2**16,
    progress: Callable[[int], None] | None = None,
) -> list[Damage]:
    """The damage that each steering does to the texts.

    Args:
        model: a transformers causal language model, in eval mode.
        texts: continuations by the unsteered model.
        steerings: each with its dose.
        vocabulary: of the model, which bounds the batch.
        progress: called with the number of texts read since the last call.
    """
    shifts = compare(model, texts, steerings, vocabulary=vocabulary, progress=progress)
    return [_damage(own) for own in shifts]


def compare(
    model: nn.Module,
    texts: Sequence[GivenText],
    steerings: Sequence[Steering],
    *,
    vocabulary: int = 2**16,
    progress: Callable[[int], None] | None = None,
) -> list[list[Shift]]:
    """What each steering changes in each text; arguments are those of `measure`."""
    nothing = Shift(torch.empty(0), torch.empty(0))
    shifts = [[nothing] * len(texts) for _ in steerings]
    for batch, number, unsteered, steered in replay(model, texts, steerings, vocabulary=vocabulary):
        for row, i in enumerate(batch):
            answer = torch.tensor(texts[i].answer, device=steered.logits.device).unsqueeze(-1)
            # The distribution over an answer's token stands one position before it.
            before = slice(-1 - len(answer), -1)
            log_p = unsteered.logits[row, before].float().log_softmax(dim=-1)
            log_q = steered.logits[row, before].float().log_softmax(dim=-1)
            log_ratio = (log_p - log_q).gather(-1, answer).flatten()
            shifts[number][i] = Shift(kl(log_p, log_q).cpu(), log_ratio.cpu())
        if progress is not None:
            progress(len(batch))
    return shifts


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats: [..., vocabulary] -> [...]; rounding never makes it negative."""
    flat = (log_p.reshape(-1, log_p.shape[-1]), log_q.reshape(-1, log_q.shape[-1]))
    # So many rows at a time are four times as fast as all, to the same bits.
    parts = zip(*(rows.split(ROWS) for rows in flat), strict=True)
    sums = [(p.exp() * (p - q)).sum(dim=-1) for p, q in parts]
    return torch.cat(sums).clamp_min(0.0).reshape(log_p.shape[:-1])


def _damage(shifts: Sequence[Shift]) -> Damage:
    d = torch.cat([shift.kl for shift in shifts]).double().numpy()
    ratio = float(torch.cat([shift.log_ratio for shift in shifts]).double().mean().exp())
    return Damage(float(d.mean()), float(np.quantile(d, 0.95)), ratio, len(d))


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    given = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    given = tokenizer.eos_token_id if given is None else given
    if given is None:
        return set()
    return set(given) if isinstance(given, list | tuple) else {int(given)}
