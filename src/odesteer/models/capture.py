"""Block outputs, and logits of chosen positions, from a forward pass.

Forward hooks record the outputs, and the pass stops at the deepest block that is needed: logits
are never computed.

Where logits are wanted, the head, which multiplies each position by the whole vocabulary, is
given only the positions that are read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from odesteer.models.layers import attention_output, block_output, find_layers, hidden_size, unwrap

Site = Literal["residual", "heads"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode (no dropout) inside the block; restore every module after."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class Forward(Protocol):
    """Forward pass up to the deepest block that is needed."""

    def __call__(self, ids: Tensor, mask: Tensor, cache: Any = None) -> dict[int, Tensor]:
        """Return the outputs [b, t, d] of the chosen blocks.

        Args:
            ids: [b, t].
            mask: [b, p + t], including the tokens in the cache.
            cache: keys and values of p earlier tokens, or an empty cache to be filled.
        """


class _Stop(Exception):
    """Raised by the deepest block's hook: nothing above it is needed."""


@contextmanager
def captured(model: nn.Module, indices: Sequence[int], site: Site) -> Iterator[Forward]:
    """Yield a forward function that returns the blocks' outputs; hooks are removed."""
    blocks = find_layers(model)
    outputs: dict[int, Tensor] = {}
    deepest = max(indices)
    width = hidden_size(model)
    tokens: tuple[int, ...] | None = None

    def keep(index: int, value: Tensor) -> None:
        outputs[index] = value
        if index == deepest:
            raise _Stop

    def capture(index: int) -> Callable[..., None]:
        return lambda _module, _args, output: keep(index, block_output(output, tokens, width))

    def capture_input(index: int) -> Callable[..., None]:
        return lambda _module, args: keep(index, args[0])

    def forward(ids: Tensor, mask: Tensor, cache: Any = None) -> dict[int, Tensor]:
        nonlocal tokens
        outputs.clear()
        tokens = tuple(ids.shape)
        # Not every model takes a cache.
        kept = {} if cache is None else {"past_key_values": cache}
        try:
            model(input_ids=ids, attention_mask=mask, use_cache=cache is not None, **kept)
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
