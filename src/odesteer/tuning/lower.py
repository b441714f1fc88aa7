"""How are the blocks below a steered one kept from being computed again?

They compute what they compute unsteered, so what they gave the unsteered model once is given
again: to the bit the same. Works with any block, since all it replaces is its `forward`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from odesteer.layers import Blocks, block_output


class Lower:
    """What the first blocks of a model gave for one batch.

    Args:
        blocks: of the model, first to last.
        below: so many of them are recorded.
    """

    def __init__(self, blocks: Blocks, below: int):
        self._blocks = blocks[:below]
        self._outputs: dict[int, Any] = {}

    def output(self, index: int) -> Tensor:
        """The recorded stream [b, t, d] after a block."""
        return block_output(self._outputs[index])

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """While open, a forward pass of the unsteered model is recorded."""
        with ExitStack() as undo:
            for i, block in enumerate(self._blocks):
                undo.enter_context(_forward_is(block, self._recording(block.forward, i)))
            yield

    @contextmanager
    def replayed(self, below: int) -> Iterator[None]:
        """While open, the first `below` blocks give what was recorded, whatever they are given."""
        with ExitStack() as undo:
            for i, block in enumerate(self._blocks[:below]):
                undo.enter_context(_forward_is(block, _always(self._outputs[i])))
            yield

    def _recording(self, original: Callable[..., Any], i: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._outputs[i] = original(*args, **kwargs)
            return self._outputs[i]

        return forward


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: value


@contextmanager
def _forward_is(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another `forward` in the instance; it is taken out again, or what was there put back."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
