"""Description of a field as a JSON tree with tensors, and its reconstruction.

A field, barrier or whitening is its class name, its constructor's arguments and its
tensors. `describe` turns one into a JSON tree plus named tensors; `rebuild` reverses it,
only for the classes listed in `CLASSES`, and only with arguments of the types and shapes that
they take: what is read may be anybody's.
"""

import inspect
from collections.abc import Sequence
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin

from torch import Tensor, nn

from odesteer import ode
from odesteer.common.registry import lookup
from odesteer.steering.serialization import shapes

# Whole numbers count repetitions (of a flow's steps): more is a mistake, or meant to hang.
MAX_REPETITIONS = 1000

CLASSES: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        ode.AffineBarrier,
        ode.AndBarrier,
        ode.ConstantField,
        ode.Dense,
        ode.FormBarrier,
        ode.FourierBarrier,
        ode.GaussianBarrier,
        ode.GradientField,
        ode.Hourglass,
        ode.LinearBarrier,
        ode.MetricBarrier,
        ode.MixtureBarrier,
        ode.Network,
        ode.NetworkBarrier,
        ode.OrBarrier,
        ode.PlainGradientField,
        ode.QuadraticBarrier,
        ode.RectifiedField,
        ode.RotationField,
        ode.SafetyField,
        ode.SketchBarrier,
        ode.TransportField,
        ode.Whitening,
        ode.ZeroField,
    )
}


def describe(module: nn.Module, prefix: str = "field") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The JSON tree of a module and its tensors, named by their path in the tree.

    Raises:
        ValueError: if the module, or a part of it, is not one of `CLASSES`.
    """
    name = type(module).__name__
    if name not in CLASSES:
        raise ValueError(
            f"A {name} cannot be saved: it is code, and loading a steering never runs code. "
            f"Saveable are: {', '.join(CLASSES)}."
        )
    tree: dict[str, Any] = {"type": name}
    tensors: dict[str, Tensor] = {}
    for argument in _arguments(name):
        value = getattr(module, argument)
        path = f"{prefix}.{argument}"
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
            tree[argument] = {"tensor": path}
        elif isinstance(value, nn.ModuleList):
            described = [describe(part, f"{path}.{i}") for i, part in enumerate(value)]
            tree[argument] = [part for part, _ in described]
            for _, more in described:
                tensors.update(more)
        elif isinstance(value, nn.Module):
            tree[argument], more = describe(value, path)
            tensors.update(more)
        else:
            tree[argument] = value
    return tree, tensors


def rebuild(tree: Any, tensors: dict[str, Tensor]) -> nn.Module:
    """The module that `describe` described.

    Raises:
        ValueError: for a class that is not listed, an argument of another type or shape than
            the class takes, or a tensor that is missing.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("type"), str):
        raise ValueError(f"a part of a steering is an object with its type; got {tree!r:.80}")
    name = tree["type"]
    # No class has a long name, and looking for the nearest one takes time with the length.
    cls = lookup(CLASSES, name[:100], "part of a steering")
    known = _arguments(name)
    arguments = {key: _value(value, tensors) for key, value in tree.items() if key != "type"}
    if set(arguments) != set(known):
        raise ValueError(
            f"a {name} is made of {', '.join(known) or 'nothing'}; the file gives "
            f"{', '.join(arguments) or 'nothing'}"
        )
    for argument, value in arguments.items():
        if not _is(value, known[argument]):
            # Not the repr of tensors and modules, which may be as long as they are.
            shown = value if isinstance(value, str | int | float) else type(value)
            raise ValueError(f"the {argument} of a {name} cannot be {shown!r:.80}")
    shapes.check(name, arguments)
    return cls(**arguments)


def _value(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [rebuild(part, tensors) for part in value]
    if isinstance(value, dict) and set(value) == {"tensor"}:
        name = value["tensor"]
        if not isinstance(name, str) or name not in tensors:
            raise ValueError(f"the tensor {name!r:.80} is missing from the file")
        return tensors[name]
    return rebuild(value, tensors) if isinstance(value, dict) else value


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type: a class, a sequence of one, or any of several."""
    if get_origin(hint) in (Union, UnionType):
        return any(_is(value, each) for each in get_args(hint))
    if get_origin(hint) is Sequence:
        return isinstance(value, list) and all(_is(each, *get_args(hint)) for each in value)
    if hint is float:
        return type(value) in (int, float) and abs(value) <= shapes.LARGEST
    if hint is int:
        return type(value) is int and 0 <= value <= MAX_REPETITIONS
    return isinstance(value, hint)


@cache
def _arguments(name: str) -> dict[str, Any]:
    """The arguments of a class of `CLASSES`, and their types."""
    signature = inspect.signature(CLASSES[name], eval_str=True)
    return {key: parameter.annotation for key, parameter in signature.parameters.items()}
