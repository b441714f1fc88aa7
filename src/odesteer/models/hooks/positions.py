"""Positions of a forward pass that a steering acts on.

    "last+generated"  the last real token of the prompt and every generated one (the paper)
    "generated"       every generated token
    "prompt"          every real token of the prompt
    "all"             every real token
    a mask            [t] or [batch, t], true at the positions to steer, counted from the
                      start of the (padded) prompt

Padding and the virtual tokens of a soft prompt (PEFT) are never steered.
`odesteer.models.hooks.token_tracker` tells the kinds of tokens apart.
"""

import torch
from torch import Tensor

from odesteer.common.registry import lookup
from odesteer.models.hooks.token_tracker import ForwardCall

Positions = str | Tensor
POSITIONS = ("last+generated", "generated", "prompt", "all")


def check_positions(positions: str) -> None:
    """Raise ValueError for a name that is none of `POSITIONS`."""
    lookup(dict.fromkeys(POSITIONS), positions, "positions")


def check_packed(obstacle: str, positions: Positions, rows: bool, prompt: bool) -> None:
    """Raise if prompts must be told from generated tokens and cannot be.

    A wrong guess would be silent.

    Args:
        obstacle: why they cannot be told apart: several texts share a row, or the like.
        positions: which tokens.
        rows: whether rows of the batch are told apart.
        prompt: whether the field reads the prompt.

    Raises:
        ValueError: naming the obstacle and what cannot be done because of it.
    """
    mask = isinstance(positions, Tensor)
    selection = "a mask of positions" if mask else f"positions={positions!r}"
    selective = {
        selection: mask or positions != "all",
        "rows of their own": rows,
        "a field that reads the prompt": prompt,
    }
    obstacles = " and ".join(name for name, selects in selective.items() if selects)
    if obstacles:
        raise ValueError(
            f"{obstacle}, where {obstacles} would mean other tokens than asked for. Use "
            f"positions='all', or plain `generate` and batches with padding."
        )


def select_tokens(positions: Positions, call: ForwardCall, hidden: Tensor) -> Tensor | None:
    """Return a mask [b, t] of the tokens of `hidden` to steer; None for all.

    Raises:
        ValueError: if a mask is of another batch.
    """
    batch, t = hidden.shape[:2]
    device = hidden.device
    position = call.offset + torch.arange(t, device=device)
    if isinstance(positions, Tensor):
        return _given(positions.to(device), position, batch)
    real = None if call.real is None else call.real.to(device)
    if positions == "all":
        return real
    length = call.prompt_length
    if isinstance(length, Tensor):
        generated = position >= length.to(device)[:, None]
    elif call.offset >= length and positions != "prompt":
        return real
    else:
        generated = (position >= length).expand(batch, t)
    if positions == "generated":
        mask = generated
    elif positions == "prompt":
        mask = ~generated
    else:
        mask = generated | (position == call.prompt_ends(batch, device)[:, None])
    return mask if real is None else mask & real


def _given(mask: Tensor, position: Tensor, batch: int) -> Tensor:
    """Look up the user's mask at positions; false before its start and beyond its end."""
    mask = mask.bool().reshape(-1, mask.shape[-1])
    if batch % len(mask):
        raise ValueError(
            f"The positions mask has {len(mask)} rows; the model is running a batch of {batch}."
        )
    inside = (position >= 0) & (position < mask.shape[-1])
    values = mask[:, position.clamp(0, mask.shape[-1] - 1)] & inside
    return values.repeat_interleave(batch // len(mask), dim=0)  # beams
