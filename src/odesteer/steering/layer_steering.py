"""Steering of one layer: a field, a dose, a solver and where they act.

The map a -> a(T) at one decoder block, with the calibration that turns its barrier into a
probability. Precision, `no_grad` and devices are handled here.

Another package adds a solver as an object, under the entry-point group "odesteer.solvers":

    [project.entry-points."odesteer.solvers"]
    ralston = "my_package:RALSTON"      # RALSTON = RungeKutta(Tableau(a=..., b=..., order=2))
"""

import copy
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesteer import ode
from odesteer.common.catalogue import LAST_AND_GENERATED
from odesteer.common.limits import brief
from odesteer.common.registry import lookup, resolve
from odesteer.models.hooks.positions import PositionRule
from odesteer.ode import (
    SOLVERS,
    Barrier,
    Dose,
    GivenField,
    PerRow,
    Solution,
    Solver,
    Target,
    VectorField,
    as_dose,
)
from odesteer.ode.fields.base import compute_dtype
from odesteer.steering.coverage import Coverage
from odesteer.steering.serialization import (
    MISFITS,
    calibration_of,
    describe,
    dose_from_json,
    dose_to_json,
    plain_of,
    rebuild,
    try_out,
)

SITES = ("residual", "heads")
SOLVER_GROUP = "odesteer.solvers"


def find_solver(name: str) -> Solver:
    """Return a solver by its name.

    Raises:
        ValueError: for an unknown name; says which there are.
    """
    # Called for every token: entry points are looked up only for a name that is not ours.
    return SOLVERS[name] if name in SOLVERS else _plugin_solver(name)


@lru_cache
def _plugin_solver(name: str) -> Solver:
    solver: Solver = resolve(SOLVERS, name, "solver", SOLVER_GROUP, Solver, instance=True)
    return solver


@contextmanager
def _exact(a: Tensor, differentiable: bool = False) -> Iterator[None]:
    """Compute without autocast and, unless `differentiable`, without gradients."""
    kind = a.device.type
    lowered = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    gradients = nullcontext() if differentiable else torch.no_grad()
    with gradients, torch.autocast(kind, enabled=False) if lowered else nullcontext():
        yield


class Calibration(NamedTuple):
    """P(positive | a) = sigmoid(scale * h(a) + offset) when both classes are equally likely.

    Fitted on held-out values of the barrier (Platt, 1999). scale > 0.
    """

    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, eq=False, repr=False)
class LayerSteering:
    """Map a -> a(T) at one decoder block, T being the `strength`.

    Attributes:
        field: v; `barrier` is its barrier.
        strength: a number (the paper's T) or a dose: `Angle`, `PathLength`, `Target`.
            0 is the identity bit for bit, a negative number steers away.
        solver: a name in `odesteer.ode.SOLVERS`, or of another package, see above.
        steps: fixed steps of that solver.
        layer: 0-based index of the decoder block whose output is steered.
        site: "residual" for the block's output; "heads" for the outputs of its attention
            heads, side by side, before they are mixed.
        method: the name of the method that learnt it.
        hyperparameters: of that method.
        calibration: from h to a probability.
        coverage: levels of h for targets with a coverage; None where there were no held-out rows.
        positions: which tokens it steers unless others are asked for, see
            `odesteer.models.hooks.positions`; the dose is for these.
        receipts: measurements made when it was fitted (JSON values).
        model: description of the model it was fitted on (JSON values).
    """

    field: VectorField
    strength: Dose | float = 1.0
    solver: str = "euler"
    steps: int = 1
    layer: int | None = None
    method: str = "custom"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    receipts: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    site: str = "residual"
    coverage: Coverage | None = None
    positions: str = LAST_AND_GENERATED
    _on_device: dict[Any, tuple[VectorField, int | None]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if not isinstance(self.field, VectorField):
            raise ValueError(
                f"A steering follows a VectorField; got {type(self.field).__name__}. Of a vector "
                f"make one by Steering.from_vector(vector, layer)."
            )
        find_solver(self.solver)
        lookup(dict.fromkeys(SITES), self.site, "site")
        object.__setattr__(self, "positions", str(PositionRule.parse(self.positions)))
        dose = self.dose  # refuses a strength that is no number
        if self.field.gated and not isinstance(dose, PerRow) and dose.size < 0:
            warnings.warn(
                f"A negative strength of '{self.method}' does not go back: its gate opens on the "
                f"other side, so other rows move than at a positive one. To undo a move, keep the "
                f"activation from before it.",
                stacklevel=3,
            )
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}.")
        if isinstance(dose, PerRow):
            object.__setattr__(self, "strength", self.resolve(dose))
        elif isinstance(dose, Target) and dose.coverage is not None:
            self._covered_level(dose.coverage)  # refuses what the held-out rows do not support

    def __repr__(self) -> str:
        return (
            f"LayerSteering(method='{self.method}', layer={self.layer}, strength={self.strength})"
        )

    @property
    def dose(self) -> Dose:
        """The strength as a dose; a number is a `Time`."""
        return as_dose(self.strength)

    @property
    def data_dependent(self) -> bool:
        """Whether the computation depends on the activations, which a CUDA graph excludes."""
        return self.field.prompt_conditioned or find_solver(self.solver).adaptive

    # ---- what it does to an activation

    def __call__(
        self,
        a: Tensor,
        velocity: Tensor | None = None,
        dose: Dose | None = None,
        differentiable: bool = False,
    ) -> Tensor:
        """Return a(T) for a [..., d] in a's dtype; rows that need not move keep every bit.

        Args:
            a: activations.
            velocity: for a field that reads the prompt, what `velocity` made of each row's
                prompt [..., d]; without it each row counts as its own prompt.
            dose: another than the steering's own.
            differentiable: let gradients through, to `a` and to the tensors of the field, which
                then has to be on a's device, in the precision that `a` is solved in.
        """
        dose = self.dose if dose is None else dose
        if dose.is_zero or a.numel() == 0:
            return a
        if isinstance(dose, PerRow):
            dose = self.resolve(dose)
        with _exact(a, differentiable):
            field_, dose = self._directed(a, dose, velocity, differentiable)
            time = dose.uniform_time(field_)
            return ode.solve(
                field_,
                a,
                dose.time(field_, a) if time is None else time,
                solver=find_solver(self.solver),
                steps=self.steps,
                level=self._level(dose, a),
            )

    def solution(
        self, a: Tensor, velocity: Tensor | None = None, dose: Dose | None = None
    ) -> Solution:
        """Return a(T) with how each row ended and the steps it took; see `odesteer.ode.Solution`.

        Args:
            a: activations [..., d].
            velocity: as of a call.
            dose: another than the steering's own.
        """
        dose = self.dose if dose is None else dose
        if isinstance(dose, PerRow):
            dose = self.resolve(dose)
        with _exact(a):
            field_, dose = self._directed(a, dose, velocity)
            return ode.solve(
                field_,
                a,
                dose.time(field_, a),
                solver=find_solver(self.solver),
                steps=self.steps,
                level=self._level(dose, a),
                report=True,
            )

    def trajectory(self, a: Tensor) -> Tensor:
        """Return the path of a fixed dose: [..., d] -> [steps + 1, ..., d] in float32.

        Raises:
            ValueError: for a `Target`, whose rows stop at different times.
        """
        dose = self.dose
        if dose.stop_at is not None:
            raise ValueError(
                "A target stops each row at its own time; ask for the trajectory of its budget: "
                "steering.with_strength(steering.strength.budget).trajectory(a)."
            )
        with _exact(a):
            field_, dose = self._directed(a, dose)
            start = a.to(compute_dtype(a.dtype))
            time = dose.time(field_, start)
            return ode.trajectory(
                field_, start, time, solver=find_solver(self.solver), steps=self.steps
            )

    def velocity(self, prompt: Tensor) -> Tensor:
        """Return v at prompts' last tokens [..., d] in float32, for prompt-conditioned fields."""
        with _exact(prompt):
            return self._field_for(prompt)(prompt.to(compute_dtype(prompt.dtype)))

    # ---- what it knows about an activation

    @property
    def barrier(self) -> Barrier:
        """h; h >= 0 is where the positive class is more likely.

        Raises:
            ValueError: if the method has no barrier.
        """
        if self.field.barrier is None:
            raise ValueError(f"Method '{self.method}' has no barrier: it moves but cannot detect.")
        return self.field.barrier

    def log_odds(self, a: Tensor) -> Tensor:
        """Return the calibrated barrier at even priors: [..., d] -> [...] in float32."""
        _ = self.barrier  # says so where there is none
        with _exact(a):
            value = self._field_for(a).value(a.to(compute_dtype(a.dtype)))
            return self.calibration.scale * value + self.calibration.offset

    def probability(self, a: Tensor, prior: float = 0.5) -> Tensor:
        """Return the calibrated P(positive | a): [..., d] -> [...].

        Args:
            a: activations.
            prior: the share of positives where it is used; 0.5 asks about the evidence alone.
        """
        if not 0.0 < prior < 1.0:
            raise ValueError(f"prior must be between 0 and 1 (exclusive); got {prior}.")
        return torch.sigmoid(self.log_odds(a) + math.log(prior / (1.0 - prior)))

    def radius(self, a: Tensor, p: float = 0.5) -> Tensor:
        """Return how far an activation is from P = p, at the least: [..., d] -> [...].

        No perturbation of `a` that is shorter flips P past p; see `odesteer.ode.Barrier.radius`.

        Raises:
            ValueError: if no bound of the barrier is known, or p is not between 0 and 1.
        """
        if not 0.0 < p < 1.0:
            raise ValueError(f"p must be between 0 and 1 (exclusive); got {p}.")
        _ = self.barrier
        scale, offset = self.calibration
        with _exact(a):
            barrier = self._field_for(a).barrier
            assert barrier is not None
            level = (math.log(p / (1.0 - p)) - offset) / scale
            return barrier.radius(a.to(compute_dtype(a.dtype)), level)

    # ---- others made from it

    def with_strength(self, strength: Dose | float) -> "LayerSteering":
        """Return the same steering at another dose."""
        other = replace(self, strength=strength)
        other._on_device.update(self._on_device)
        return other

    def __invert__(self) -> "LayerSteering":
        """Return the steering away: field -v, barrier -h."""
        scale, offset = self.calibration
        return replace(
            self,
            field=self.field.reversed(),
            method=f"~{self.method}",
            calibration=Calibration(scale, -offset),
            coverage=None if self.coverage is None else self.coverage.reversed(),
        )

    # ---- written down

    def describe(self, prefix: str = "field") -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON values, and tensors whose names have a prefix."""
        tree, tensors = describe(self.field, prefix)
        covered = {} if self.coverage is None else {"coverage": self.coverage.to_json()}
        own = self.positions != LAST_AND_GENERATED
        return {
            "method": self.method,
            "hyperparameters": self.hyperparameters,
            "layer": self.layer,
            "site": self.site,
            **({"positions": self.positions} if own else {}),
            "dose": dose_to_json(self.dose),
            "solver": self.solver,
            "steps": self.steps,
            "calibration": self.calibration._asdict(),
            **covered,
            "model": self.model,
            "receipts": self.receipts,
            "field": tree,
        }, tensors

    @classmethod
    def rebuild(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], path: str | os.PathLike[str]
    ) -> "LayerSteering":
        """Rebuild what `describe` described, and try it on a few activations.

        Raises:
            ValueError: naming `path`, if it is none, or moves to what is not finite.
        """
        try:
            field_ = rebuild(config["field"], tensors)
            if not isinstance(field_, VectorField):
                raise ValueError(f"it holds a {type(field_).__name__}, which is not a field")
            steering = cls(
                field=field_,
                strength=dose_from_json(config["dose"]),
                calibration=Calibration(**calibration_of(config["calibration"])),
                coverage=Coverage.from_json(config["coverage"]) if "coverage" in config else None,
                **plain_of(config),
            )
            try_out(steering)
            return steering
        except MISFITS as error:
            raise ValueError(f"'{path}' is not a steering: {brief(error)}.") from None

    # ---- inside

    def resolve(self, dose: Dose) -> Dose:
        """Return the dose with every coverage turned into the probability at its level.

        Raises:
            ValueError: if the held-out rows do not support a coverage.
        """
        if isinstance(dose, PerRow):
            doses = [self.resolve(each) for each in dose.doses] if dose.covered else None
            return dose if doses is None else PerRow(doses)
        if not isinstance(dose, Target) or dose.coverage is None:
            return dose
        odds = self.calibration.scale * self._covered_level(dose.coverage) + self.calibration.offset
        p = max(dose.probability, 1.0 / (1.0 + math.exp(-max(odds, -700.0))))
        if p >= 1.0 - torch.finfo(torch.float32).eps:
            raise ValueError(
                f"Coverage {dose.coverage:g} is at a log-odds of {odds:.3g}, which no float32 "
                f"probability says: rows of several doses cannot stop there."
            )
        return Target(p, dose.budget)

    def _covered_level(self, coverage: float) -> float:
        if self.coverage is None:
            raise ValueError(
                "This steering keeps no levels of held-out rows, which a coverage takes (nor do "
                "compositions, and files from before there were any): fit it again, calibrated."
            )
        return self.coverage.toward.at(coverage)

    def _level(self, dose: Dose, a: Tensor) -> Tensor | float | None:
        """Return the h at which the dose's probability is reached, of all rows or each."""
        stop = dose.stop_levels(a)
        if stop is None:
            return None
        if isinstance(stop, Tensor):
            return (torch.logit(stop) - self.calibration.offset) / self.calibration.scale
        level = (math.log(stop / (1.0 - stop)) - self.calibration.offset) / self.calibration.scale
        if isinstance(dose, Target) and dose.coverage is not None:
            return max(level, self._covered_level(dose.coverage))
        return level

    def _field_for(self, a: Tensor) -> VectorField:
        """Return the field on a's device, in the precision that `a` is solved in."""
        key = (a.device, compute_dtype(a.dtype))
        if key not in self._on_device:
            self._on_device[key] = (copy.deepcopy(self.field).to(*key), self.hidden_size)
        field_, width = self._on_device[key]
        if width is not None and a.shape[-1] != width:
            raise ValueError(
                f"This steering is for activations of width {width}; got {list(a.shape)}."
            )
        return field_

    def _directed(
        self,
        a: Tensor,
        dose: Dose,
        velocity: Tensor | None = None,
        differentiable: bool = False,
    ) -> tuple[VectorField, Dose]:
        """Return field and dose, both reversed for a gated field with a negative dose."""
        # A copy would cut the graph to the field's own tensors.
        field_ = self.field if differentiable else self._field_for(a)
        if velocity is not None:
            field_ = GivenField(velocity.to(a.device, compute_dtype(a.dtype)), field_.barrier)
        if field_.gated and dose.size < 0:
            return field_.reversed(), dose.scaled(-1.0)
        return field_, dose

    @property
    def hidden_size(self) -> int | None:
        """d, or None where the field takes any width."""
        return self.field.width
