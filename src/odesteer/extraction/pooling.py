"""Pooling of a batch of texts into one activation each.

Rows are padded on the right whatever the tokenizer's side: under a causal mask, real tokens
cannot see padding that comes after them. A shared prefix runs once, before the texts that
continue its keys and values, as in generation; these are freed with the batch. This is possible
only where every block's cache is a plain one of attention, full or windowed: recurrent and hybrid
states are no sequence of tokens.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from odesteer.extraction.batching import TextBatch
from odesteer.extraction.cache import Content
from odesteer.models.batching import pad
from odesteer.models.capture import Forward
from odesteer.models.fingerprint import hooked
from odesteer.models.layers import find_decoder, text_config, unwrap

# Layer types of attention with keys and values; "chunked" windows begin at multiples.
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


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

    def content(self, batch: TextBatch) -> Content:
        """Return the cache key of a batch."""
        starts = [self.starts[i] for i in batch.rows] if self.pooling == "response" else []
        passes = [batch.shared, *map(len, batch.runs)]
        return Content([self.token_rows[i] for i in batch.rows], starts, passes)

    def shareable(self) -> list[int]:
        """Return how many first tokens of each text may be run as a shared prefix."""
        ends = [len(row) - 1 for row in self.token_rows]
        if self.pooling != "response":
            return ends
        return [min(pair) for pair in zip(self.starts, ends, strict=True)]

    @torch.no_grad()
    def read(self, forward: Forward, batch: TextBatch) -> dict[int, Tensor]:
        """Return [b, d] float32 CPU tensors by layer, in the order of `batch.rows`."""
        prefix = _SharedPrefix(forward, self, batch) if batch.shared else None
        parts = [self._read_run(forward, run, prefix) for run in batch.runs]
        return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}

    def continues_prefix(self, model: nn.Module, forward: Forward, batch: TextBatch) -> bool:
        """Check on two texts of a batch that a shared prefix changes no activation.

        The structure of a model tells that it caches keys and values, not whether it continues
        positions and masks at their end.
        """
        beginning = self.token_rows[batch.rows[0]][: batch.shared]
        alike = [i for i in batch.rows if self.token_rows[i][: batch.shared] == beginning]
        pair = (alike[0], alike[-1])  # the longest and the shortest, so that one is padded
        expected = self.read(forward, TextBatch((pair,)))
        try:
            continued = self.read(forward, TextBatch((pair,), batch.shared))
        except Exception:  # a model may fail in any way with a cache; it has just run without one
            return False
        precision = next(p.dtype for p in model.parameters() if p.is_floating_point())
        # Far above rounding, and far below what a wrong position does.
        tolerance = torch.finfo(precision).eps ** 0.5
        return all(
            bool(((continued[layer] - rows).norm(dim=-1) <= tolerance * rows.norm(dim=-1)).all())
            for layer, rows in expected.items()
        )

    def _read_run(
        self, forward: Forward, run: Sequence[int], prefix: "_SharedPrefix | None"
    ) -> dict[int, Tensor]:
        shared = 0 if prefix is None else prefix.length
        rows = [self.token_rows[i][shared:] for i in run]
        lengths = torch.tensor([len(row) for row in rows])
        ids, mask = pad(rows, left=False)
        real = mask.bool()
        seen = torch.cat([torch.ones(len(run), shared, dtype=torch.bool), real], dim=1)
        cache = None if prefix is None else prefix.cache(run)
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
            if self.pooling == "mean" and prefix is not None:
                total = total + prefix.total(layer, run)
            results[layer] = (total / count.to(hidden.device).unsqueeze(-1)).cpu()
        return results


class _SharedPrefix:
    """Shared prefixes of a batch, run once.

    Attributes:
        length: their tokens, of each.
    """

    def __init__(self, forward: Forward, pooler: Pooler, batch: TextBatch):
        self.length = batch.shared
        self._which: dict[int, int] = {}  # of each text
        different: dict[tuple[int, ...], int] = {}
        for i in batch.rows:
            start = tuple(pooler.token_rows[i][: self.length])
            self._which[i] = different.setdefault(start, len(different))
        # It keeps every token even where a block sees a window: masks hide the tokens outside.
        self._filled = DynamicCache()
        ids = torch.tensor(list(different), device=pooler.device)
        outputs = forward(ids, torch.ones_like(ids), self._filled)
        # Pooled in the mean, and nowhere else.
        self._totals = {layer: hidden.float().sum(dim=1) for layer, hidden in outputs.items()}

    def cache(self, run: Sequence[int]) -> Any:
        """Return the keys and values that the texts of a run continue."""
        return branches(self._filled, [self._which[i] for i in run])

    def total(self, layer: int, run: Sequence[int]) -> Tensor:
        """Return [b, d], the sum over the tokens of each text's prefix."""
        return self._totals[layer][[self._which[i] for i in run]]


def _last(hidden: Tensor, lengths: Tensor) -> Tensor:
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden[rows, lengths.to(hidden.device) - 1].float().cpu()


def supports_prefix_cache(model: nn.Module) -> bool:
    """Whether texts can continue a cached prefix: plain attention and no hooks.

    A steering or another hook may treat the second call as generation; accelerate's hooks run
    blocks elsewhere.
    """
    inner = unwrap(model)
    if hooked(model) is not None or any(hasattr(module, "_hf_hook") for module in model.modules()):
        return False
    if getattr(inner, "_is_stateful", False):
        return False
    if "past_key_values" not in inspect.signature(find_decoder(model).forward).parameters:
        return False
    config = text_config(inner)
    if not set(getattr(config, "layer_types", None) or ()) <= _ATTENTION:
        return False
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return bool(kinds) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def branches(prefixes: DynamicCache, chosen: Sequence[int]) -> DynamicCache:
    """Return a KV cache whose row i holds prefix `chosen[i]`."""
    cache = DynamicCache()
    rows = torch.tensor(chosen)
    # Blocks that use another block's keys and values have none themselves.
    cache.layers = [
        DynamicLayer() if layer.keys is None else _Branches(layer.keys, layer.values, rows)
        for layer in cast(list[Any], prefixes.layers)
    ]
    return cache


class _Branches(DynamicLayer):
    """One block's keys and values of the prefixes, repeated only while it runs.

    Added keys and values are not kept, since the pass is the last one. So a batch needs the memory
    of its prefixes once, and not that of every text at every block.
    """

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor):
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._rows = rows.to(keys.device)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values, [b, heads, prefix + t, d] each."""
        assert self.keys is not None and self.values is not None
        keys = torch.cat([self.keys[self._rows], key_states], dim=-2)
        return keys, torch.cat([self.values[self._rows], value_states], dim=-2)
