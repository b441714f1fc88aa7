"""Batches of rows of similar length, padding, and end-of-sequence tokens."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Rows = Sequence[Sequence[int]]


def batches(
    lengths: Sequence[int],
    *,
    rows: int | None = None,
    tokens: int | None = None,
    weights: Sequence[int] | None = None,
    weight: int = 0,
    longest_first: bool = False,
) -> Iterator[list[int]]:
    """Yield indices of rows of similar length, so that a batch has little padding.

    A single row makes a batch whatever its size.

    Args:
        lengths: tokens of each row.
        rows: most rows of a batch; None: any number.
        tokens: most tokens of a batch, padding included; None: any number.
        weights: another size of each row, such as the logits that it needs.
        weight: largest sum of `weights` of a batch.
        longest_first: memory then peaks in the first batch, where a lack of it shows early.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i] if longest_first else lengths[i])
    batch: list[int] = []
    width = total = 0
    for i in order:
        width = max(width, lengths[i])
        total += 0 if weights is None else weights[i]
        size = len(batch) + 1
        if batch and (
            (rows is not None and size > rows)
            or (tokens is not None and width * size > tokens)
            or (weights is not None and total > weight)
        ):
            yield batch
            batch, width, total = [], lengths[i], 0 if weights is None else weights[i]
        batch.append(i)
    if batch:
        yield batch


def pad(
    rows: Rows, fill: int = 0, *, left: bool, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Pad rows of token ids to one length.

    Args:
        rows: token ids.
        fill: the padding token, which is masked.
        left: pad before the rows, so that all end in the last column; else after them.
        device: of the results.

    Returns:
        ids and mask, [b, t] each.
    """
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), fill), torch.zeros(len(rows), width).long()
    for i, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, columns], mask[i, columns] = torch.tensor(row, dtype=torch.long), 1
    return ids.to(device), mask.to(device)


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """Return the ids that end a generation: the model's own, or else the tokenizer's."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    if ends is None:
        return set()
    return set(ends) if isinstance(ends, list | tuple) else {int(ends)}
