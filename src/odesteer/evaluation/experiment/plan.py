"""Plan of an experiment: its conditions, its units in a fixed order, and their cost.

    check                   whether the model takes packed answers
    for each fold:
        read                activations that methods are fitted on
        fit                 one per method, layer and seed
        choice              layer and dose, one per condition that leaves them open
        barrier             log-odds of the test part's texts
        cases               a batch of test cases: of all conditions (choices), or of one

A unit is computed and written as a whole by one process, so results depend neither on which
process computes which unit nor on interruptions.

Before a run, its cost is estimated:

    memory   parameters x bytes, of the steered model and of every judge that is one, and a
             quarter more for activations, logits and caches
    time     2 x parameters operations a token, at a share of the machine's speed

The estimate is right to a factor of two or three, which is enough to decide whether to begin.
Parameters are counted where the weights are local, and else read off the name ("7b").
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from odesteer.evaluation.benchmarks import Benchmark, Fold
from odesteer.evaluation.benchmarks.base import Part
from odesteer.evaluation.case import Case
from odesteer.evaluation.experiment.config import (
    CHOOSE,
    MEASURES,
    NONE,
    PROMPT,
    UNSTEERED,
    Experiment,
    Layer,
    Limits,
    MethodChoice,
)
from odesteer.evaluation.judges import find_judge
from odesteer.evaluation.metrics import answers
from odesteer.methods import find_method
from odesteer.models.loading import SMOLLM2
from odesteer.ode import Dose, Target, as_dose


class MatchedDose(NamedTuple):
    """Damage that a dose is chosen to have: "kl" or "displacement", and its value."""

    measure: str
    value: float


class FitSpec(NamedTuple):
    """One fit of a fold: a method at a layer (None: at the method's own layers)."""

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
        method: its row of the comparison.
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
    """Yield every row of the comparison at every layer, dose, number of steps and seed."""
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
    """Return the doses and their name."""
    if dose == CHOOSE:
        return experiment.choose.doses, "chosen"
    amount = as_dose(find_method(method.name).default_strength) if isinstance(dose, str) else dose
    if isinstance(amount, Target):
        covered = "" if amount.coverage is None else f"-coverage-{amount.coverage:g}"
        within = _called(as_dose(amount.budget))
        return (amount,), f"target-{amount.probability:g}{covered}-within-{within}"
    return (amount,), _called(amount)


def _called(dose: Dose) -> str:
    kind = {"PathLength": "path-length"}.get(type(dose).__name__, type(dose).__name__.lower())
    return f"{kind}-{dose.size:g}"


def _hyperparameters(method: MethodChoice) -> set[str]:
    """Return the hyperparameters that are left at their defaults."""
    if method.name == PROMPT:
        return set()
    return {each.name for each in fields(find_method(method.name))} - set(method.hyperparameters)


def _several(layer: Layer) -> tuple[int, ...]:
    return layer if isinstance(layer, tuple) else (layer,)


def _joined(layer: Layer | str | None) -> str:
    return layer if isinstance(layer, str) else "-".join(map(str, _several(layer or 0)))


KINDS = ("check", "read", "fit", "choice", "barrier", "cases")
_KEEP = ("read", "fit", "choice", "barrier")  # those that use a fold's activations


@dataclass(frozen=True)
class Unit:
    """Piece of work.

    Attributes:
        number: its position in the results.
        kind: one of `KINDS`.
        fold: its number.
        conditions: their indices in the plan.
        cases: ids.
        needs: numbers of units that have to be done before.
        fitting: of a "fit".
        weight: estimate of the work, in forward passes of a case.
    """

    number: int
    kind: str
    fold: int
    conditions: tuple[int, ...] = ()
    cases: tuple[str, ...] = ()
    needs: tuple[int, ...] = ()
    fitting: FitSpec | None = None
    weight: int = 1

    @property
    def keeps(self) -> bool:
        """Whether it leaves its fold's activations in memory."""
        return self.kind in _KEEP


@dataclass(frozen=True)
class Plan:
    """Folds, conditions and units of an experiment on its benchmark."""

    experiment: Experiment
    folds: tuple[Fold, ...]
    conditions: tuple[Condition, ...]
    units: tuple[Unit, ...]


def plan(experiment: Experiment, benchmark: Benchmark) -> Plan:
    """Plan an experiment.

    Raises:
        ValueError: if the benchmark does not have what the task needs.
    """
    folds = tuple(
        limited(benchmark, fold, experiment.limits, experiment.split_seed)
        for fold in benchmark.folds(experiment.split_seed)[: experiment.folds]
    )
    all_conditions = tuple(conditions(experiment))
    for fold in folds:
        cases = benchmark.examples(fold)
        if experiment.task == "choices" and not all(case.choices for case in cases):
            raise ValueError(
                f"{benchmark.name} has no multiple-choice answers: use "
                f'task = "generations", or truthfulqa or persona.'
            )
    return Plan(
        experiment,
        folds,
        all_conditions,
        tuple(_units(experiment, benchmark, folds, all_conditions)),
    )


def limited(benchmark: Benchmark, fold: Fold, limits: Limits, seed: int) -> Fold:
    """Draw at most the given number of groups for each part of a fold."""

    def drawn(part: Part, size: int | None) -> tuple[str, ...]:
        groups = dict.fromkeys(case.group for case in benchmark.examples(fold, part))
        kept = set(_drawn(tuple(groups), size, seed))
        return tuple(id_ for id_ in getattr(fold, part) if id_ in kept or id_ not in groups)

    return Fold(
        _drawn(fold.fit, limits.fit, seed),
        drawn("validation", limits.validation),
        drawn("test", limits.test),
    )


def _drawn(ids: tuple[str, ...], size: int | None, seed: int) -> tuple[str, ...]:
    if size is None or size >= len(ids):
        return ids
    indices = np.random.default_rng(seed).permutation(len(ids))[:size]
    return tuple(ids[i] for i in sorted(indices.tolist()))


def _units(
    experiment: Experiment,
    benchmark: Benchmark,
    folds: Sequence[Fold],
    conditions: Sequence[Condition],
) -> Iterator[Unit]:
    numbers = count()
    every = tuple(range(len(conditions)))
    barrier_only = experiment.task == "barrier"
    check: list[int] = []
    if not barrier_only:
        check = [next(numbers)]
        yield Unit(check[0], "check", 0)
    fittings = list(dict.fromkeys(each for c in conditions for each in c.fittings))
    for fold, parts in enumerate(folds):
        before, learnt = list(check), len(parts.fit)
        if fittings:
            reading = Unit(next(numbers), "read", fold, weight=max(1, learnt // 2))
            yield reading
            for fitting in fittings:
                users = tuple(
                    i for i, c in enumerate(conditions) if fitting in c.fittings and not c.open
                )
                before.append(next(numbers))
                yield Unit(
                    before[-1],
                    "fit",
                    fold,
                    users,
                    needs=(reading.number,),
                    fitting=fitting,
                    weight=max(1, learnt // 8),
                )
        ready = tuple(before)
        validation = len(benchmark.examples(parts, "validation"))
        for i, condition in enumerate(conditions):
            if condition.open:
                trials = len(condition.layers) * (len(condition.doses) or 8)
                before.append(next(numbers))
                weight = trials * validation
                yield Unit(before[-1], "choice", fold, (i,), needs=ready, weight=weight)
        needs = tuple(before)
        if experiment.barrier or barrier_only:
            yield Unit(next(numbers), "barrier", fold, every, needs=needs, weight=learnt // 2)
        if barrier_only:
            continue
        cases = sorted(benchmark.examples(parts), key=lambda case: (-_size(case), case.id))
        batches = [cases[i : i + experiment.batch] for i in range(0, len(cases), experiment.batch)]
        for group in [every] if experiment.task == "choices" else [(i,) for i in every]:
            for batch in batches:
                ids = tuple(case.id for case in batch)
                weight = len(batch) * len(group) * _weight(experiment)
                yield Unit(next(numbers), "cases", fold, group, ids, needs, weight=weight)


def _weight(experiment: Experiment) -> int:
    """Weigh a case: generating a token takes about as long as reading a few."""
    tokens = int(experiment.sampling.get("max_new_tokens", 64))
    return experiment.samples * tokens // 8 + 1 if experiment.task == "generations" else 1


def _size(case: Case) -> int:
    """Count characters, which stand for tokens before there is a tokenizer."""
    answers = {text for task in case.choices.values() for text, _ in task}
    prompt = (
        case.prompt if isinstance(case.prompt, str) else "".join(m["content"] for m in case.prompt)
    )
    return len(prompt) + sum(map(len, answers))


_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_SMOLLM2 = 134.5e6
# Operations a second: one core of a CPU; a GPU that generates in batches.
_CPU, _GPU = 5e10, 4e13
_CHARACTERS = 4  # a token, in English


class Model(NamedTuple):
    """Model that is loaded: its parameters (None: not known) and bytes each."""

    name: str
    what: str
    parameters: float | None
    width: int

    @property
    def size(self) -> float | None:
        """Bytes."""
        return None if self.parameters is None else self.parameters * self.width


class Estimate(NamedTuple):
    """Memory and time of a run.

    Attributes:
        models: that are loaded.
        bytes: of memory; None where a model's size is not known.
        tokens: that are read or generated by the steered model.
        cpu_hours, gpu_hours: None where its size is not known.
    """

    models: list[Model]
    bytes: float | None
    tokens: float
    cpu_hours: float | None
    gpu_hours: float | None


def estimate(planned: Plan, benchmark: Benchmark) -> Estimate:
    """Estimate the cost of a whole plan."""
    experiment = planned.experiment
    models = list(_models(experiment))
    sizes = [model.size for model in models]
    whole = None if None in sizes else 1.25 * sum(size or 0.0 for size in sizes)
    tokens = _tokens(planned, benchmark)
    parameters = models[0].parameters
    if parameters is None:
        return Estimate(models, whole, tokens, None, None)
    operations = 2.0 * parameters * tokens
    return Estimate(models, whole, tokens, operations / _CPU / 3600.0, operations / _GPU / 3600.0)


def _models(experiment: Experiment) -> Iterator[Model]:
    chosen = experiment.model
    known = _parameters(chosen.name)
    small = chosen.dtype == "auto" and chosen.name == SMOLLM2
    width = 4 if small else _BYTES.get(chosen.dtype, 2)
    yield Model(chosen.name, "steered", known, width)
    for named in experiment.judges:
        kind: Any = find_judge(named.name)
        defaults = {each.name: each.default for each in fields(kind)}
        name = named.arguments.get("model", defaults.get("model"))
        if isinstance(name, str) and name != UNSTEERED:
            yield Model(name, f"judge {named.name}", _parameters(name), 2)


def _parameters(name: str) -> float | None:
    if name == SMOLLM2:
        return _SMOLLM2
    if Path(name).is_dir():
        return sum(path.stat().st_size for path in Path(name).glob("*.safetensors")) / 4.0
    if name.endswith("gpt2-xl"):
        return 1.56e9
    if name.endswith("roberta_toxicity_classifier"):
        return 0.125e9
    matches = re.findall(r"(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", name.lower())
    if not matches:
        return None
    number, unit = matches[-1]
    return float(number) * (1e9 if unit == "b" else 1e6)


def _tokens(planned: Plan, benchmark: Benchmark) -> float:
    experiment = planned.experiment
    conditions = len(planned.conditions)
    total = 0.0
    for fold in planned.folds:
        contrast = benchmark.contrast(fold)
        texts = [*contrast.positive, *contrast.negative]
        total += (
            sum(len(str(example.prompt or "")) + len(example.response) for example in texts)
            / _CHARACTERS
        )
        for part, runs in (("validation", _trials(planned)), ("test", conditions)):
            cases = benchmark.examples(fold, part)  # type: ignore[arg-type]
            prompts = sum(len(case.question) for case in cases) / _CHARACTERS
            generations = _answer_tokens(experiment, cases, part)
            if experiment.task != "barrier":
                total += runs * (prompts + generations)
    return total


def _answer_tokens(experiment: Experiment, cases: Sequence[Any], part: str) -> float:
    if experiment.task == "choices":
        return sum(len(text) for case in cases for text in answers(case)) / _CHARACTERS
    if part == "validation":
        return 20.0 * len(cases)
    tokens = float(experiment.sampling.get("max_new_tokens", 64))
    return len(cases) * experiment.samples * tokens * (2.0 if experiment.damage else 1.0)


def _trials(planned: Plan) -> int:
    return sum(
        len(condition.layers) * (len(condition.doses) or 6)
        for condition in planned.conditions
        if condition.open
    )
