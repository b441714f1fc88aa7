"""Experiment runner, from a file to its results.

outcome = run(read(Path("experiments/smollm2-truthfulqa-mc.toml")), Path("runs/mc"))

An interrupted run goes on where it stopped, processes that are given the same directory share the
work, and the results are the same to the byte.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from odesteer import __version__
from odesteer.common.jobs import ENGINES, Job
from odesteer.common.registry import lookup
from odesteer.evaluation.benchmarks import Benchmark, load_benchmark
from odesteer.evaluation.experiment import fits
from odesteer.evaluation.experiment.cases import describe_judges
from odesteer.evaluation.experiment.config import Experiment
from odesteer.evaluation.experiment.plan import Condition, Plan, plan
from odesteer.evaluation.experiment.run_directory import KEYS, SCHEMA, RunFolder, refuse_another
from odesteer.evaluation.experiment.worker import Worker
from odesteer.extraction.extract import Progress
from odesteer.models.compatibility import describe_model
from odesteer.models.loading import Say, load_model
from odesteer.steering.serialization.directory import dose_to_json


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
        experiment: see `odesteer.evaluation.experiment.parse_toml`.
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
