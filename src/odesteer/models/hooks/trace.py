"""Trace of the tokens that a steering acted on."""

from typing import NamedTuple

import torch
from torch import Tensor


class _Call(NamedTuple):
    offset: int  # position of the first token
    tokens: int
    mask: Tensor | None  # [b, t], None when it acted on every token


class TokenTrace:
    """Steered tokens of one text a row, put together from the calls that read it.

    A call at position 0, or of another number of rows, begins anew. One that goes back, as after
    drafts that were refused, replaces what it reads again. Masks stay where they are: nothing is
    copied, and no device is waited for, before `mask`.
    """

    def __init__(self) -> None:
        self._batch = 0
        self._calls: list[_Call] = []

    def add(self, offset: int, batch: int, tokens: int, mask: Tensor | None) -> None:
        """Add a call of `tokens` positions a row, from `offset` on; `mask` [b, t]."""
        if offset <= 0 or batch != self._batch:
            self._calls.clear()
        self._batch = batch
        while self._calls and self._calls[-1].offset >= offset:
            self._calls.pop()
        self._calls.append(_Call(offset, tokens, mask))

    def mask(self) -> Tensor:
        """Return which positions were steered, [b, positions] on the CPU.

        Positions count from the first token of the padded prompt; a virtual token has none.

        Raises:
            ValueError: before the first call.
        """
        if not self._calls:
            raise ValueError(
                "The model has not run under this steering in this thread: there is no trace yet."
            )
        last = self._calls[-1]
        mask = torch.zeros(self._batch, max(last.offset + last.tokens, 0), dtype=torch.bool)
        for offset, tokens, chosen in self._calls:
            columns = slice(max(offset, 0), max(offset + tokens, 0))
            mask[:, columns] = True if chosen is None else chosen[:, max(-offset, 0) :].cpu()
        return mask
