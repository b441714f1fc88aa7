"""What are the activations of texts at some decoder blocks?

One forward pass a batch, which stops at the deepest block asked for and never computes
logits. Rows are padded on the right whatever the tokenizer's side: under a causal mask,
real tokens cannot see padding that comes after them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from odesteer.contrast import Contrast
from odesteer.layers import attention_output, find_layers, layer_index

Progress = Callable[[int, int], None]  # rows done, rows in all
Tokens = Literal["last", "mean", "response"]
Site = Literal["residual", "heads"]


@overload
def activations(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    layer: int,
    *,
    tokens: Tokens = ...,
    site: Site = ...,
    batch_tokens: int = ...,
    progress: Progress | None = ...,
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
    batch_tokens: int = ...,
    progress: Progress | None = ...,
) -> dict[int, tuple[Tensor, Tensor]]: ...
def activations(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    layer: int | Sequence[int],
    *,
    tokens: Tokens = "last",
    site: Site = "residual",
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor] | dict[int, tuple[Tensor, Tensor]]:
    """Activations of a contrast's texts: ([n, d], [m, d]) in float32 on the CPU.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        contrast: the texts.
        layer: 0-based block index, negative from the end; a list gives a dict by index.
        tokens: "last" token of each text (the paper), the "mean" over its tokens, or the mean
            over the tokens of its "response" alone.
        site: the block's output ("residual"), or its attention heads' outputs side by side
            ("heads").
        batch_tokens: padded tokens a batch.
        progress: called with (rows done, rows in all).

    Raises:
        ValueError: for a layer the model does not have.
    """
    layers = [layer] if isinstance(layer, int) else list(layer)
    positive, negative = contrast.tokens(tokenizer)
    starts = contrast.prompt_lengths(tokenizer) if tokens == "response" else ([], [])
    both = extract(
        model,
        positive + negative,
        layers,
        tokens=tokens,
        site=site,
        starts=[*starts[0], *starts[1]],
        batch_tokens=batch_tokens,
        progress=progress,
    )
    split = {
        layer_index(model, asked): (rows[: len(positive)], rows[len(positive) :])
        for asked, rows in zip(layers, both, strict=True)
    }
    return split[layer_index(model, layer)] if isinstance(layer, int) else split


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
) -> list[Tensor]:
    """One [n, d] float32 CPU tensor a layer, for n rows of token ids.

    Args:
        model: a transformers causal language model.
        token_rows: the texts' tokens.
        layers: block indices.
        tokens, site, batch_tokens, progress: see `activations`.
        starts: where each row's response starts, for tokens="response".
    """
    if any(not row for row in token_rows):
        raise ValueError("A text without a single token has no activation; drop empty texts.")
    if tokens not in ("last", "mean", "response"):
        raise ValueError(f"tokens must be 'last', 'mean' or 'response'; got {tokens!r}.")
    indices = [layer_index(model, layer) for layer in layers]
    device = next(model.parameters()).device
    results: list[list[Tensor | None]] = [[None] * len(token_rows) for _ in layers]
    done = 0
    with _captured(model, indices, site) as forward, torch.no_grad():
        for batch in _batches(token_rows, batch_tokens):
            lengths = torch.tensor([len(token_rows[i]) for i in batch])
            width = int(lengths.max())
            mask = torch.arange(width) < lengths[:, None]
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            ids[mask] = torch.tensor([token for i in batch for token in token_rows[i]])
            captured = forward(ids.to(device), mask.long().to(device))
            pooled = mask
            if tokens == "response":
                # At least the last token, should a response have melted into its prompt's tokens.
                first = torch.tensor([starts[i] for i in batch]).minimum(lengths - 1)
                pooled = mask & (torch.arange(width) >= first[:, None])
            for layer_results, index in zip(results, indices, strict=True):
                rows = _pool(captured[index], pooled, lengths, tokens)
                for i, row in zip(batch, rows, strict=True):
                    layer_results[i] = row
            done += len(batch)
            if progress is not None:
                progress(done, len(token_rows))
    return [torch.stack([row for row in layer if row is not None]) for layer in results]


def _pool(hidden: Tensor, mask: Tensor, lengths: Tensor, tokens: Tokens) -> Tensor:
    mask, lengths = mask.to(hidden.device), lengths.to(hidden.device)
    if tokens == "last":
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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode (no dropout) inside; afterwards every module is as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class _Stop(Exception):
    """Raised by the deepest block's hook: nothing above it is needed."""


@contextmanager
def _captured(
    model: nn.Module, indices: Sequence[int], site: Site
) -> Iterator[Callable[[Tensor, Tensor], dict[int, Tensor]]]:
    """A forward function that returns the blocks' outputs; the model is left as it was."""
    blocks = find_layers(model)
    outputs: dict[int, Tensor] = {}
    deepest = max(indices)

    def keep(index: int, value: Any) -> None:
        outputs[index] = value[0] if isinstance(value, tuple) else value
        if index == deepest:
            raise _Stop

    def capture(index: int) -> Callable[..., None]:
        return lambda _module, _args, output: keep(index, output)

    def capture_input(index: int) -> Callable[..., None]:
        return lambda _module, args: keep(index, args)

    def forward(ids: Tensor, mask: Tensor) -> dict[int, Tensor]:
        outputs.clear()
        try:
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        except _Stop:
            return outputs
        raise RuntimeError(f"The model never ran its decoder block {deepest}.")

    with ExitStack() as undo:
        undo.enter_context(evaluating(model))
        for index in set(indices):
            if site == "heads":
                module = attention_output(blocks[index])
                undo.callback(module.register_forward_pre_hook(capture_input(index)).remove)
            else:
                undo.callback(blocks[index].register_forward_hook(capture(index)).remove)
        yield forward
