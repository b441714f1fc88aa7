"""Capture of decoder block outputs during a forward pass.

Forward hooks record the outputs, and the pass stops at the deepest block that is needed: logits
are never computed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from odesteer.models.layers import attention_output, block_output, find_layers, hidden_size

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
