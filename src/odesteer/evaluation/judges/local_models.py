"""Language models that judges hold in memory.

A judge's model is loaded at its first score and kept, so that judging in pieces does not load it
again. Texts longer than the model's input are not cut but unscored, with the reason.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from odesteer.evaluation.judges.base import EMPTY, Score
from odesteer.models.batching import Rows, batches, pad
from odesteer.models.layers import input_device
from odesteer.models.loading import load_classifier, load_model


# Two of each: the truth and the info judge, read in turns. More would fill a GPU.
@lru_cache(maxsize=2)
def causal(name: str) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer."""
    return load_model(name)


@lru_cache(maxsize=2)
def classifier(name: str) -> tuple[Any, Any]:
    """Load a sequence classification (or reward) model and its tokenizer."""
    return load_classifier(name)


def score_rows(
    generations: Sequence[str],
    row_of: Callable[[int], Sequence[int]],
    longest: int,
    values: Callable[[Rows], Sequence[float]],
) -> list[Score]:
    """Score the generations that are neither empty nor longer than a model reads.

    Args:
        generations: texts.
        row_of: token ids that a model reads for the generation at a place.
        longest: tokens of a row.
        values: one for each row.
    """
    scores: list[Score] = [Score(None, EMPTY)] * len(generations)
    rows: dict[int, Sequence[int]] = {}
    for i, text in enumerate(generations):
        if not text.strip():
            continue
        row = row_of(i)
        if len(row) <= longest:
            rows[i] = row
        else:
            scores[i] = too_long(len(row), longest)
    if rows:
        for i, value in zip(rows, values(list(rows.values())), strict=True):
            scores[i] = Score(float(value))
    return scores


def too_long(size: int, longest: int) -> Score:
    return Score(None, f"too long: {size} tokens of at most {longest}")


def limit(model: Any, tokenizer: Any) -> int:
    """Return the longest input in tokens, as far as model or tokenizer know it.

    RoBERTa has two more positions than it can use, which only its tokenizer knows.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(positions or tokenizer.model_max_length, tokenizer.model_max_length)


def next_token_probabilities(model: Any, rows: Rows, token: int, batch_size: int) -> Tensor:
    """Return P(token) as the next one after each row: [n], float64."""
    results = torch.empty(len(rows), dtype=torch.float64)
    for batch in batches([len(row) for row in rows], rows=batch_size):
        chosen = [rows[i] for i in batch]
        ids, mask = pad(chosen, left=True, device=input_device(model))
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=1) - 1).clamp_min(0),
                logits_to_keep=1,
            ).logits[:, -1]
        results[batch] = logits.double().softmax(dim=-1)[:, token].cpu()
    return results


def class_logits(model: Any, rows: Rows, batch_size: int) -> Tensor:
    """Return the head's outputs for each row: [n, labels], float64."""
    results: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in batches([len(row) for row in rows], rows=batch_size):
        chosen = [rows[i] for i in batch]
        # Decoders take the last token that is not padding for the end of a row. Models use
        # their end-of-sequence token to pad, and chats end in it: pad with a token of no row.
        used = {token for row in chosen for token in row}
        config = model.config.get_text_config()
        before = config.pad_token_id
        fill = before if before is not None and before not in used else _unused(used)
        ids, mask = pad(chosen, fill, left=False, device=input_device(model))
        config.pad_token_id = fill
        try:
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=mask).logits
        finally:
            config.pad_token_id = before
        for i, row in zip(batch, logits.double().cpu(), strict=True):
            results[i] = row
    return torch.stack(results)


def _unused(used: set[int]) -> int:
    return next(token for token in range(len(used) + 1) if token not in used)
