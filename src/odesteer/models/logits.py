"""Logits of chosen positions of a batch.

The head multiplies each position by the whole vocabulary, so it is given only those that are read.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from odesteer.models.layers import unwrap

Index = tuple[Tensor, Tensor]  # rows and columns, [n] each


def logits_at(model: Any, read: Index, **inputs: Any) -> Tensor:
    """Run the model and return the logits [n, vocabulary] at n positions.

    Args:
        model: a transformers causal language model.
        read: rows and columns of the positions.
        inputs: of the model: `input_ids` [b, t], `attention_mask`, `position_ids`.
    """
    inner: Any = unwrap(model)
    head = inner.get_output_embeddings()
    with nullcontext() if head is None else _only(head, read):
        logits: Tensor = model(**inputs, use_cache=False).logits
    # All positions are there where a model does not call its head as a module.
    return logits[0] if logits.shape[:2] == (1, len(read[0])) else at(logits, read)


def at(hidden: Tensor, read: Index) -> Tensor:
    """Return rows [n, d] of [b, t, d]."""
    rows, columns = (index.to(hidden.device) for index in read)
    return hidden[rows, columns]


@contextmanager
def _only(head: nn.Module, read: Index) -> Iterator[None]:
    """Give the head only those positions [n] of [b, t], as one row, while open."""

    def select(_module: nn.Module, args: Any) -> Any:
        return (at(args[0], read)[None], *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
