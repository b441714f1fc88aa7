"""Cache of the blocks below a steered layer.

They compute what they compute unsteered, so what the last of them gave the unsteered model is
given again: to the bit the same. Works with any block, since all it replaces is its `forward`.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from odesteer.models.layers import Blocks, block_output


class LayerCache:
    """What some blocks of a model gave for one batch.

    Args:
        blocks: of the model, first to last.
        keep: indices of those that are recorded.
    """

    def __init__(self, blocks: Blocks, keep: Iterable[int]):
        self._blocks = blocks
        self._keep = {index for index in keep if index >= 0}
        self._outputs: dict[int, Any] = {}

    def output(self, index: int) -> Tensor:
        """The recorded stream [b, t, d] after a block."""
        return block_output(self._outputs[index])

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """While open, a forward pass of the unsteered model is recorded."""
        with ExitStack() as undo:
            for i in self._keep:
                block = self._blocks[i]
                undo.enter_context(_forward_is(block, self._recording(block.forward, i)))
            yield

    @contextmanager
    def replayed(self, below: int) -> Iterator[None]:
        """While open, the first `below` blocks give what the last of them gave, unasked."""
        with ExitStack() as undo:
            for block in self._blocks[:below]:
                undo.enter_context(_forward_is(block, _always(self._outputs[below - 1])))
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
