"""Methods that train for few steps: as their sources say they take half a minute each."""

from dataclasses import make_dataclass

import odesteer as ods
from odesteer.methods import Method

# A network's steps, and the epochs through the model.
_TRAINED = {name: ("min_steps", int, 80) for name in ("hpr", "re-control", "truthflow")}
_TRAINED["odesteer-trained"] = ("epochs", int, 1)


def quick(name: str) -> type[Method]:
    """The method of that name, with fewer steps where they take long."""
    method = ods.METHODS[name]
    if name not in _TRAINED:
        return method
    made = make_dataclass(method.__name__, [_TRAINED[name]], bases=(method,), frozen=True)
    made.__doc__ = method.__doc__
    return made
