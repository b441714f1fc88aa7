"""Steering: maps a -> a(T) at one decoder block or several, and their composition.

    a & b, all_of(a, b)   h = -log(e^-h_a + e^-h_b), or min(h_a, h_b)
    a | b, any_of(a, b)   h =  log(e^h_a + e^h_b),   or max(h_a, h_b)
    ~a                    field -v, barrier -h
    guarded(a, by=b)      a's field, changed least so that dh_b/dt >= -alpha (h_b - margin);
                          by=[b, c] keeps both

h are the calibrated barriers, in nats of log-odds, so that one aim does not drown another.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from odesteer.common.limits import brief
from odesteer.models.compatibility import Difference, differences
from odesteer.models.hooks.attach import attach
from odesteer.models.hooks.handle import Handle
from odesteer.models.hooks.positions import Positions
from odesteer.ode import (
    AndBarrier,
    Barrier,
    Dose,
    GradientField,
    OrBarrier,
    SafetyField,
    Solution,
    VectorField,
    as_dose,
)
from odesteer.steering.hub import Pushable, locate
from odesteer.steering.layer_steering import Calibration, LayerSteering
from odesteer.steering.serialization.directory import read, write


class Steering(Pushable):
    """Steering of one layer, or of several layers of one model.

    It is what gets saved, loaded, composed and attached. With one layer it has the attributes of
    its only part, and is the map a -> a(T) itself; with several, ask its `parts`.

    Args:
        field, strength, solver, steps, layer, method, hyperparameters, calibration, receipts,
            model, site: of the one layer, see `LayerSteering`. `of` joins several layers.

    What a part at an early layer moves, the later ones see.

    Example:
        >>> import torch
        >>> from odesteer.ode import ConstantField
        >>> Steering(ConstantField(torch.ones(2)), strength=0.5)(torch.zeros(2))
        tensor([0.5000, 0.5000])
    """

    def __init__(
        self,
        field: VectorField,
        strength: Dose | float = 1.0,
        solver: str = "euler",
        steps: int = 1,
        layer: int | None = None,
        method: str = "custom",
        hyperparameters: dict[str, Any] | None = None,
        calibration: Calibration | None = None,
        receipts: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
        site: str = "residual",
    ):
        part = LayerSteering(
            field=field,
            strength=strength,
            solver=solver,
            steps=steps,
            layer=layer,
            method=method,
            hyperparameters=hyperparameters or {},
            calibration=calibration or Calibration(),
            receipts=receipts or {},
            model=model or {},
            site=site,
        )
        self._parts: tuple[LayerSteering, ...] = (part,)

    @classmethod
    def of(cls, parts: "Iterable[LayerSteering | Steering]") -> "Steering":
        """Join steerings of one model at different layers.

        Raises:
            ValueError: for no parts, several of which one has no layer, or two at one place.
        """
        flat = [
            part
            for each in parts
            for part in (each.parts if isinstance(each, Steering) else (each,))
        ]
        if not flat:
            raise ValueError("A steering needs at least one part; got none.")
        if len(flat) > 1 and any(part.layer is None for part in flat):
            raise ValueError("Every part of a steering of several layers needs a layer.")
        ordered = tuple(sorted(flat, key=lambda part: part.layer or 0))
        sites = [(part.layer, part.site) for part in ordered]
        if len(set(sites)) < len(sites):
            raise ValueError(
                f"Two parts are at one place (layers {[layer for layer, _ in sites]}): join them "
                f"with & instead."
            )
        steering = cls.__new__(cls)
        steering._parts = ordered
        return steering

    def replace(self, **attributes: Any) -> "Steering":
        """Return a copy with other attributes at every layer: `steering.replace(steps=4)`."""
        return Steering.of(replace(part, **attributes) for part in self.parts)

    def __repr__(self) -> str:
        return f"Steering(method='{self.method}', layer={self.layer}, strength={self.strength})"

    # ---- what all layers share

    @property
    def parts(self) -> tuple[LayerSteering, ...]:
        """One `LayerSteering` a layer, in depth order."""
        return self._parts

    @property
    def layer(self) -> int | tuple[int, ...] | None:
        """Layer, or all layers first to last where there are several."""
        if len(self.parts) == 1:
            return self.parts[0].layer
        return tuple(part.layer for part in self.parts if part.layer is not None)

    @property
    def first_layer(self) -> int:
        """First block that it changes; ValueError for a steering without a layer."""
        layer = self.parts[0].layer
        if layer is None:
            raise ValueError("This steering does not know its layer: steering.replace(layer=...).")
        return layer

    @property
    def method(self) -> str:
        """Name of the method, or names where the parts differ."""
        return " + ".join(dict.fromkeys(part.method for part in self.parts))

    @property
    def strength(self) -> Dose | float:
        """Strength at the first layer."""
        return self.parts[0].strength

    @property
    def dose(self) -> Dose:
        """Dose at the first layer."""
        return self.parts[0].dose

    @property
    def model(self) -> dict[str, Any]:
        """Description of the model it was fitted on (JSON values)."""
        return self.parts[0].model

    @property
    def receipts(self) -> dict[str, Any]:
        """Measurements made when it was fitted; of several layers, by layer."""
        if len(self.parts) == 1:
            return self.parts[0].receipts
        return {str(part.layer): part.receipts for part in self.parts}

    def with_strength(self, strength: Dose | float) -> "Steering":
        """Return the same steering at another dose, at every layer."""
        return Steering.of(part.with_strength(strength) for part in self.parts)

    def spread(self, strength: Dose | float) -> "Steering":
        """Spread one dose over n layers, 1/n each (of a `Target`, of its budget)."""
        return self.with_strength(as_dose(strength).scaled(1.0 / len(self.parts)))

    # ---- the only layer

    @property
    def only(self) -> LayerSteering:
        """Part of a steering of one layer.

        Raises:
            ValueError: if there are several.
        """
        if len(self.parts) > 1:
            raise ValueError(
                f"This steering acts at layers {self.layer}: ask one of its parts, steering.parts."
            )
        return self.parts[0]

    @property
    def field(self) -> VectorField:
        """Vector field of the only layer."""
        return self.only.field

    @property
    def barrier(self) -> Barrier:
        """Barrier of the only layer; ValueError if the method has none."""
        return self.only.barrier

    @property
    def calibration(self) -> Calibration:
        """Calibration of the only layer, from h to a probability."""
        return self.only.calibration

    @property
    def solver(self) -> str:
        """Name of the only layer's solver."""
        return self.only.solver

    @property
    def steps(self) -> int:
        """Steps of the only layer's solver."""
        return self.only.steps

    @property
    def site(self) -> str:
        """Site in the block where the only layer acts."""
        return self.only.site

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Hyperparameters of the method that learnt the only layer."""
        return self.only.hyperparameters

    @property
    def hidden_size(self) -> int | None:
        """Width of the only layer, or None where its field takes any width."""
        return self.only.hidden_size

    def __call__(self, a: Tensor, dose: Dose | None = None) -> Tensor:
        """Return a(T) of the only layer, see `LayerSteering.__call__`."""
        return self.only(a, dose=dose)

    def solution(self, a: Tensor) -> Solution:
        """Return a(T) and how each row ended, see `LayerSteering.solution`."""
        return self.only.solution(a)

    def trajectory(self, a: Tensor) -> Tensor:
        """Return the path at the only layer, see `LayerSteering.trajectory`."""
        return self.only.trajectory(a)

    def log_odds(self, a: Tensor) -> Tensor:
        """Return the calibrated barrier of the only layer, see `LayerSteering.log_odds`."""
        return self.only.log_odds(a)

    def probability(self, a: Tensor, prior: float = 0.5) -> Tensor:
        """Return P(positive | a) at the only layer, see `LayerSteering.probability`."""
        return self.only.probability(a, prior)

    def radius(self, a: Tensor, p: float = 0.5) -> Tensor:
        """Return how far from P = p at the only layer, see `LayerSteering.radius`."""
        return self.only.radius(a, p)

    # ---- composed

    def __invert__(self) -> "Steering":
        """Return the steering away: field -v, barrier -h, at every layer."""
        return Steering.of(~part for part in self.parts)

    def __and__(self, other: "Steering") -> "Steering":
        """Join both aims in one ODE; see `all_of`."""
        return all_of(self, other)

    def __or__(self, other: "Steering") -> "Steering":
        """Join either aim in one ODE; see `any_of`."""
        return any_of(self, other)

    # ---- on a model

    def attach(
        self,
        model: nn.Module,
        positions: Positions = "last+generated",
        rows: Sequence[int] | None = None,
        measure: bool = False,
        check: str = "architecture",
        differentiable: bool = False,
    ) -> Handle:
        """Steer `model` until the handle is removed; see `odesteer.models.hooks.attach.attach`."""
        return attach(
            self.parts,
            model,
            positions=positions,
            rows=rows,
            measure=measure,
            check=check,
            differentiable=differentiable,
        )

    def compatibility(self, model: nn.Module, tokenizer: Any = None) -> list[Difference]:
        """List how `model` differs from the one fitted on; see `odesteer.models.compatibility`."""
        every: list[Difference] = []
        for part in self.parts:
            every += [each for each in differences(part, model, tokenizer) if each not in every]
        return every

    # ---- on disk

    def save_pretrained(self, path: str | os.PathLike[str]) -> Path:
        """Write the directory `path` atomically: JSON, safetensors and a model card.

        Raises:
            ValueError: if a part of it is code (a `ModuleBarrier`), or it would be refused when
                it is read: values that are not finite, more than 1,000 steps.
        """
        if len(self.parts) == 1:
            config, tensors = self.parts[0].describe()
            dose = str(self.dose)
        else:
            first, tensors, configs = self.parts[0], dict[str, Tensor](), []
            for i, part in enumerate(self.parts):
                description, more = part.describe(f"parts.{i}.field")
                configs.append(description)
                tensors.update(more)
            config = {
                "method": self.method,
                "layer": list(part.layer for part in self.parts),
                "solver": first.solver,
                "steps": first.steps,
                "model": first.model,
                "receipts": {},
                "parts": configs,
            }
            dose = f"{first.dose} at the first layer"
        _rebuild(config, tensors, path)
        return write(Path(path), config, tensors, dose)

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], revision: str | None = None
    ) -> "Steering":
        """Read a directory that `save_pretrained` wrote, or one on the Hugging Face Hub.

        Nothing in it is executed.

        Args:
            path: a directory, or else the name of a Hub repository ("me/truthful").
            revision: of the repository: a branch, a tag or a commit.

        Raises:
            FileNotFoundError: if it is neither here nor on the Hub.
            ConnectionError: if the Hub cannot be reached.
            ValueError: if it is no steering, is damaged, or was written by a newer version.
        """
        config, tensors = read(locate(path, revision))
        return _rebuild(config, tensors, path)


load = Steering.from_pretrained


def _rebuild(
    config: dict[str, Any], tensors: dict[str, Tensor], path: str | os.PathLike[str]
) -> Steering:
    """Rebuild what `save_pretrained` described; the ValueError names `path`."""
    if "parts" not in config:
        return Steering.of([LayerSteering.rebuild(config, tensors, path)])
    parts = config["parts"]
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"'{path}' is not a steering: its parts are no list of objects.")
    rebuilt = [LayerSteering.rebuild(part, tensors, path) for part in parts]
    try:
        return Steering.of(rebuilt)
    except ValueError as error:
        raise ValueError(f"'{path}' is not a steering: {brief(error)}.") from None


def all_of(*steerings: Steering, soft: bool = True) -> Steering:
    """Join steerings so that all aims hold; `a & b` for two. Joins layer by layer.

    Args:
        steerings: at least one, all at the same layers, each with a barrier. The dose is the
            first one's; `with_strength` changes it.
        soft: the smooth form, or the minimum of the barriers.

    Raises:
        ValueError: for none, for steerings of different layers, or one without a barrier.
    """
    return _joined(AndBarrier, "&", steerings, soft)


def any_of(*steerings: Steering, soft: bool = True) -> Steering:
    """Join steerings so that one aim holds; `a | b` for two. See `all_of`."""
    return _joined(OrBarrier, "|", steerings, soft)


def guarded(
    steering: Steering,
    by: Steering | Sequence[Steering],
    *,
    alpha: float = 1.0,
    margin: float | Sequence[float] = 0.0,
) -> Steering:
    """Change `steering` least so that the log-odds of `by` stay above `margin`.

    A row that starts above the margin stays above it however far it is steered, and a row
    below comes up as fast as alpha asks (see `odesteer.ode.SafetyField`). `steering` needs
    no barrier of its own; the barrier of the result is that of `by`, calibrated, and of several
    the minimum.

    Args:
        steering: where to go, and how far.
        by: whose region is kept; several steerings keep all of theirs, each as a constraint.
        alpha: > 0, per unit of the strength's time.
        margin: in nats of calibrated log-odds; one for all, or one for each of several, from
            which the result's log-odds then count.

    Raises:
        ValueError: for steerings of different layers, `by` without a barrier or empty, alpha <= 0,
            or more or fewer margins than steerings.
    """
    guards = (by,) if isinstance(by, Steering) else tuple(by)
    shared = margin if isinstance(margin, int | float) else 0.0
    margins = [0.0] * len(guards) if isinstance(margin, int | float) else [float(m) for m in margin]
    if not guards or len(margins) != len(guards):
        raise ValueError(
            f"A steering is guarded by at least one other, with one margin for all or for each; "
            f"got {len(guards)} steerings and {len(margins)} margins."
        )

    def guard(part: LayerSteering, *guards: LayerSteering) -> LayerSteering:
        kept = [
            each.barrier.affine(each.calibration.scale, each.calibration.offset - own)
            for each, own in zip(guards, margins, strict=True)
        ]
        used = [each.hyperparameters for each in guards]
        return LayerSteering(
            field=SafetyField(kept[0] if len(kept) == 1 else kept, alpha, shared, part.field),
            strength=part.strength,
            solver="rk4",
            steps=max(10, part.steps),
            layer=part.layer,
            method=f"({part.method} guarded by {' and '.join(each.method for each in guards)})",
            hyperparameters={
                "steering": part.hyperparameters,
                "by": used[0] if len(used) == 1 else used,
            },
            model=part.model,
            site=part.site,
        )

    return Steering.of(guard(*parts) for parts in _by_layer((steering, *guards)))


def _joined(
    junction: Callable[..., Barrier], sign: str, steerings: tuple[Steering, ...], soft: bool
) -> Steering:
    def join(parts: tuple[LayerSteering, ...]) -> LayerSteering:
        first = parts[0]
        barriers = [part.barrier.affine(*part.calibration) for part in parts]
        return LayerSteering(
            field=GradientField(junction(barriers, soft=soft)),
            strength=first.strength,
            solver="heun",
            steps=max(10, *(part.steps for part in parts)),
            layer=first.layer,
            method=f"({f' {sign} '.join(part.method for part in parts)})",
            hyperparameters={"parts": [part.hyperparameters for part in parts], "soft": soft},
            model=first.model,
            site=first.site,
        )

    return Steering.of(join(parts) for parts in _by_layer(steerings))


def _by_layer(steerings: tuple[Steering, ...]) -> list[tuple[LayerSteering, ...]]:
    """Zip the parts of steerings by layer; ValueError unless the layers agree."""
    if not steerings:
        raise ValueError("Steerings compose to one where there is at least one; got none.")
    sites = [tuple((part.layer, part.site) for part in each.parts) for each in steerings]
    if len(set(sites)) > 1:
        layers = " and ".join(
            ", ".join(
                f"{layer}{'' if site == 'residual' else f' ({site})'}" for layer, site in each
            )
            for each in sites
        )
        raise ValueError(
            f"Steerings compose at the same layers; these are at layers {layers}. Fit them at the "
            f"same layers, or attach them one after another."
        )
    return list(zip(*(each.parts for each in steerings), strict=True))
