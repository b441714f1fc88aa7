"""What are the activations of texts at some decoder blocks?

One forward pass a batch. Rows are padded on the right whatever the tokenizer's side: under a
causal mask, real tokens cannot see padding that comes after them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from odesteer.cache.activations import ActivationCache, CacheChoice
from odesteer.capture import Site, captured
from odesteer.contrast import Contrast
from odesteer.layers import input_device, layer_index
from odesteer.texts import Texts, Tokens, check_tokens, texts

Progress = Callable[[int, int], None]  # rows done, rows in all


@overload
def activations(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    layer: int,
    *,
    tokens: Tokens = ...,
    site: Site = ...,
    max_tokens: int | None = ...,
    batch_tokens: int = ...,
    progress: Progress | None = ...,
    cache: CacheChoice = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def activations(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    layer: Sequence[int],
    *,
    tokens: Tokens = ...,
    site: Site = ...,
    max_tokens: int | None = ...,
    batch_tokens: int = ...,
    progress: Progress | None = ...,
    cache: CacheChoice = ...,
) -> dict[int, tuple[Tensor, Tensor]]: ...
def activations(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    layer: int | Sequence[int],
    *,
    tokens: Tokens = "last",
    site: Site = "residual",
    max_tokens: int | None = None,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
    cache: CacheChoice = False,
) -> tuple[Tensor, Tensor] | dict[int, tuple[Tensor, Tensor]]:
    """Activations of a contrast's texts: ([n, d], [m, d]) in float32 on the CPU.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        contrast: the texts.
        layer: 0-based block index, negative from the end; a list gives a dict by index.
        tokens: "last" token of each text (the paper), the "mean" over its tokens, the mean over
            the tokens of its "response" alone, or the last token of its "prompt".
        site: the block's output ("residual"), or its attention heads' outputs side by side
            ("heads").
        max_tokens: longer texts lose their beginning, with a warning; the model's context where
            it is None, or shorter.
        batch_tokens: padded tokens a batch.
        progress: called with (rows done, rows in all).
        cache: True keeps what is computed on disk and reads it again (in ODESTEER_CACHE, or
            ~/.cache/odesteer), and an interrupted call goes on where it stopped; a path is
            another folder for it. The values are the same to the bit. Never used while anything
            hooks into the model, such as a steering.

    Raises:
        ValueError: for a layer the model does not have.
    """
    layers = [layer] if isinstance(layer, int) else list(layer)
    some = texts(model, tokenizer, contrast, tokens, max_tokens)
    split = read_texts(
        model, some, layers, site=site, batch_tokens=batch_tokens, progress=progress, cache=cache
    )
    return split[layer_index(model, layer)] if isinstance(layer, int) else split


def read_texts(
    model: nn.Module,
    some: Texts,
    layers: Sequence[int],
    *,
    site: Site = "residual",
    batch_tokens: int = 4096,
    progress: Progress | None = None,
    cache: CacheChoice = False,
) -> dict[int, tuple[Tensor, Tensor]]:
    """([n, d], [m, d]) by layer, for texts that are token ids already; see `activations`."""
    both = extract(
        model,
        some.rows,
        layers,
        tokens=some.tokens,
        site=site,
        starts=some.starts,
        batch_tokens=batch_tokens,
        progress=progress,
        cache=cache,
    )
    n = len(some.positive)
    return {
        layer_index(model, asked): (rows[:n], rows[n:])
        for asked, rows in zip(layers, both, strict=True)
    }


def extract(
    model: nn.Module,
    token_rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    tokens: Tokens = "last",
    site: Site = "residual",
    starts: Sequence[int] = (),
    batch_tokens: int = 4096,
    progress: Progress | None = None,
    cache: CacheChoice = False,
) -> list[Tensor]:
    """One [n, d] float32 CPU tensor a layer, for n rows of token ids.

    Args:
        model: a transformers causal language model.
        token_rows: the texts' tokens (for tokens="prompt", the prompts').
        layers: block indices.
        tokens, site, batch_tokens, progress, cache: see `activations`.
        starts: where each row's response starts, for tokens="response".
    """
    if not token_rows or any(not row for row in token_rows):
        raise ValueError("A text without a single token has no activation; drop empty texts.")
    check_tokens(tokens)
    # A prompt is read by itself, where it ends.
    pooling = "last" if tokens == "prompt" else tokens
    indices = [layer_index(model, layer) for layer in layers]
    results: dict[int, Tensor] = {}
    done = 0

    def keep(batch: list[int], found: dict[int, Tensor]) -> None:
        for index, rows in found.items():
            if index not in results:
                results[index] = torch.empty(len(token_rows), rows.shape[-1])
            results[index][batch] = rows

    def advance(batch: list[int]) -> None:
        nonlocal done
        done += len(batch)
        if progress is not None:
            progress(done, len(token_rows))

    store = ActivationCache.of(cache, model, site, pooling)
    # What is left to compute, by the layers that are missing: often none, or all.
    missing: dict[tuple[int, ...], list[list[int]]] = {}
    for batch in _batches(token_rows, batch_tokens):
        found: dict[int, Tensor] = {}
        if store is not None:
            found = store.get(*_content(batch, token_rows, starts, pooling), indices)
            keep(batch, found)
        absent = tuple(sorted(set(indices) - set(found)))
        if absent:
            missing.setdefault(absent, []).append(batch)
        else:
            advance(batch)
    for absent, batches in missing.items():
        with captured(model, absent, site) as forward, torch.no_grad():
            for batch in batches:
                content = _content(batch, token_rows, starts, pooling)
                computed = _read(forward, *content, pooling, input_device(model))
                keep(batch, computed)
                if store is not None:
                    store.put(*content, computed)
                advance(batch)
    if store is not None:
        store.close()
    return [results[index] for index in indices]


def _content(
    batch: Sequence[int],
    token_rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    pooling: str,
) -> tuple[list[Sequence[int]], list[int]]:
    """All that a batch's activations depend on: its token ids, and where responses start."""
    rows = [token_rows[i] for i in batch]
    return rows, [starts[i] for i in batch] if pooling == "response" else []


def _read(
    forward: Callable[[Tensor, Tensor], dict[int, Tensor]],
    rows: Sequence[Sequence[int]],
    starts: Sequence[int],
    pooling: str,
    device: torch.device,
) -> dict[int, Tensor]:
    """[b, d] float32 on the CPU by layer, of one batch."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    mask = torch.arange(width) < lengths[:, None]
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    ids[mask] = torch.tensor([token for row in rows for token in row])
    outputs = forward(ids.to(device), mask.long().to(device))
    pooled = mask
    if pooling == "response":
        # At least the last token, of an empty response.
        first = torch.tensor(starts).minimum(lengths - 1)
        pooled = mask & (torch.arange(width) >= first[:, None])
    return {index: _pool(hidden, pooled, lengths, pooling) for index, hidden in outputs.items()}


def _pool(hidden: Tensor, mask: Tensor, lengths: Tensor, pooling: str) -> Tensor:
    mask, lengths = mask.to(hidden.device), lengths.to(hidden.device)
    if pooling == "last":
        chosen = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        return chosen.float().cpu()
    total = (hidden.float() * mask.unsqueeze(-1)).sum(dim=1)
    return (total / mask.sum(dim=1, keepdim=True)).cpu()


def _batches(rows: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[list[int]]:
    """Row indices, longest first, so that a batch has little padding and memory peaks early."""
    batch: list[int] = []
    width = 0
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i])):
        width = width or len(rows[i])
        if batch and width * (len(batch) + 1) > batch_tokens:
            yield batch
            batch, width = [], len(rows[i])
        batch.append(i)
    if batch:
        yield batch
