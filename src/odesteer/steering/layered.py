"""Steering of several layers.

One `Steering` a layer, attached together: what an early one moves, the later ones see.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from odesteer.common.limits import brief
from odesteer.models.hooks.prometheus import exposition
from odesteer.ode import Dose, as_dose
from odesteer.steering.hub import Pushable, locate
from odesteer.steering.serialization.directory import read, write
from odesteer.steering.steering import Steering

if TYPE_CHECKING:
    from odesteer.models.compatibility import Difference
    from odesteer.models.hooks.handle import Handle
    from odesteer.models.hooks.positions import Positions
    from odesteer.models.hooks.prometheus import Counts
    from odesteer.models.hooks.stats import Callback


@dataclass(frozen=True, eq=False)
class LayeredSteering(Pushable):
    """Steerings of one model at several layers, kept in depth order.

    Attributes:
        parts: at least one, each with a layer; no two at the same place.

    Raises:
        ValueError: for no parts, a part without a layer, or two at one place.
    """

    parts: tuple[Steering, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("A steering of several layers needs at least one part; got none.")
        if any(part.layer is None for part in self.parts):
            raise ValueError("Every part of a steering of several layers needs a layer.")
        ordered = tuple(sorted(self.parts, key=lambda part: part.layer or 0))
        places = [(part.layer, part.site) for part in ordered]
        if len(set(places)) < len(places):
            raise ValueError(
                f"Two parts are at one place (layers {[layer for layer, _ in places]}): join them "
                f"with & instead."
            )
        object.__setattr__(self, "parts", ordered)

    @property
    def layer(self) -> tuple[int, ...]:
        """The layers, first to last."""
        return tuple(part.layer for part in self.parts if part.layer is not None)

    @property
    def method(self) -> str:
        """The name of the method, or names where the parts differ."""
        return " + ".join(dict.fromkeys(part.method for part in self.parts))

    @property
    def dose(self) -> Dose:
        """The dose at the first layer."""
        return self.parts[0].dose

    @property
    def strength(self) -> Dose | float:
        """The strength at the first layer."""
        return self.parts[0].strength

    @property
    def receipts(self) -> dict[str, Any]:
        """What was measured, by layer."""
        return {str(part.layer): part.receipts for part in self.parts}

    def with_strength(self, strength: Dose | float) -> "LayeredSteering":
        """The same dose at every layer."""
        return replace(self, parts=tuple(part.with_strength(strength) for part in self.parts))

    def spread(self, strength: Dose | float) -> "LayeredSteering":
        """One dose shared out: each of n layers gets 1/n of it (a `Target`, of its budget)."""
        return self.with_strength(as_dose(strength).scaled(1.0 / len(self.parts)))

    def __invert__(self) -> "LayeredSteering":
        """Steers away at every layer."""
        return replace(self, parts=tuple(~part for part in self.parts))

    def attach(
        self,
        model: Any,
        positions: "Positions" = "last+generated",
        rows: Sequence[int] | None = None,
        measure: bool = False,
        check: str = "architecture",
    ) -> "Handles":
        """Steer `model` at every layer until removed; see `odesteer.models.hooks.attach.attach`."""
        with ExitStack() as undo:
            handles = []
            for part in self.parts:
                handle = part.attach(
                    model, positions=positions, rows=rows, measure=measure, check=check
                )
                undo.callback(handle.remove)
                handles.append(handle)
            undo.pop_all()
        return Handles(tuple(handles))

    def compatibility(self, model: Any, tokenizer: Any = None) -> "list[Difference]":
        """`Steering.compatibility` of all parts, each difference once."""
        found: list[Difference] = []
        for part in self.parts:
            found += [each for each in part.compatibility(model, tokenizer) if each not in found]
        return found

    def save_pretrained(self, path: str | os.PathLike[str]) -> Path:
        """Write the directory `path`, like `Steering.save_pretrained`; `odesteer.load` reads it."""
        configs, tensors = [], dict[str, Tensor]()
        for i, part in enumerate(self.parts):
            config, more = part.describe(f"parts.{i}.field")
            configs.append(config)
            tensors.update(more)
        LayeredSteering.rebuild({"parts": configs}, tensors, path)
        first = self.parts[0]
        config = {
            "method": self.method,
            "layer": list(self.layer),
            "solver": first.solver,
            "steps": first.steps,
            "model": first.model,
            "receipts": {},
            "parts": configs,
        }
        return write(Path(path), config, tensors, f"{first.dose} at the first layer")

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], revision: str | None = None
    ) -> "LayeredSteering":
        """Read a steering of several layers, like `Steering.from_pretrained`."""
        config, tensors = read(locate(path, revision))
        if "parts" not in config:
            raise ValueError(f"'{path}' holds a steering of one layer: read it with odesteer.load.")
        return cls.rebuild(config, tensors, path)

    @classmethod
    def rebuild(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], path: str | os.PathLike[str]
    ) -> "LayeredSteering":
        """The steering that `save_pretrained` described; ValueError, naming `path`, if none."""
        parts = config["parts"]
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise ValueError(f"'{path}' is not a steering: its parts are no list of objects.")
        rebuilt = tuple(Steering.rebuild(part, tensors, path) for part in parts)
        try:
            return cls(rebuilt)
        except ValueError as error:
            raise ValueError(f"'{path}' is not a steering: {brief(error)}.") from None


class Handles:
    """The handles of several layers as one. Also a context manager; removing twice is harmless."""

    def __init__(self, parts: "tuple[Handle, ...]"):
        self.parts = parts

    def __enter__(self) -> "Handles":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take everything off the model."""
        for part in reversed(self.parts):
            part.remove()

    def set_strength(self, strength: Dose | float) -> None:
        """Change the dose of every layer while attached."""
        for part in self.parts:
            part.set_strength(strength)

    def stats(self) -> dict[str, float]:
        """`Handle.stats`, averaged over the layers."""
        stats = [part.stats() for part in self.parts]
        shared = [key for key in stats[0] if all(key in each for each in stats)]
        return {key: sum(each[key] for each in stats) / len(stats) for key in shared}

    def subscribe(self, callback: "Callback") -> Callable[[], None]:
        """`Handle.subscribe` of every layer; a `Pass` says of which it is."""
        ends = [part.subscribe(callback) for part in self.parts]

        def unsubscribe() -> None:
            for end in ends:
                end()

        return unsubscribe

    def counts(self, name: str | None = None) -> "list[Counts]":
        """`Handle.counts` of every layer."""
        return [one for part in self.parts for one in part.counts(name)]

    def prometheus(self, name: str | None = None) -> str:
        """`Handle.prometheus`, a layer a label."""
        return exposition(self.counts(name))


def parts_of(steering: Steering | LayeredSteering) -> tuple[Steering, ...]:
    """The steerings of single layers that it is made of, first layer first."""
    return steering.parts if isinstance(steering, LayeredSteering) else (steering,)


def changed(steering: Steering | LayeredSteering, **attributes: Any) -> Steering | LayeredSteering:
    """The same steering with other attributes, at every layer: `changed(one, steps=4)`."""
    if isinstance(steering, LayeredSteering):
        return LayeredSteering(tuple(replace(part, **attributes) for part in steering.parts))
    return replace(steering, **attributes)


def load(path: str | os.PathLike[str], revision: str | None = None) -> Steering | LayeredSteering:
    """Read a steering of one layer or of several; nothing in it is executed.

    Args and errors as of `Steering.from_pretrained`.
    """
    config, tensors = read(locate(path, revision))
    kind = LayeredSteering if "parts" in config else Steering
    return kind.rebuild(config, tensors, path)
