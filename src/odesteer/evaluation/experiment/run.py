"""Experiment runner, from a file to its results.

outcome = run(read(Path("experiments/smollm2-truthfulqa-mc.toml")), Path("runs/mc"))

An interrupted run goes on where it stopped, processes that are given the same directory share the
work, and the results are the same to the byte.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesteer import __version__
from odesteer.common.jobs import ENGINES, Job
from odesteer.common.registry import lookup
from odesteer.evaluation.benchmarks import Benchmark, load_benchmark
from odesteer.evaluation.experiment import fits
from odesteer.evaluation.experiment.cases import CaseScorer, Line, ReadyCondition, describe_judges
from odesteer.evaluation.experiment.config import PROMPT, Experiment, Layer
from odesteer.evaluation.experiment.fits import FitCache, Generator
from odesteer.evaluation.experiment.plan import Condition, Plan, Unit, plan
from odesteer.evaluation.experiment.run_directory import KEYS, SCHEMA, RunFolder, refuse_another
from odesteer.evaluation.experiment.validation import Validation, layer_and_dose
from odesteer.extraction.extract import Progress
from odesteer.extraction.packing import PromptWithAnswers
from odesteer.extraction.score_texts import takes_packed
from odesteer.models.compatibility import describe_model
from odesteer.models.loading import Say, load_model
from odesteer.ode import Angle, Dose
from odesteer.steering import Steering
from odesteer.steering.serialization import CONFIG, dose_to_json

NEGATIVES = 100  # as in the paper's Figure 2
POINTS = 10  # along the path, besides its start
FAR = Angle(0.3)


def held_out_log_odds(
    steering: Steering, positive: Tensor, negative: Tensor, groups: Sequence[str]
) -> dict[str, Any]:
    """Return calibrated log-odds of positive [n, d], then negative [m, d] rows."""
    return {
        "log_odds": [*steering.log_odds(positive).tolist(), *steering.log_odds(negative).tolist()],
        "labels": [1] * len(positive) + [0] * len(negative),
        "groups": list(groups),
    }


def trace(steering: Steering, negative: Tensor, dose: Dose | None) -> dict[str, Any]:
    """Trace the log-odds of the first negatives [m, d] at parts k / 10 of the dose.

    `dose` is a condition's; None follows every method equally far (`FAR`).

        distance    mean_i sum_k ||a_i(k) - a_i(k - 1)|| / ||a_i||

    Every part of the dose is integrated separately, with the method's steps, as a steering with
    that dose would be.
    """
    rows = negative[:NEGATIVES].float()
    full = FAR if dose is None else dose
    parts = [full.scaled(k / POINTS) for k in range(1, POINTS + 1)]
    path = torch.stack([rows, *(steering.with_strength(part)(rows) for part in parts)])
    lengths = path.diff(dim=0).norm(dim=-1) / rows.norm(dim=-1)
    distance = torch.cat([lengths.new_zeros(1), lengths.mean(dim=1).cumsum(dim=0)])
    return {
        "distance": distance.tolist(),
        "log_odds": [steering.log_odds(points).tolist() for points in path],
    }


_TRIED = 4  # cases on which packing is checked


class Worker:
    """Computes the lines of units; holds the model and all that can be kept between units.

    The lines of a unit do not depend on which units were computed before.

    Args:
        plan, benchmark: the units and their cases.
        folder: the run directory, where earlier units leave what later ones need.
        model, tokenizer: to steer, in eval mode.
        generator: source of generations.
        data: folder of the judges' labelled answers.
    """

    def __init__(
        self,
        plan: Plan,
        benchmark: Benchmark,
        folder: RunFolder,
        model: Any,
        tokenizer: Any,
        generator: Generator,
        data: Any = None,
    ):
        self._plan, self._folder, self._generator = plan, folder, generator
        self._scorer = CaseScorer(
            model, tokenizer, benchmark, plan.experiment, self._takes_packed, data
        )
        self._judges = self._scorer.judges()
        self._fits = FitCache(model, tokenizer, benchmark, plan, folder)
        self._validation: dict[int, Validation] = {}
        self._choice_of = {
            (unit.fold, unit.conditions[0]): unit.number
            for unit in plan.units
            if unit.kind == "choice"
        }

    def compute(self, number: int) -> None:
        """Compute a unit and write its lines."""
        self._folder.finish(number, self.lines(self._plan.units[number]))

    def lines(self, unit: Unit) -> list[Line]:
        """Compute the lines of a unit."""
        kinds: dict[str, Callable[[Unit], list[Line]]] = {
            "check": self._check,
            "read": self._read,
            "fit": self._fit,
            "choice": self._choice,
            "barrier": self._barrier,
            "cases": self._cases,
        }
        return kinds[unit.kind](unit)

    def _takes_packed(self) -> bool:
        return not any(each.get("about") == "packing" for each in self._folder.lines(0))

    def _check(self, unit: Unit) -> list[Line]:
        scorer = self._scorer
        cases = scorer.benchmark.examples(self._plan.folds[0])[:_TRIED]
        if self._plan.experiment.task == "choices":
            prompts = [scorer.with_choices(case) for case in cases]
        else:
            encoded = [scorer.encoded(case) for case in cases]
            # Any tokens will do as answers.
            prompts = [
                PromptWithAnswers(ids, [other[-16:] for other in encoded]) for ids in encoded
            ]
        if not prompts or takes_packed(scorer.model, prompts):
            return []
        text = (
            f"{type(scorer.model).__name__} does not take several answers in one row (its own "
            f"attention mask or state): every answer is read in a row of its own, which is slower "
            f"and measures the same."
        )
        return [{"kind": "note", "about": "packing", "text": text}]

    def _read(self, unit: Unit) -> list[Line]:
        self._fits.read(unit.fold)
        return []

    def _fit(self, unit: Unit) -> list[Line]:
        assert unit.fitting is not None
        self._fits.fit(unit.fold, unit.fitting)
        lines = []
        for i in unit.conditions:
            condition = self._plan.conditions[i]
            dose = condition.doses[0] if condition.doses else None
            lines.append(self._fitted(unit.fold, condition, unit.fitting.layer, dose))
        return lines

    def _choice(self, unit: Unit) -> list[Line]:
        [i] = unit.conditions
        condition = self._plan.conditions[i]
        result = self._validated(unit.fold).choose(condition)
        choice = {"kind": "choice", "condition": condition.id, "fold": unit.fold, **result}
        layer, dose = layer_and_dose([choice])
        return [choice, self._fitted(unit.fold, condition, layer, dose)]

    def _barrier(self, unit: Unit) -> list[Line]:
        lines, seen = [], set()
        for i in unit.conditions:
            condition = self._plan.conditions[i]
            if not condition.moves:
                continue
            layer, dose = self._layer_and_dose(unit.fold, i)
            fitting = condition.fitting(layer)
            fitted = self._fits.fit(unit.fold, fitting)
            alone = len(fitted.parts) == 1
            if fitting in seen or not alone or fitted.field.barrier is None:
                continue
            seen.add(fitting)
            for part in ("test", "validation"):
                held_out = self._fits.held_out(unit.fold, part, fitting)
                if held_out is not None:
                    break
            if held_out is None:
                continue
            contrast, positive, negative = held_out
            about = {"condition": condition.id, "fold": unit.fold, "layer": layer, "part": part}
            steering: Any = self._fits.dosed(unit.fold, condition, layer, dose)
            groups = [*contrast.groups[0], *contrast.groups[1]]
            lines += [
                {
                    "kind": "barrier",
                    **about,
                    **held_out_log_odds(steering, positive, negative, groups),
                },
                {"kind": "trajectory", **about, **trace(steering, negative, dose)},
            ]
        return lines

    def _cases(self, unit: Unit) -> list[Line]:
        scorer, fold = self._scorer, self._plan.folds[unit.fold]
        by_id = {case.id: case for case in scorer.benchmark.examples(fold)}
        cases = [by_id[name] for name in unit.cases]
        conditions = [self._ready(unit.fold, i) for i in unit.conditions]
        if self._plan.experiment.task == "choices":
            lines = scorer.choice_lines(cases, conditions)
        else:
            [condition] = conditions
            make = self._generator.backend_factory(
                condition.steering, lambda: self._fitted_steerings(unit.fold)
            )
            lines = scorer.generation_lines(make, cases, condition, self._judges)
        return [{**line, "fold": unit.fold} for line in lines]

    def close(self) -> None:
        """Stop what was started for units."""
        self._generator.close()

    def _fitted_steerings(self, fold: int) -> Iterator[Steering]:
        """Yield the steerings of all conditions that are fitted and chosen by now."""
        for i, condition in enumerate(self._plan.conditions):
            if not condition.moves:
                continue
            if condition.open and not self._folder.done(self._choice_of[fold, i]):
                continue  # another process is choosing
            layer, dose = self._layer_and_dose(fold, i)
            folder = self._folder.steering(fold, condition.fitting(layer).folder)
            if (folder / CONFIG).is_file():
                yield self._fits.dosed(fold, condition, layer, dose)

    def _ready(self, fold: int, i: int) -> ReadyCondition:
        condition = self._plan.conditions[i]
        if not condition.moves:
            prompted = condition.method.name == PROMPT
            return ReadyCondition(condition.id, None, prompted, condition.seed)
        steering = self._fits.dosed(fold, condition, *self._layer_and_dose(fold, i))
        return ReadyCondition(condition.id, steering, seed=condition.seed)

    def _layer_and_dose(self, fold: int, i: int) -> tuple[Layer | None, Dose | None]:
        condition = self._plan.conditions[i]
        if condition.open:
            return layer_and_dose(self._folder.lines(self._choice_of[fold, i]))
        return condition.layers[0], condition.doses[0] if condition.doses else None

    def _fitted(self, fold: int, condition: Condition, layer: Any, dose: Dose | None) -> Line:
        steering = self._fits.dosed(fold, condition, layer, dose)
        first = steering.parts[0]
        layers = steering.layer
        return {
            "kind": "fit",
            "condition": condition.id,
            "fold": fold,
            "layer": list(layers) if isinstance(layers, tuple) else layers,
            "dose": None if dose is None else dose_to_json(dose),
            # It would make the results of two runs differ.
            "seconds": None,
            "held_out": first.receipts.get("held_out"),
            "hyperparameters": first.hyperparameters,
            "receipts": steering.receipts,
        }

    def _validated(self, fold: int) -> Validation:
        if fold not in self._validation:
            self._validation = {fold: Validation(self._scorer, self._fits, fold, self._judges)}
        return self._validation[fold]


class RunSummary(NamedTuple):
    """Path of the results, whether they are complete, and units that this process computed."""

    results: Path
    complete: bool
    computed: int


def header(about: Mapping[str, Any], planned: Plan, model: Any, tokenizer: Any) -> dict[str, Any]:
    """Return the first line of the results."""
    return {
        "kind": "run",
        "schema": SCHEMA,
        **about,
        "model": describe_model(model, tokenizer),
        "judges": describe_judges(planned.experiment.judges),
        "conditions": [_condition(each) for each in planned.conditions],
    }


def _condition(condition: Condition) -> dict[str, Any]:
    fixed = not condition.open
    return {
        "id": condition.id,
        "method": condition.method.name,
        "label": condition.method.label,
        "dose": dose_to_json(condition.doses[0]) if fixed and condition.doses else None,
        "layer": condition.layers[0] if fixed and condition.layers else None,
        "chosen": condition.open,
        "steps": condition.steps,
        "seed": condition.seed,
    }


def run(
    experiment: Experiment,
    out: Path,
    data: Any = None,
    engine: str = "local",
    say: Say | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    backend: str = "transformers",
) -> RunSummary:
    """Run an experiment, or what is left of it.

    Args:
        experiment: see `odesteer.evaluation.experiment.config`.
        out: the run directory; new, or this experiment's.
        data: folder of the benchmarks, see `odesteer.evaluation.benchmarks.load_benchmark`.
        engine: one of `odesteer.common.jobs.ENGINES`.
        say: called with a line before anything slow.
        progress: called with (work done, work in all), of all processes.
        workers: number of processes, for the engine "ray".
        backend: source of generations, see `odesteer.evaluation.experiment.fits`.

    Raises:
        ValueError: for another experiment's directory; names what differs.
    """
    work = lookup(ENGINES, engine, "engine")
    generator = fits.describe(backend, experiment)
    benchmark, planned = prepared(experiment, data)
    known = {
        "config": experiment.to_json(),
        "version": __version__,
        "backend": generator,
        "benchmark": describe_benchmark(benchmark),
        "folds": [fold.as_dict() for fold in planned.folds],
    }
    refuse_another(out, known)
    folder = RunFolder(out, len(planned.units))
    if folder.assemble():
        return RunSummary(folder.results, True, 0)
    task = RunTask(planned, benchmark, out.resolve(), known, data)
    job = Job(planned.units, folder, task, folder.assemble, say, progress, workers)
    return RunSummary(folder.results, True, work(job))


@dataclass(frozen=True)
class RunTask:
    """Picklable task that computes units of a run.

    Attributes:
        planned, benchmark: the units and their cases.
        path: the run directory.
        known: what describes the run, as far as that needs no model.
        data: folder of the judges' labelled answers on this machine.
    """

    planned: Plan
    benchmark: Benchmark
    path: Path
    known: Mapping[str, Any]
    data: Any = None

    def start(self, say: Callable[[str], None] | None = None) -> Worker:
        """Load the model, and write to the directory which run it holds.

        Raises:
            ValueError: for another run's directory.
        """
        chosen = self.planned.experiment.model
        model, tokenizer = load_model(
            chosen.name, say, dtype=chosen.dtype, revision=chosen.revision
        )
        folder = RunFolder(self.path, len(self.planned.units))
        folder.begin(header(self.known, self.planned, model, tokenizer), KEYS)
        about = self.known["backend"]
        generator = fits.generator(about, self.planned.experiment, model, tokenizer, say)
        return Worker(self.planned, self.benchmark, folder, model, tokenizer, generator, self.data)


def prepared(experiment: Experiment, data: Any = None) -> tuple[Benchmark, Plan]:
    """Load the benchmark in the experiment's sizes, and plan it."""
    chosen = experiment.benchmark
    arguments = dict(chosen.arguments)
    of_load = {name: arguments.pop(name) for name in ("trait", "verify") if name in arguments}
    benchmark = load_benchmark(chosen.name, data, **of_load)
    sizes: dict[str, Any] = {
        key: tuple(x) if isinstance(x, list) else x for key, x in arguments.items()
    }
    benchmark = replace(benchmark, **sizes)
    return benchmark, plan(experiment, benchmark)


def describe_benchmark(benchmark: Benchmark) -> dict[str, Any]:
    """Return what a report says of a benchmark, as JSON values."""
    return {
        "name": benchmark.name,
        "source": benchmark.source,
        "files": dict(benchmark.files),
        "notes": list(benchmark.notes),
        "metrics": list(benchmark.metrics),
        "wanted": dict(benchmark.wanted),
    }
