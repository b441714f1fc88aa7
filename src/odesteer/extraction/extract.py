"""Extraction of activations at chosen decoder blocks.

Each pass stops at the deepest block that is needed, long texts run with long ones, and a prefix
that several texts share, such as a question with several answers, is computed once.
"""

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from odesteer.data import Contrast
from odesteer.data.arguments import forgiving, is_texts
from odesteer.data.contrast import example
from odesteer.extraction.batching import TextBatch, shared_prefix_batches, whole_text_batches
from odesteer.extraction.cache import ActivationCache, CacheChoice
from odesteer.extraction.tokenize import (
    TokenizedTexts,
    Tokens,
    check_tokens,
    texts,
    token_rows,
)
from odesteer.models.capture import Site, captured
from odesteer.models.layers import find_layers, input_device, layer_index

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
    batch_tokens: int | None = ...,
    progress: Progress | None = ...,
    cache: CacheChoice = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def activations(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    layer: Sequence[int] | None = ...,
    *,
    tokens: Tokens = ...,
    site: Site = ...,
    max_tokens: int | None = ...,
    batch_tokens: int | None = ...,
    progress: Progress | None = ...,
    cache: CacheChoice = ...,
) -> dict[int, tuple[Tensor, Tensor]]: ...
@overload
def activations(
    model: nn.Module,
    tokenizer: Any,
    contrast: Sequence[Any],
    layer: int,
    *,
    tokens: Tokens = ...,
    site: Site = ...,
    max_tokens: int | None = ...,
    batch_tokens: int | None = ...,
    progress: Progress | None = ...,
    cache: CacheChoice = ...,
) -> Tensor: ...
@overload
def activations(
    model: nn.Module,
    tokenizer: Any,
    contrast: Sequence[Any],
    layer: Sequence[int] | None = ...,
    *,
    tokens: Tokens = ...,
    site: Site = ...,
    max_tokens: int | None = ...,
    batch_tokens: int | None = ...,
    progress: Progress | None = ...,
    cache: CacheChoice = ...,
) -> dict[int, Tensor]: ...
@forgiving(layers="layer")
def activations(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast | Sequence[Any],
    layer: int | Sequence[int] | None = None,
    *,
    tokens: Tokens = "last",
    site: Site = "residual",
    max_tokens: int | None = None,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    cache: CacheChoice = False,
) -> Any:
    """Return the activations of a contrast, or of a list of texts, in float32 on the CPU.

        positive, negative = ods.activations(model, tokenizer, contrast, layer=14)  # [n, d], [m, d]
        by_layer = ods.activations(model, tokenizer, contrast, [10, 14], cache=True)
        rows = ods.activations(model, tokenizer, ["A good day.", "A bad day."], layer=14)  # [2, d]

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        contrast: what `Contrast.of` makes a contrast of gives ([n, d], [m, d]); a list of texts,
            (prompt, response) pairs or chats gives one [n, d].
        layer: 0-based block index, negative from the end; a list gives a dict by index, and None
            one of every block.
        tokens: "last" token of each text (the paper), the "mean" over its tokens, the mean over
            the tokens of its "response" alone, or the last token of its "prompt".
        site: the block's output ("residual"), or its attention heads' outputs side by side
            ("heads").
        max_tokens: longer texts lose their beginning, with a warning; the model's context where
            it is None, or shorter.
        batch_tokens: tokens in a forward pass, padding included; None: what suits the device.
        progress: called with (rows done, rows in all).
        cache: True keeps what is computed on disk and reads it again (in ODESTEER_CACHE, or
            ~/.cache/odesteer), and an interrupted call continues where it stopped; a path is
            another folder for it. The values are the same to the bit. Never used while anything
            hooks into the model, such as a steering.

    Raises:
        ValueError: for a layer the model does not have.
    """
    if layer is None:
        layer = range(len(find_layers(model)))
    layers = [layer] if isinstance(layer, int) else list(layer)
    if is_texts(contrast):
        examples = [example(row, str(i)) for i, row in enumerate(contrast)]
        rows, starts, cut = token_rows(model, tokenizer, examples, "auto", tokens, max_tokens)
        tokenized = TokenizedTexts(rows, [], starts, tokens, cut)
    else:
        tokenized = texts(model, tokenizer, Contrast.of(contrast), tokens, max_tokens)
    split: dict[int, Any] = {
        index: both if tokenized.negative else both[0]
        for index, both in read_texts(
            model,
            tokenized,
            layers,
            site=site,
            batch_tokens=batch_tokens,
            progress=progress,
            cache=cache,
        ).items()
    }
    return split[layer_index(model, layer)] if isinstance(layer, int) else split


def read_texts(
    model: nn.Module,
    tokenized: TokenizedTexts,
    layers: Sequence[int],
    *,
    site: Site = "residual",
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    cache: CacheChoice = False,
) -> dict[int, tuple[Tensor, Tensor]]:
    """Return ([n, d], [m, d]) by layer for tokenized texts; see `activations`."""
    both = extract(
        model,
        tokenized.rows,
        layers,
        tokens=tokenized.tokens,
        site=site,
        starts=tokenized.starts,
        batch_tokens=batch_tokens,
        progress=progress,
        cache=cache,
    )
    n = len(tokenized.positive)
    return {
        layer_index(model, layer): (rows[:n], rows[n:])
        for layer, rows in zip(layers, both, strict=True)
    }


def extract(
    model: nn.Module,
    token_rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    *,
    tokens: Tokens = "last",
    site: Site = "residual",
    starts: Sequence[int] = (),
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    cache: CacheChoice = False,
    share: bool = True,
) -> list[Tensor]:
    """Return one [n, d] float32 CPU tensor a layer, for n rows of token ids.

    Args:
        model: a transformers causal language model.
        token_rows: the texts' tokens (for tokens="prompt", the prompts').
        layers: block indices.
        tokens, site, batch_tokens, progress, cache: see `activations`.
        starts: where each row's response starts, for tokens="response".
        share: whether shared prefixes are computed once, where the model allows it.
    """
    if not token_rows or any(not row for row in token_rows):
        raise ValueError("A text without a single token has no activation; drop empty texts.")
    check_tokens(tokens)
    # transformers takes seconds to import, and is there once a model is loaded.
    from odesteer.extraction.pooling import Pooler, supports_prefix_cache

    # A prompt is read at its last token, without the response.
    pooling = "last" if tokens == "prompt" else tokens
    indices = [layer_index(model, layer) for layer in layers]
    pooler = Pooler(token_rows, starts, pooling, input_device(model))
    size = batch_tokens or default_batch_tokens(pooler.device)
    store = ActivationCache.of(cache, model, site, pooling)
    results: dict[int, Tensor] = {}

    def keep(batch: TextBatch, outputs: dict[int, Tensor]) -> None:
        for index, rows in outputs.items():
            if index not in results:
                results[index] = torch.empty(len(token_rows), rows.shape[-1])
            results[index][batch.rows] = rows

    def look_up(batches: Sequence[TextBatch]) -> dict[tuple[int, ...], list[TextBatch]]:
        """Return the batches left to compute, by the layers that are missing."""
        missing: dict[tuple[int, ...], list[TextBatch]] = {}
        for batch in batches:
            outputs = {} if store is None else store.get(pooler.content(batch), indices)
            keep(batch, outputs)
            if absent := tuple(sorted(set(indices) - set(outputs))):
                missing.setdefault(absent, []).append(batch)
        return missing

    whole = whole_text_batches(token_rows, size)
    if share and supports_prefix_cache(model):
        missing = look_up(shared_prefix_batches(token_rows, size, pooler.shareable()))
        shared = next((b for batches in missing.values() for b in batches if b.shared), None)
        if shared is not None:
            with captured(model, indices, site) as forward:
                if not pooler.continues_prefix(model, forward, shared):
                    missing = look_up(whole)
    else:
        missing = look_up(whole)
    done = len(token_rows) - sum(len(b.rows) for batches in missing.values() for b in batches)
    if progress is not None and done:
        progress(done, len(token_rows))
    for absent, batches in missing.items():
        with captured(model, absent, site) as forward:
            for batch in batches:
                computed = pooler.read(forward, batch)
                keep(batch, computed)
                if store is not None:
                    store.put(pooler.content(batch), computed)
                done += len(batch.rows)
                if progress is not None:
                    progress(done, len(token_rows))
    if store is not None:
        store.close()
    return [results[index] for index in indices]


def default_batch_tokens(device: torch.device) -> int:
    """Return the tokens in a forward pass, padding included: 512 on a CPU, else 4096.

    A CPU is as fast with few tokens as with many, and small passes have less padding:
    SmolLM2-135M to block 15, one thread, reads 671 tokens a second in passes of 128, 715 of 256,
    730 of 512, 729 of 1024, 704 of 2048; the answers to 100 questions of TruthfulQA took 22.4 s of
    processor time with 256, 20.2 with 512, 24.3 with 1024. A GPU is not busy with so few.
    """
    return 512 if device.type == "cpu" else 4096
