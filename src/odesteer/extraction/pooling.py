"""Pooling of a batch of texts into one activation each.

Rows are padded on the right whatever the tokenizer's side: under a causal mask, real tokens
cannot see padding that comes after them. A shared prefix runs once, before the texts that
continue its keys and values; these are freed with the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odesteer.extraction.batching import TextBatch
from odesteer.models.batching import pad
from odesteer.models.capture import Forward


@dataclass(frozen=True)
class Pooler:
    """Pooler of the same tokens of every text.

    Attributes:
        token_rows: the texts' tokens.
        starts: where each response starts, for pooling "response".
        pooling: the "last" token, the "mean" over all, or over those of the "response": at least
            the last, of an empty one.
        device: where token ids go.
    """

    token_rows: Sequence[Sequence[int]]
    starts: Sequence[int]
    pooling: str
    device: torch.device

    def shareable(self) -> list[int]:
        """Return how many first tokens of each text may be run as a shared prefix."""
        ends = [len(row) - 1 for row in self.token_rows]
        if self.pooling != "response":
            return ends
        return [min(pair) for pair in zip(self.starts, ends, strict=True)]

    @torch.no_grad()
    def read(self, forward: Forward, batch: TextBatch) -> dict[int, Tensor]:
        """Return [b, d] float32 CPU tensors by layer, in the order of `batch.rows`."""
        begin = _SharedPrefix(forward, self, batch) if batch.shared else None
        parts = [self._read_run(forward, run, begin) for run in batch.runs]
        return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}

    def _read_run(
        self, forward: Forward, run: Sequence[int], begin: "_SharedPrefix | None"
    ) -> dict[int, Tensor]:
        shared = 0 if begin is None else begin.length
        rows = [self.token_rows[i][shared:] for i in run]
        lengths = torch.tensor([len(row) for row in rows])
        ids, mask = pad(rows, left=False)
        real = mask.bool()
        seen = torch.cat([torch.ones(len(run), shared, dtype=torch.bool), real], dim=1)
        cache = None if begin is None else begin.cache(run)
        outputs = forward(ids.to(self.device), seen.long().to(self.device), cache)
        if self.pooling == "last":
            return {layer: _last(hidden, lengths) for layer, hidden in outputs.items()}
        pooled, count = real, lengths
        if self.pooling == "mean":
            count = lengths + shared
        else:
            first = torch.tensor([self.starts[i] for i in run]) - shared
            pooled = real & (torch.arange(real.shape[1]) >= first.minimum(lengths - 1)[:, None])
            count = pooled.sum(dim=1)
        results = {}
        for layer, hidden in outputs.items():
            total = (hidden.float() * pooled.to(hidden.device).unsqueeze(-1)).sum(dim=1)
            if self.pooling == "mean" and begin is not None:
                total = total + begin.total(layer, run)
            results[layer] = (total / count.to(hidden.device).unsqueeze(-1)).cpu()
        return results


class _SharedPrefix:
    """Shared prefixes of a batch, run once.

    Attributes:
        length: their tokens, of each.
    """

    def __init__(self, forward: Forward, pooler: Pooler, batch: TextBatch):
        from odesteer.models.prefix_cache import empty_cache

        self.length = batch.shared
        self._which: dict[int, int] = {}  # of each text
        different: dict[tuple[int, ...], int] = {}
        for i in batch.rows:
            start = tuple(pooler.token_rows[i][: self.length])
            self._which[i] = different.setdefault(start, len(different))
        self._filled = empty_cache()
        ids = torch.tensor(list(different), device=pooler.device)
        outputs = forward(ids, torch.ones_like(ids), self._filled)
        # Pooled in the mean, and nowhere else.
        self._totals = {layer: hidden.float().sum(dim=1) for layer, hidden in outputs.items()}

    def cache(self, run: Sequence[int]) -> Any:
        """Return the keys and values that the texts of a run continue."""
        from odesteer.models.prefix_cache import branches

        return branches(self._filled, [self._which[i] for i in run])

    def total(self, layer: int, run: Sequence[int]) -> Tensor:
        """Return [b, d], the sum over the tokens of each text's prefix."""
        return self._totals[layer][[self._which[i] for i in run]]


def _last(hidden: Tensor, lengths: Tensor) -> Tensor:
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, lengths.to(hidden.device) - 1].float().cpu()
