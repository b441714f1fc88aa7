"""How are the outputs of decoder blocks taken out of a forward pass?

By hooks, and the pass stops at the deepest block asked for: logits are never computed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Literal

from torch import Tensor, nn

from odesteer.layers import attention_output, block_output, find_layers, hidden_size

Site = Literal["residual", "heads"]


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
def captured(
    model: nn.Module, indices: Sequence[int], site: Site
) -> Iterator[Callable[[Tensor, Tensor], dict[int, Tensor]]]:
    """A forward function that returns the blocks' outputs; the model is left as it was."""
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

    def forward(ids: Tensor, mask: Tensor) -> dict[int, Tensor]:
        nonlocal tokens
        outputs.clear()
        tokens = tuple(ids.shape)
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
