"""Control vectors: one direction a layer, from files or objects of other libraries.

a <- a + scale d_l      at the output of block l, for every l that it has

Other libraries exchange one direction a layer, added to every token: the flow of a constant field
for the time `scale`. Their objects:

    steering-vectors   SteeringVector: `layer_activations` {layer: tensor}, `layer_type`
    repeng             ControlVector: `directions` {layer: array}, `model_type`
    plain              {layer: tensor, array or numbers}

They are recognised by these names, so that neither library is needed. And back:
`SteeringVector(vectors.directions)`, and `ControlVector(vectors.model_type, {layer: d.numpy() for
layer, d in vectors.directions.items()})`. All count the decoder's blocks from 0 and mean their
outputs, as here.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odesteer.common.limits import MAX_LAYERS
from odesteer.steering import Steering


def as_direction(numbers: Tensor) -> Tensor:
    """Return [d] for [d], [1, d] or [1, 1, d], in float32; several rows stay as they are."""
    numbers = numbers.float()
    return numbers.flatten() if numbers.numel() in numbers.shape else numbers


# "1" alone: what Python's int takes for 1 as well ("01", "+1", "1_0", other scripts) is ambiguous.
_LAYER = re.compile(r"(?:direction\.)?(0|[1-9][0-9]{0,8})")


def by_layer(named: Iterable[tuple[str, Tensor]]) -> dict[int, Tensor]:
    """Return directions by layer, from tensors named "direction.N" or "N".

    Raises:
        ValueError: for another name, a layer beyond any model's, or a duplicate layer.
    """
    directions: dict[int, Tensor] = {}
    for name, numbers in named:
        match = _LAYER.fullmatch(name)
        if match is None or int(match[1]) >= MAX_LAYERS:
            raise ValueError(
                f"a direction is named by its layer, 0 to {MAX_LAYERS - 1}, as 'direction.7' or "
                f"'7'; got {name!r:.80}"
            )
        layer = int(match[1])
        if layer in directions:
            raise ValueError(f"it has two directions of layer {layer}")
        directions[layer] = as_direction(numbers)
    return directions


@dataclass(frozen=True, eq=False)
class Vectors:
    """Control vectors: directions by layer.

    Attributes:
        directions: [d] in float32, by the 0-based index of the block to whose output each is
            added.
        model_type: the architecture's name, if known: a hint, on which a model is warned about
            and not refused.
        notes: their origin (plain text, by key).

    Raises:
        ValueError: for no directions, one that is no finite vector, a negative layer, or several
            widths.
    """

    directions: dict[int, Tensor]
    model_type: str | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.directions:
            raise ValueError("A control vector has a direction for at least one layer; got none.")
        for layer, direction in self.directions.items():
            if layer < 0:
                raise ValueError(f"A control vector counts layers from 0; got {layer}.")
            shaped = direction.dim() == 1 and len(direction) > 0
            if not shaped or not bool(torch.isfinite(direction).all()):
                raise ValueError(
                    f"The direction of layer {layer} is no vector of finite numbers (its shape is "
                    f"{list(direction.shape)})."
                )
        widths = sorted({len(direction) for direction in self.directions.values()})
        if len(widths) > 1:
            raise ValueError(f"The directions have several widths: {widths}.")
        ordered = {layer: self.directions[layer].float() for layer in sorted(self.directions)}
        object.__setattr__(self, "directions", ordered)

    @property
    def width(self) -> int:
        """Width d of the directions."""
        return len(next(iter(self.directions.values())))

    def scaled(self, factor: float) -> "Vectors":
        """Return every direction times `factor`."""
        scaled = {layer: factor * d for layer, d in self.directions.items()}
        return Vectors(scaled, self.model_type, self.notes)

    def moved(self, by: int) -> "Vectors":
        """Return every direction `by` blocks later."""
        shifted = {layer + by: d for layer, d in self.directions.items()}
        return Vectors(shifted, self.model_type, self.notes)

    def noted(self, key: str, note: str) -> "Vectors":
        """Return the vectors with one more note, which files keep."""
        return Vectors(self.directions, self.model_type, {**self.notes, key: note})

    def steering(self, strength: float = 1.0) -> Steering:
        """Return the equal steering, of one layer or of several.

        Args:
            strength: the scale, as other libraries call it; with 1, a moves by d.
        """
        hint = {} if self.model_type is None else {"hint": self.model_type}
        parts = tuple(
            Steering.from_vector(direction, layer, strength).replace(
                model={**hint, "hidden_size": self.width}, receipts=dict(self.notes)
            )
            for layer, direction in self.directions.items()
        )
        return Steering.of(parts)


def vectors_of(other: object) -> Vectors:
    """Copy the control vectors of an object.

    Args:
        other: any of the above; a direction is [d], [1, d] or [1, 1, d].

    Raises:
        ValueError: for another kind of object, a steering vector that is not added to the output
            of blocks, or what `Vectors` refuses.
    """
    kind = getattr(other, "layer_type", "decoder_block")
    if kind != "decoder_block":
        raise ValueError(
            f"A control vector is added to the output of decoder blocks; this one is at '{kind}'."
        )
    directions: Any = getattr(other, "layer_activations", getattr(other, "directions", other))
    if not isinstance(directions, Mapping):
        raise ValueError(
            f"A control vector is a mapping from layers to directions, or an object with "
            f"`layer_activations` or `directions`; got a {type(other).__name__}."
        )
    model_type = getattr(other, "model_type", None)
    return Vectors(
        {_layer(key): _direction(key, numbers) for key, numbers in directions.items()},
        model_type if isinstance(model_type, str) else None,
    )


def _layer(key: Any) -> int:
    if isinstance(key, bool) or not isinstance(key, int):
        raise ValueError(f"Layers are counted in whole numbers; got {key!r}.")
    return key


def _direction(key: Any, numbers: Any) -> torch.Tensor:
    try:
        return as_direction(torch.as_tensor(numbers).detach().cpu().clone())
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"The direction of layer {key} is no array of numbers: {reason}."
        ) from None
