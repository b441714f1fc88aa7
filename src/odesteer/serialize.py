"""How is a field written down without code, and read back without running any?

A field, barrier or whitening is its class name, its constructor's arguments and its
tensors. `describe` turns one into a JSON tree plus named tensors; `rebuild` reverses it,
and only for the classes listed in `CLASSES`.
"""

import inspect
from typing import Any

from torch import Tensor, nn

from odesteer import ode
from odesteer.lookup import pick

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
    for argument in _arguments(type(module)):
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


def rebuild(tree: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """The module that `describe` described.

    Raises:
        ValueError: for a class that is not listed, or a tensor that is missing.
    """
    cls = pick(CLASSES, tree["type"], "part of a steering")
    known = _arguments(cls)
    arguments = {key: value for key, value in tree.items() if key != "type"}
    if set(arguments) != set(known):
        raise ValueError(
            f"A {tree['type']} is made of {', '.join(known) or 'nothing'}; the file gives "
            f"{', '.join(arguments) or 'nothing'}."
        )
    return cls(**{key: _value(value, tensors) for key, value in arguments.items()})


def _value(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [rebuild(part, tensors) for part in value]
    if isinstance(value, dict) and "tensor" in value:
        if value["tensor"] not in tensors:
            raise ValueError(f"The tensor '{value['tensor']}' is missing from the file.")
        return tensors[value["tensor"]]
    return rebuild(value, tensors) if isinstance(value, dict) else value


def _arguments(cls: type) -> list[str]:
    return [name for name in inspect.signature(cls).parameters]
