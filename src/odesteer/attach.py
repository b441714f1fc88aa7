"""How does a steering act inside a transformers model?

A forward hook on one decoder block replaces the chosen tokens' activations a by a(T). Which
tokens are chosen depends on what a token is (`odesteer.tracker`). The model's class and
modules stay as they are.

    "last+generated"  the last real token of the prompt and every generated one (the paper)
    "generated"       every generated token
    "prompt"          every real token of the prompt
    "all"             every real token
    a mask            [t] or [batch, t], true at the positions to steer, counted from the
                      start of the (padded) prompt

Outside `generate`, a call without a cache is a prompt and a call that continues a cache is
generation; inside `scoring`, each row is a prompt of a known length and what was generated
after it. Steering is not differentiable: gradients stop at steered tokens.
"""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from odesteer.layers import (
    attention_output,
    find_layers,
    hidden_size,
    input_width,
    layer_index,
)
from odesteer.lookup import pick
from odesteer.ode import Dose
from odesteer.steering import Steering
from odesteer.tracker import Call, Tracker

Positions = str | Tensor
POSITIONS = ("last+generated", "generated", "prompt", "all")


def attach(
    steering: Steering,
    model: nn.Module,
    positions: Positions = "last+generated",
    rows: Sequence[int] | None = None,
    measure: bool = False,
) -> "Handle":
    """Steer a model until the handle is removed; use it in a `with` block.

    Args:
        steering: what to do; its `layer` says where.
        model: any transformers causal language model, also wrapped by PEFT.
        positions: which tokens, see above.
        rows: which rows of the batch (with beams: which prompts); None is all. Several
            steerings on rows of their own share one batch.
        measure: also record displacement and log-odds for `Handle.stats` (costs two
            evaluations of the barrier a token).

    Raises:
        ValueError: for a layer the model does not have, another width, unknown positions.
    """
    if isinstance(positions, str):
        check_positions(positions)
    index = check_fits(steering, model)
    return Handle(steering, model, find_layers(model)[index], positions, rows, measure)


def scoring(model: nn.Module, lengths: Tensor) -> AbstractContextManager[None]:
    """While open, a row's first `lengths` [b] tokens (padding included) are its prompt."""
    return Tracker.of(model).scoring(lengths)


def check_positions(positions: str) -> None:
    """ValueError for a name that is none of `POSITIONS`."""
    pick(dict.fromkeys(POSITIONS), positions, "positions")


def check_fits(steering: Steering, model: nn.Module) -> int:
    """The index of the block to steer; ValueError where steering and model do not fit."""
    if steering.layer is None:
        raise ValueError(
            "This steering does not know its layer: fit it with layer=..., or use "
            "dataclasses.replace(steering, layer=...)."
        )
    width, expected = hidden_size(model), steering.hidden_size
    index = layer_index(model, steering.layer)
    if steering.site == "heads":
        width = input_width(attention_output(find_layers(model)[index]))
    if width is not None and expected is not None and width != expected:
        raise ValueError(
            f"This steering is for activations of width {expected}; {type(model).__name__} has "
            f"width {width}. It was fitted on {steering.model.get('name', 'another model')}."
        )
    return index


class Handle:
    """A steering on a model. Also a context manager; removing twice is harmless."""

    def __init__(
        self,
        steering: Steering,
        model: nn.Module,
        block: nn.Module,
        positions: Positions,
        rows: Sequence[int] | None,
        measure: bool,
    ):
        self.steering = steering
        self._positions = positions
        self._rows = None if rows is None else torch.as_tensor(list(rows), dtype=torch.long)
        self._measure = measure
        self._seen = 0
        self._sums: dict[str, Tensor] = {}
        self._tracker = Tracker.of(model)
        self._local = threading.local()
        if steering.site == "heads":
            self._hook = attention_output(block).register_forward_pre_hook(self._on_input)
        else:
            self._hook = block.register_forward_hook(self._on_output)
        try:
            self._tracker.acquire()
        except BaseException:
            self._hook.remove()
            raise
        self._attached = True

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __deepcopy__(self, _memo: object) -> "Handle":
        # The copy's `generate` would run the original model.
        raise TypeError("A model cannot be copied while it is steered: remove the steering first.")

    def __reduce__(self) -> str:
        raise TypeError("A model cannot be pickled while it is steered: remove the steering first.")

    def remove(self) -> None:
        """Take everything off the model."""
        if self._attached:
            self._attached = False
            self._hook.remove()
            self._tracker.release()

    def set_strength(self, strength: Dose | float) -> None:
        """Change the dose while attached."""
        self.steering = self.steering.with_strength(strength)

    def stats(self) -> dict[str, float]:
        """What happened so far.

        `tokens` the block has seen (padding included), `steered` of them, and with
        `measure=True` means over the steered ones: share `moved`, `displacement`
        ||a(T) - a||, `relative_displacement` to ||a||, `log_odds_before` and
        `log_odds_after` (where the method has a barrier).
        """
        steered = float(self._sums.get("steered", torch.zeros(())))
        result = {"tokens": float(self._seen), "steered": steered}
        for name, total in self._sums.items():
            if name != "steered":
                result[name] = float(total) / steered if steered else float("nan")
        return result

    def _on_output(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        steered = self._apply(hidden)
        if steered is hidden:
            return output
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    def _on_input(self, _module: nn.Module, args: Any) -> Any:
        steered = self._apply(args[0])
        return None if steered is args[0] else (steered, *args[1:])

    def _apply(self, hidden: Tensor) -> Tensor:
        self._seen += hidden.shape[:-1].numel()
        velocity = self._velocity(hidden) if self.steering.field.reads_prompt else None
        chosen = self._chosen(hidden)
        if self._rows is not None:
            mine = self._tracker.expand_rows(self._rows, hidden.shape[0]).to(hidden.device)
            every = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
            chosen = (every if chosen is None else chosen) & mine[:, None]
        if velocity is not None:
            velocity = velocity.unsqueeze(1).expand(*hidden.shape[:2], -1)
        if chosen is None:
            self._record(hidden, moved := self.steering(hidden, velocity))
            return moved
        before = hidden[chosen]
        after = self.steering(before, None if velocity is None else velocity[chosen])
        self._record(before, after)
        if after is before:
            return hidden
        result = hidden.clone()
        result[chosen] = after
        return result

    def _velocity(self, hidden: Tensor) -> Tensor:
        """What the field made of each row's prompt, [b, d]; 0 until its last token was read."""
        batch, t, d = hidden.shape
        call = self._tracker.call or Call(0, t, None, None)
        kept: Tensor | None = getattr(self._local, "velocity", None)
        if kept is None or call.offset == 0 or len(kept) != batch:
            kept = torch.zeros(batch, d, device=hidden.device)
        place = call.prompt_ends(batch, hidden.device) - call.offset
        here = (place >= 0) & (place < t)
        if bool(here.any()):
            rows = torch.arange(batch, device=hidden.device)
            prompts = hidden[rows, place.clamp(0, t - 1)]
            kept = torch.where(here[:, None], self.steering.velocity(prompts), kept)
        self._local.velocity = kept
        return kept

    def _chosen(self, hidden: Tensor) -> Tensor | None:
        """A mask [b, t] of the tokens to steer; None for all of them."""
        batch, t = hidden.shape[:2]
        call = self._tracker.call or Call(0, t, None, None)
        device = hidden.device
        position = call.offset + torch.arange(t, device=device)
        if isinstance(self._positions, Tensor):
            return _given(self._positions.to(device), position, batch)
        if self._positions == "all":
            return None if call.real is None else call.real.to(device)
        length = call.prompt_length
        if isinstance(length, Tensor):
            generated = position >= length.to(device)[:, None]
        elif call.offset >= length and self._positions != "prompt":
            return None if call.real is None else call.real.to(device)
        else:
            generated = (position >= length).expand(batch, t)
        if self._positions == "generated":
            chosen = generated
        elif self._positions == "prompt":
            chosen = ~generated
        else:
            chosen = generated | (position == call.prompt_ends(batch, device)[:, None])
        return chosen if call.real is None else chosen & call.real.to(device)

    def _record(self, before: Tensor, after: Tensor) -> None:
        def add(name: str, total: Tensor) -> None:
            self._sums[name] = self._sums.get(name, torch.zeros_like(total)) + total

        add("steered", torch.tensor(float(before.shape[:-1].numel())))
        if not self._measure:
            return
        step = (after.float() - before.float()).norm(dim=-1)
        add("moved", (step > 0).float().sum().cpu())
        add("displacement", step.sum().cpu())
        norm = before.float().norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        add("relative_displacement", (step / norm).sum().cpu())
        if self.steering.field.barrier is not None:
            add("log_odds_before", self.steering.log_odds(before).sum().cpu())
            add("log_odds_after", self.steering.log_odds(after).sum().cpu())


def _given(mask: Tensor, position: Tensor, batch: int) -> Tensor:
    """The user's mask at these absolute positions; false beyond its end."""
    mask = mask.bool().reshape(-1, mask.shape[-1])
    if batch % len(mask):
        raise ValueError(
            f"The positions mask has {len(mask)} rows; the model is running a batch of {batch}."
        )
    inside = position < mask.shape[-1]
    values = mask[:, position.clamp_max(mask.shape[-1] - 1)] & inside
    return values.repeat_interleave(batch // len(mask), dim=0)  # beams
