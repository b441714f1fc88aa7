"""Attachment of a steering to a transformers model by forward hooks.

A forward hook on one decoder block replaces the activations a of the chosen tokens by a(T); see
`odesteer.models.hooks.positions` for the choice of tokens. The model's class and modules are not
changed.

Outside `generate`, a call without a cache is a prompt and a call that continues a cache is
generation; inside `scoring`, each row is a prompt of a known length followed by generated tokens.

A steering acts in every thread that runs the model. Each thread tracks the tokens of its own
forward pass, so threads may share a steered model, and may attach and remove steerings while
others run it. Gradients pass as if a(T) - a were a constant, which for a constant field it is;
with `differentiable=True` they are exact.
"""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack

from torch import Tensor, nn

from odesteer.models import compatibility
from odesteer.models.hooks.condition import Condition, Threshold
from odesteer.models.hooks.handle import ConditionReader, Handle, LayerHandle
from odesteer.models.hooks.positions import Positions, parse_positions
from odesteer.models.hooks.token_tracker import TokenTracker
from odesteer.models.layers import (
    attention_output,
    find_layers,
    hidden_size,
    input_width,
    layer_index,
)
from odesteer.models.steers import Steers


def attach(
    parts: Sequence[Steers],
    model: nn.Module,
    positions: Positions | None = None,
    rows: Sequence[int] | None = None,
    measure: bool = False,
    check: str = "architecture",
    differentiable: bool = False,
    when: Condition | None = None,
) -> Handle:
    """Steer a model until the handle is removed; use it in a `with` block.

    Args:
        parts: the steering of each layer.
        model: any transformers causal language model, also wrapped by PEFT or compiled.
        positions: which tokens, see `odesteer.models.hooks.positions`; None: those of each part.
        rows: which rows of the batch (with beams: which prompts); None is all. Several
            steerings on rows of their own share one batch.
        measure: also record displacement and log-odds for `Handle.stats` (costs two
            evaluations of the barrier a token).
        check: the required level of agreement with the model it was fitted on, see
            `odesteer.models.compatibility`.
        differentiable: let exact gradients through the steered blocks, to the activations below and
            to the tensors of the field; without it a(T) - a counts as a constant.
        when: which prompts, see `odesteer.models.hooks.condition`; None is all.

    Raises:
        ValueError: for a layer the model does not have, another width, unknown positions, another
            model than `check` accepts, or a condition that is read too late.
    """
    given = None if positions is None else parse_positions(positions)
    blocks = find_layers(model)
    with ExitStack() as undo:
        handles = []
        reader = None
        thresholds: Sequence[Threshold] = ()
        read_at: list[int] = []
        if when is not None:
            # Before the steerings: it reads what comes to a block that is steered, too.
            thresholds = when.thresholds
            read_at = [check_fits(each.part, model, check) for each in thresholds]
            reader = ConditionReader(when, model, [blocks[index] for index in read_at])
            undo.callback(reader.remove)
        for part in parts:
            index = check_fits(part, model, check)
            chosen = parse_positions(part.positions) if given is None else given
            for threshold, block in zip(thresholds, read_at, strict=True):
                threshold.check(block, part, index, chosen)
            handle = LayerHandle(
                part, model, blocks[index], chosen, rows, measure, differentiable, reader
            )
            undo.callback(handle.remove)
            handles.append(handle)
        undo.pop_all()
    return Handle(handles)


def scoring(model: nn.Module, lengths: Tensor) -> AbstractContextManager[None]:
    """Treat each row's first `lengths` [b] tokens, padding included, as its prompt."""
    return TokenTracker.of(model).scoring(lengths)


def check_fits(steering: Steers, model: nn.Module, check: str = "architecture") -> int:
    """Return the index of the block to steer; ValueError unless the model fits."""
    if steering.layer is None:
        raise ValueError(
            "This steering does not know its layer: fit it with layer=..., or use "
            "steering.replace(layer=...)."
        )
    described = "name" in steering.model
    if described:  # then the error names both models
        compatibility.check(steering, model, check)
    index = layer_index(model, steering.layer)
    width, expected = hidden_size(model), steering.hidden_size
    if steering.site == "heads":
        width = input_width(attention_output(find_layers(model)[index]))
    if width is not None and expected is not None and width != expected:
        raise ValueError(
            f"This steering is for activations of width {expected}; {type(model).__name__} has "
            f"width {width}."
        )
    if not described:
        compatibility.check(steering, model, check)
    block = type(find_layers(model)[index]).__name__
    if "cross" in block.lower():
        warnings.warn(
            f"Block {index} of {type(model).__name__} is a {block}, which runs only where there "
            f"is an image to look at: text alone is not steered there. Other layers always are.",
            stacklevel=4,
        )
    doubt = compatibility.doubt(steering, model)
    if doubt is not None:
        warnings.warn(doubt, stacklevel=4)  # at the caller of attach
    return index
