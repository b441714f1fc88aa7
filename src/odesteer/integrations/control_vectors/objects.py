"""Control-vector objects of other libraries.

    steering-vectors   SteeringVector: `layer_activations` {layer: tensor}, `layer_type`
    repeng             ControlVector: `directions` {layer: array}, `model_type`
    plain              {layer: tensor, array or numbers}

They are known by these names alone, so that neither library is needed. Back again:
`SteeringVector(vectors.directions)`, and `ControlVector(vectors.model_type, {layer: d.numpy() for
layer, d in vectors.directions.items()})`. All count the decoder's blocks from 0 and mean their
outputs, as here.
"""

from collections.abc import Mapping
from typing import Any

import torch

from odesteer.integrations.control_vectors.vectors import Vectors, as_direction


def vectors_of(other: object) -> Vectors:
    """The control vectors that an object holds, copied.

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
    found: Any = getattr(other, "layer_activations", getattr(other, "directions", other))
    if not isinstance(found, Mapping):
        raise ValueError(
            f"A control vector is a mapping from layers to directions, or an object with "
            f"`layer_activations` or `directions`; got a {type(other).__name__}."
        )
    named = getattr(other, "model_type", None)
    return Vectors(
        {_layer(key): _direction(key, numbers) for key, numbers in found.items()},
        named if isinstance(named, str) else None,
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
