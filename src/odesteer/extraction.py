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
from odesteer.layers import find_layers, layer_index

Progress = Callable[[int, int], None]  # rows done, rows in all
Tokens = Literal["last", "mean"]


@overload
def activations(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    layer: int,
    *,
    tokens: Tokens = ...,
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
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor] | dict[int, tuple[Tensor, Tensor]]:
    """Activations of a contrast's texts: ([n, d], [m, d]) in float32 on the CPU.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        contrast: the texts.
        layer: 0-based block index, negative from the end; a list gives a dict by index.
        tokens: "last" token of each text (the paper) or the "mean" over its tokens.
        batch_tokens: padded tokens a batch.
        progress: called with (rows done, rows in all).

    Raises:
        ValueError: for a layer the model does not have.
    """
    layers = [layer] if isinstance(layer, int) else list(layer)
    positive, negative = contrast.tokens(tokenizer)
    both = extract(
        model,
        positive + negative,
        layers,
        tokens=tokens,
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
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> list[Tensor]:
    """One [n, d] float32 CPU tensor a layer, for n rows of token ids."""
    if any(not row for row in token_rows):
        raise ValueError("A text without a single token has no activation; drop empty texts.")
    if tokens not in ("last", "mean"):
        raise ValueError(f"tokens must be 'last' or 'mean'; got {tokens!r}.")
    indices = [layer_index(model, layer) for layer in layers]
    device = next(model.parameters()).device
    results: list[list[Tensor | None]] = [[None] * len(token_rows) for _ in layers]
    done = 0
    with _captured(model, indices) as forward, torch.no_grad():
        for batch in _batches(token_rows, batch_tokens):
            lengths = torch.tensor([len(token_rows[i]) for i in batch])
            width = int(lengths.max())
            mask = torch.arange(width) < lengths[:, None]
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            ids[mask] = torch.tensor([token for i in batch for token in token_rows[i]])
            captured = forward(ids.to(device), mask.long().to(device))
            for layer_results, index in zip(results, indices, strict=True):
                rows = _pool(captured[index], mask, lengths, tokens)
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
    return (total / lengths.unsqueeze(-1)).cpu()


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


def _train_again(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        module.training = True


class _Stop(Exception):
    """Raised by the deepest block's hook: nothing above it is needed."""


@contextmanager
def _captured(
    model: nn.Module, indices: Sequence[int]
) -> Iterator[Callable[[Tensor, Tensor], dict[int, Tensor]]]:
    """A forward function that returns the blocks' outputs; the model is left as it was."""
    blocks = find_layers(model)
    outputs: dict[int, Tensor] = {}
    deepest = max(indices)

    def capture(index: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            outputs[index] = output[0] if isinstance(output, tuple) else output
            if index == deepest:
                raise _Stop

        return hook

    def forward(ids: Tensor, mask: Tensor) -> dict[int, Tensor]:
        outputs.clear()
        try:
            model(input_ids=ids, attention_mask=mask, use_cache=False)
        except _Stop:
            return outputs
        raise RuntimeError(f"The model never ran its decoder block {deepest}.")

    training = [module for module in model.modules() if module.training]
    with ExitStack() as undo:
        model.eval()
        undo.callback(_train_again, training)
        for index in set(indices):
            undo.callback(blocks[index].register_forward_hook(capture(index)).remove)
        yield forward
