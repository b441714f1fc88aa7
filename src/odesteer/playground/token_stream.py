"""Token-by-token generation of a batch in which some rows are steered.

The model is held for one token at a time, and the steering is on it for no longer.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from odesteer.models.hooks.positions import Positions
from odesteer.models.layers import (
    attention_output,
    block_output,
    find_layers,
    hidden_size,
    input_device,
    layer_index,
)
from odesteer.ode import GivenField
from odesteer.playground.library import SharedModel
from odesteer.steering import LayerSteering, Steering


class Stream:
    """Rows with one prompt, read once and continued token by token."""

    def __init__(
        self,
        desk: SharedModel,
        prompt: Sequence[int],
        steerings: list[Steering | None],
        positions: Positions,
        part: LayerSteering,
    ):
        if not prompt:
            raise ValueError("The prompt is empty; write something for the model to answer.")
        self._desk = desk
        self._steerings = steerings
        self._positions = positions
        self._part = part
        self._cache: Any = None
        ids = torch.tensor([list(prompt)], device=input_device(desk.model))
        self._next = ids.expand(len(steerings), -1)

    def step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [rows, v], and the last place's activations before and after, [rows, d]."""
        model = self._desk.model
        with self._desk.lock, torch.no_grad(), ExitStack() as stack:
            before = stack.enter_context(_watched(model, self._part))
            for row, steering in enumerate(self._steerings):
                if steering is not None:
                    stack.enter_context(
                        steering.attach(model, positions=self._positions, rows=[row])
                    )
            after = stack.enter_context(_watched(model, self._part))
            output = model(input_ids=self._next, past_key_values=self._cache, use_cache=True)
        if getattr(output, "past_key_values", None) is None:
            raise ValueError(
                f"{type(model).__name__} keeps no keys and values, and the page writes token by "
                f"token; use `odesteer generate`."
            )
        if self._cache is None:
            self._freeze(before[0])
        self._cache = output.past_key_values
        return output.logits[:, -1].float().cpu(), before[0], after[0]

    def feed(self, tokens: list[int]) -> None:
        """What each row reads next."""
        self._next = torch.tensor(tokens, device=self._next.device)[:, None]

    def _freeze(self, prompt: Tensor) -> None:
        """A field that reads the prompt keeps what it read; the handle that kept it is gone."""
        for row, steering in enumerate(self._steerings):
            # Those of several layers would need every layer's; no method makes them.
            if steering is not None and len(steering.parts) == 1 and steering.field.reads_prompt:
                velocity = steering.only.velocity(prompt[row])
                given = GivenField(velocity, steering.field.barrier)
                self._steerings[row] = steering.replace(field=given)


@contextmanager
def _watched(model: nn.Module, part: LayerSteering) -> Iterator[list[Tensor]]:
    """The activations [rows, d] of the last place where `part` acts, once a pass has run."""
    assert part.layer is not None
    block = find_layers(model)[layer_index(model, part.layer)]
    seen: list[Tensor] = []
    width = hidden_size(model)

    def on_output(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(block_output(output, None, width)[:, -1].float().clone())

    def on_input(_module: nn.Module, args: Any) -> None:
        seen.append(args[0][:, -1].float().clone())

    if part.site == "heads":
        hook = attention_output(block).register_forward_pre_hook(on_input)
    else:
        hook = block.register_forward_hook(on_output)
    try:
        yield seen
    finally:
        hook.remove()
