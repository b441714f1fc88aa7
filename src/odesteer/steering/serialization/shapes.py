"""Tensor shapes of each serializable class.

Letters are sizes: in one part, the same letter is the same size, and `d` is the width that all
parts of a part share. "" is a single number, "|" stands between what is equally allowed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from odesteer.ode import Whitening

SHAPES: dict[str, dict[str, str]] = {
    "ConstantField": {"direction": "d"},
    "Dense": {"weight": "o i", "bias": "o"},
    "FormBarrier": {"centre": "d", "matrix": "d d|d", "slope": "d", "constant": ""},
    "FourierBarrier": {"frequency": "n d", "offset": "n", "coef": "n", "bias": ""},
    "GaussianBarrier": {"centre": "d", "matrix": "d d|d", "slope": "d", "constant": ""},
    "LinearBarrier": {"weight": "d", "bias": ""},
    "MixtureBarrier": {
        "positive": "n d",
        "negative": "m d",
        "positive_weights": "n",
        "negative_weights": "m",
    },
    "NetworkBarrier": {"centre": "d", "scale": "|d"},
    "QuadraticBarrier": {"basis": "d k", "curvature": "k", "slope": "k", "constant": ""},
    "RectifiedField": {"centre": "d", "scale": "", "mean": "d", "spread": "", "basis": "d k"},
    "RotationField": {"theta": "d"},
    "SketchBarrier": {"index": "p e", "sign": "p e", "weight": "n", "bias": ""},
    "TransportField": {"low": "d", "high": "d"},
    "Whitening": {"centre": "d", "directions": "d r", "stretch": "r"},
}
# Squares of larger numbers overflow in float32, where not every activation need show it.
LARGEST = 1e18
# Hash buckets; every other tensor holds real numbers.
_INTEGERS = {("SketchBarrier", "index")}


def check(name: str, arguments: Mapping[str, Any]) -> None:
    """Whether these are the tensors and parts of the class of that name.

    Raises:
        ValueError: for a tensor of another shape or type, numbers that nothing can be computed
            with, or parts of different widths.
    """
    sizes: dict[str, int] = {}
    for part in _parts(arguments):
        width = _width(part)
        if width is not None and sizes.setdefault("d", width) != width:
            raise ValueError(
                f"a {name} holds parts of the widths {sizes['d']} and {width}; they must be one"
            )
    for argument, forms in SHAPES.get(name, {}).items():
        value = arguments.get(argument)
        if not isinstance(value, Tensor):
            continue
        if value.dtype.is_floating_point == ((name, argument) in _INTEGERS):
            raise ValueError(f"the {argument} of a {name} cannot be of type {value.dtype}")
        if not bool((value.abs() <= LARGEST).all()):
            raise ValueError(
                f"the {argument} of a {name} holds NaN, infinity or a number beyond {LARGEST:g}"
            )
        if not any(_fits(value, form.split(), sizes) for form in forms.split("|")):
            known = ", ".join(f"{letter} = {size}" for letter, size in sizes.items())
            allowed = " or ".join(f"[{form.replace(' ', ', ')}]" for form in forms.split("|"))
            raise ValueError(
                f"the {argument} of a {name} is {allowed}{' with ' if known else ''}{known}; got "
                f"{list(value.shape)}"
            )
    if sizes.get("d") == 0:
        raise ValueError(f"a {name} of width 0 steers nothing")


def _fits(tensor: Tensor, letters: list[str], sizes: dict[str, int]) -> bool:
    """Whether the shape agrees with the sizes known so far, which it adds to."""
    found = dict(sizes)
    if tensor.dim() != len(letters) or any(
        found.setdefault(letter, size) != size
        for letter, size in zip(letters, tensor.shape, strict=True)
    ):
        return False
    sizes.update(found)
    return True


def _parts(arguments: Mapping[str, Any]) -> Iterator[nn.Module]:
    for value in arguments.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, nn.Module):
                yield part


def _width(part: nn.Module) -> int | None:
    if isinstance(part, Whitening):
        return part.centre.shape[0]
    return getattr(part, "width", None)
