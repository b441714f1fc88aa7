"""Conditions of an experiment and the fits they need."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from odesteer.evaluation.experiment.config import (
    CHOOSE,
    MEASURES,
    NONE,
    PROMPT,
    Experiment,
    Layer,
    MethodChoice,
)
from odesteer.methods import find_method
from odesteer.ode import Dose, Target, as_dose


class MatchedDose(NamedTuple):
    """Which damage a dose is chosen to have: "kl" or "displacement", and how much."""

    measure: str
    value: float


class FitSpec(NamedTuple):
    """What is learnt once a fold: a method at a layer (None: at the method's own layers)."""

    method: str
    layer: Layer | None
    seed: int | None

    @property
    def folder(self) -> str:
        """Its name on disk."""
        layer = "own" if self.layer is None else "-".join(map(str, _several(self.layer)))
        seed = "" if self.seed is None else f"-seed-{self.seed}"
        return f"{self.method}-layer-{layer}{seed}"


@dataclass(frozen=True)
class Condition:
    """One way to run the model over all test cases.

    Attributes:
        id: its name in the results.
        method: the row it belongs to.
        layers, doses: the candidates; one of each where nothing is left open, none for the
            unsteered model and the prompt.
        open: whether layer and dose are chosen on validation cases, even among one.
        match: the damage that decides the dose.
        steps: of the solver; None: the method's own.
        seed: of sampling, and of a method that draws.
    """

    id: str
    method: MethodChoice
    layers: tuple[Layer | None, ...] = ()
    doses: tuple[Dose, ...] = ()
    open: bool = False
    match: MatchedDose | None = None
    steps: int | None = None
    seed: int = 0

    @property
    def moves(self) -> bool:
        """False for the unsteered model and for the prompt."""
        return self.method.name not in (NONE, PROMPT)

    def fitting(self, layer: Layer | None) -> FitSpec:
        drawn = "seed" in _hyperparameters(self.method)
        return FitSpec(self.method.id, layer, self.seed if drawn else None)

    @property
    def fittings(self) -> tuple[FitSpec, ...]:
        return tuple(self.fitting(layer) for layer in self.layers) if self.moves else ()


def conditions(experiment: Experiment) -> Iterator[Condition]:
    """Every row of the comparison at every layer, dose, number of steps and seed, in order."""
    for method in experiment.methods:
        seeds = experiment.seeds
        draws = experiment.task == "generations" or "seed" in _hyperparameters(method)
        for seed in seeds if draws else seeds[:1]:
            last = f",seed-{seed}" if len(seeds) > 1 and draws else ""
            if method.name in (NONE, PROMPT):
                if experiment.task != "barrier":
                    yield Condition(method.id + last, method, seed=seed)
                continue
            yield from _moving(experiment, method, seed, last)


def _moving(
    experiment: Experiment, method: MethodChoice, seed: int, last: str
) -> Iterator[Condition]:
    layers: Sequence[Layer | str | None] = method.layers or experiment.layers
    if find_method(method.name).site == "heads":
        layers = [None]  # it chooses its heads among all blocks
    for layer in layers:
        open_layer = layer == CHOOSE
        candidates = experiment.choose.layers if open_layer else (layer,)
        where = f",layer-{'chosen' if open_layer else _joined(layer)}"
        for steps in experiment.steps or (None,):
            ending = (where if open_layer or len(layers) > 1 else "") + (
                "" if steps is None else f",steps-{steps}"
            )
            common: Any = {"layers": candidates, "steps": steps, "seed": seed}
            if experiment.task == "barrier":
                yield Condition(f"{method.id}{ending}{last}", method, **common)
                continue
            for dose in method.doses or experiment.doses:
                doses, name = _candidates(experiment, method, dose)
                opened = open_layer or dose == CHOOSE
                name = f"{method.id}@{name}{ending}{last}"
                yield Condition(name, method, doses=doses, open=opened, **common)
            for measure in MEASURES:
                for value in getattr(experiment.matched, measure):
                    name = f"{method.id}@{measure}-{value:g}{ending}{last}"
                    match = MatchedDose(measure, value)
                    yield Condition(name, method, open=True, match=match, **common)


def _candidates(
    experiment: Experiment, method: MethodChoice, dose: Dose | str
) -> tuple[tuple[Dose, ...], str]:
    """The doses, and what they are called."""
    if dose == CHOOSE:
        return experiment.choose.doses, "chosen"
    one = as_dose(find_method(method.name).default_strength) if isinstance(dose, str) else dose
    if isinstance(one, Target):
        return (one,), f"target-{one.probability:g}-within-{_called(as_dose(one.budget))}"
    return (one,), _called(one)


def _called(dose: Dose) -> str:
    kind = {"PathLength": "path-length"}.get(type(dose).__name__, type(dose).__name__.lower())
    return f"{kind}-{dose.size:g}"


def _hyperparameters(method: MethodChoice) -> set[str]:
    """Which are left at their defaults."""
    if method.name == PROMPT:
        return set()
    return {each.name for each in fields(find_method(method.name))} - set(method.hyperparameters)


def _several(layer: Layer) -> tuple[int, ...]:
    return layer if isinstance(layer, tuple) else (layer,)


def _joined(layer: Layer | str | None) -> str:
    return layer if isinstance(layer, str) else "-".join(map(str, _several(layer or 0)))
