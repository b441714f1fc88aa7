"""Steering: maps a -> a(T) at one decoder block or several, and their composition.

    a & b, all_of(a, b)   h = -log(e^-h_a + e^-h_b), or min(h_a, h_b)
    a | b, any_of(a, b)   h =  log(e^h_a + e^h_b),   or max(h_a, h_b)
    ~a                    field -v, barrier -h
    guarded(a, by=b)      a's field, changed least so that dh_b/dt >= -alpha (h_b - margin);
                          by=[b, c] keeps both

h are the calibrated barriers, in nats of log-odds, so that one aim does not drown another.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import Tensor, nn

from odesteer.common.catalogue import LAST_AND_GENERATED
from odesteer.common.limits import brief
from odesteer.common.registry import lookup
from odesteer.models.chat_template import Messages
from odesteer.models.compatibility import Difference, differences
from odesteer.models.generation import Progress, Sampling, generate
from odesteer.models.hooks.attach import attach
from odesteer.models.hooks.condition import Condition, Threshold
from odesteer.models.hooks.handle import Handle
from odesteer.models.hooks.positions import Positions
from odesteer.models.loading import check_loaded
from odesteer.ode import (
    AndBarrier,
    Barrier,
    ConstantField,
    Dose,
    OrBarrier,
    Solution,
    VectorField,
    as_dose,
)
from odesteer.steering.comparison import Comparison
from odesteer.steering.composition import guard, join
from odesteer.steering.coverage import Coverage
from odesteer.steering.hub import Pushable, locate
from odesteer.steering.layer_steering import Calibration, LayerSteering
from odesteer.steering.model_card import html
from odesteer.steering.serialization import read, write


class Steering(Pushable):
    """Steering of one layer, or of several layers of one model.

    It is what gets saved, loaded, composed and attached. With one layer it has the attributes of
    its only part, and is the map a -> a(T) itself; with several, ask its `parts`.

    Args:
        field, strength, solver, steps, layer, method, hyperparameters, calibration, receipts,
            model, site, coverage, positions: of the one layer, see `LayerSteering`. `of` joins
            several.

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
        coverage: Coverage | None = None,
        positions: str = LAST_AND_GENERATED,
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
            coverage=coverage,
            positions=positions,
        )
        self._parts: tuple[LayerSteering, ...] = (part,)

    @classmethod
    def of(cls, parts: "Iterable[LayerSteering | Steering]") -> "Steering":
        """Join steerings of one model at different layers.

        Raises:
            ValueError: for no parts, several of which one has no layer, two at one place, or parts
                with different positions.
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
        if len({part.positions for part in ordered}) > 1:
            raise ValueError(
                f"The parts of a steering have the same positions; got "
                f"{', '.join(part.positions for part in ordered)}. Change them with "
                f"replace(positions=...)."
            )
        steering = cls.__new__(cls)
        steering._parts = ordered
        return steering

    @classmethod
    def from_vector(
        cls, vector: Tensor | Sequence[float], layer: int, strength: Dose | float = 1.0
    ) -> "Steering":
        """Make the steering that adds a vector: a(T) = a + T vector.

        Args:
            vector: [d], of finite numbers.
            layer: 0-based index of the decoder block to whose output it is added.
            strength: T, or another dose.

        Raises:
            ValueError: for another shape, or numbers that are not finite.

        Example:
            >>> Steering.from_vector([1.0, 0.0], layer=14, strength=2.0)(torch.zeros(2))
            tensor([2., 0.])
        """
        direction = torch.as_tensor(vector).detach().float()
        if direction.dim() != 1 or not len(direction) or not bool(direction.isfinite().all()):
            raise ValueError(
                f"A vector has the shape [d] and finite numbers; got the shape "
                f"{list(direction.shape)}. Directions of several layers: Steering.of([...])."
            )
        return cls(ConstantField(direction), strength, layer=layer, method="vector")

    def replace(self, **attributes: Any) -> "Steering":
        """Return a copy with other attributes at every layer: `steering.replace(steps=4)`."""
        return Steering.of(replace(part, **attributes) for part in self.parts)

    def __repr__(self) -> str:
        return f"Steering(method='{self.method}', layer={self.layer}, strength={self.strength})"

    def _repr_html_(self) -> str:
        """Return the facts of the model card as a table, for notebooks."""
        try:
            config, _, dose = self._described()
        except ValueError:  # a field that is code cannot be described
            return escape(repr(self))
        return html(config, dose)

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
    def positions(self) -> str:
        """Tokens that are steered unless others are asked for."""
        return self.parts[0].positions

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
    def coverage(self) -> Coverage | None:
        """Levels of the only layer for targets with a coverage, or None without held-out rows."""
        return self.only.coverage

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

    def __call__(
        self, a: Tensor, strength: Dose | float | None = None, *, dose: Dose | None = None
    ) -> Tensor:
        """Return a(T) of the only layer: [..., d] -> [..., d], see `LayerSteering.__call__`.

        Args:
            a: activations [..., d].
            strength: another than the steering's own; `dose` is the same.
        """
        other = dose if strength is None else as_dose(strength)
        return self.only(a, dose=other)

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

    def __mul__(self, factor: float) -> "Steering":
        """Return the steering with `factor` times its dose, at every layer: `2 * s`, `-s`.

        Time, path length and angle are multiplied; of a `Target` the budget is, and its
        probability stays. A negative factor goes backwards along the field, which for a constant
        one is `~s`; other fields bend elsewhere there, and `~s` also turns the barrier round.

        Raises:
            ValueError: for a `Target` times a negative number, since it stops at a probability
                that lies forwards; `~s` has a target of its own.

        Example:
            >>> (2 * Steering.from_vector([1.0, 0.0], layer=14)).strength
            Time(amount=2.0)
        """
        if not isinstance(factor, int | float):
            return NotImplemented
        return Steering.of(part.with_strength(part.dose.scaled(factor)) for part in self.parts)

    __rmul__ = __mul__

    def __neg__(self) -> "Steering":
        """Return the steering with minus its dose, at every layer; see `__mul__`."""
        return -1.0 * self

    def __and__(self, other: "Steering") -> "Steering":
        """Join both aims in one ODE; see `all_of`."""
        return all_of(self, other)

    def __or__(self, other: "Steering") -> "Steering":
        """Join either aim in one ODE; see `any_of`."""
        return any_of(self, other)

    def __gt__(self, probability: float) -> Condition:
        """Return the condition P(positive) > probability at a prompt's end; see `attach`."""
        return Threshold(self.only, probability, above=True)

    def __lt__(self, probability: float) -> Condition:
        """Return the condition P(positive) < probability at a prompt's end; see `attach`."""
        return Threshold(self.only, probability, above=False)

    # ---- on a model

    def attach(
        self,
        model: nn.Module,
        positions: Positions | None = None,
        rows: Sequence[int] | None = None,
        measure: bool = False,
        check: str = "architecture",
        differentiable: bool = False,
        *,
        strength: Dose | float | None = None,
        when: Condition | None = None,
    ) -> Handle:
        """Steer `model` until the handle is removed; see `odesteer.models.hooks.attach.attach`.

            with steering.attach(model, strength=0.2):
                model.generate(**inputs)

        Args:
            model, positions, rows, measure, check, differentiable: see there.
            strength: another dose than the steering's own, at every layer.
            when: a condition such as `other > 0.7`: only rows whose prompt ends where `other`, a
                steering of one layer, gives its positive class a probability of more than 0.7.
        """
        if isinstance(positions, int | float | Dose):
            raise ValueError(
                f"attach takes the dose by its name: attach(model, strength={positions})."
            )
        steering = self if strength is None else self.with_strength(strength)
        return attach(
            steering.parts,
            model,
            positions=positions,
            rows=rows,
            measure=measure,
            check=check,
            differentiable=differentiable,
            when=when,
        )

    @overload
    def generate(
        self,
        model: nn.Module,
        tokenizer: Any,
        prompt: str | Messages,
        strength: Dose | float | None = ...,
        *,
        positions: Positions | None = ...,
        template: str = ...,
        progress: Progress | None = ...,
        **sampling: Any,
    ) -> str: ...
    @overload
    def generate(
        self,
        model: nn.Module,
        tokenizer: Any,
        prompt: list[str] | list[Messages],
        strength: Dose | float | None = ...,
        *,
        positions: Positions | None = ...,
        template: str = ...,
        progress: Progress | None = ...,
        **sampling: Any,
    ) -> list[str]: ...
    def generate(
        self,
        model: nn.Module,
        tokenizer: Any,
        prompt: str | Messages | list[str] | list[Messages],
        strength: Dose | float | None = None,
        *,
        positions: Positions | None = None,
        template: str = "auto",
        progress: Progress | None = None,
        **sampling: Any,
    ) -> str | list[str]:
        """Write with a model under the steering.

            steering.generate(model, tokenizer, "How was the trip?", max_new_tokens=40)

        Args:
            model: a transformers causal language model.
            tokenizer: its tokenizer.
            prompt: a text, chat messages, or a list of either, which gives a list.
            strength: another dose than the steering's own.
            positions: which tokens, see `odesteer.models.hooks.positions`; None: the steering's
                own.
            template: how prompts become text, see `odesteer.models.chat_template`.
            progress: called with (prompts done, prompts in all).
            sampling: attributes of `odesteer.Sampling`: `max_new_tokens`, `temperature` (0 is
                greedy), `seed` and others.

        Raises:
            ValueError: for another model than it was fitted on, an empty prompt or an unknown
                argument.
        """
        check_loaded(model, tokenizer)
        for name in sampling:
            lookup(Sampling.__dataclass_fields__, name, "argument of generation")
        prompts, several = _prompts(prompt)
        texts = generate(
            model,
            tokenizer,
            prompts,
            Sampling(**sampling),
            steered=lambda _: self.attach(model, positions, strength=strength),
            template=template,
            progress=progress,
        )
        return texts if several else texts[0]

    def compare(
        self,
        model: nn.Module,
        tokenizer: Any,
        prompt: str | Messages | list[str] | list[Messages],
        strength: Dose | float | None = None,
        *,
        positions: Positions | None = None,
        template: str = "auto",
        progress: Progress | None = None,
        **sampling: Any,
    ) -> Comparison:
        """Write without and with the steering, by the same random draws.

            print(steering.compare(model, tokenizer, "How was the trip?"))

        Args and errors as of `generate`.
        """
        prompts: Any = _prompts(prompt)[0]
        unsteered, steered = (
            self.generate(
                model,
                tokenizer,
                prompts,
                dose,
                positions=positions,
                template=template,
                progress=progress,
                **sampling,
            )
            for dose in (0.0, strength)
        )
        dose = self.dose if strength is None else as_dose(strength)
        return Comparison(
            tuple(prompts), tuple(unsteered), tuple(steered), f"{self.method}, {dose}"
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
        config, tensors, dose = self._described()
        _rebuild(config, tensors, path)
        return write(Path(path), config, tensors, dose)

    def _described(self) -> tuple[dict[str, Any], dict[str, Tensor], str]:
        """Return the configuration and the tensors that are saved, and the dose in words."""
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
        return config, tensors, dose

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


def _prompts(
    prompt: str | Messages | list[str] | list[Messages],
) -> tuple[list[str | Messages], bool]:
    """Return the prompts as a list, and whether a list of them was given."""
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], Mapping)):
        return [cast(str | Messages, prompt)], False
    return [*cast(list[str | Messages], prompt)], True


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
    return Steering.of(join(AndBarrier, "&", [each.parts for each in steerings], soft))


def any_of(*steerings: Steering, soft: bool = True) -> Steering:
    """Join steerings so that one aim holds; `a | b` for two. See `all_of`."""
    return Steering.of(join(OrBarrier, "|", [each.parts for each in steerings], soft))


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
    return Steering.of(guard(steering.parts, [each.parts for each in guards], alpha, margin))
