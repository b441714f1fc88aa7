"""How is an experiment run, from a file to its results?

    outcome = run(read(Path("experiments/smollm2-truthfulqa-mc.toml")), Path("runs/mc"))

A run that was stopped, at whatever point, goes on where it was; processes that are given the same
directory share the work; and the results are the same to the byte.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from odesteer import __version__
from odesteer.benchmarks import Benchmark, load_benchmark
from odesteer.experiment.config import Experiment
from odesteer.experiment.folder import RunFolder, refuse_other
from odesteer.experiment.job import WAIT, Job
from odesteer.experiment.outcome import Outcome, header
from odesteer.experiment.plan import Plan, plan
from odesteer.experiment.ray import cluster
from odesteer.experiment.worker import Worker
from odesteer.extraction import Progress
from odesteer.lookup import pick
from odesteer.models import Say, load_model


def run(
    experiment: Experiment,
    out: Path,
    data: Any = None,
    engine: str = "local",
    say: Say | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Outcome:
    """Run what is left of an experiment.

    Args:
        experiment: see `odesteer.experiment.parsing`.
        out: the run directory; new, or this experiment's.
        data: where benchmarks lie, see `odesteer.benchmarks.load_benchmark`.
        engine: one of `ENGINES`.
        say: called with a line before anything slow.
        progress: called with (work done, work in all), by anybody.
        workers: how many compute, where the engine has more than one (`odesteer.experiment.ray`).

    Raises:
        ValueError: for another experiment's directory; names what differs.
    """
    work = pick(ENGINES, engine, "engine")
    benchmark, planned = prepared(experiment, data)
    known = {"config": experiment.to_json(), "version": __version__, **_asked(planned, benchmark)}
    refuse_other(out, known)
    folder = RunFolder(out, len(planned.units))
    return work(Job(planned, benchmark, folder, known, data, say, progress, workers))


def prepared(experiment: Experiment, data: Any = None) -> tuple[Benchmark, Plan]:
    """The benchmark in the experiment's sizes, and the plan."""
    chosen = experiment.benchmark
    arguments = dict(chosen.arguments)
    benchmark = load_benchmark(chosen.name, data, **_of_load(arguments, data))
    sizes = {
        each.name: _tupled(arguments[each.name])
        for each in fields(benchmark)
        if each.name in arguments
    }
    benchmark = replace(benchmark, **sizes)
    return benchmark, plan(experiment, benchmark)


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def local(job: Job) -> Outcome:
    """In this process, beside any others that have been given the same directory.

    Raises:
        ValueError: for more than one worker.
    """
    if job.workers not in (None, 1):
        raise ValueError(
            f'The engine "local" is one process; got workers = {job.workers}. Start the command '
            f"several times with the same --out, or use --engine ray."
        )
    planned, folder = job.planned, job.folder
    if folder.assemble():
        return Outcome(folder.results, True, 0)
    chosen = planned.experiment.model
    model, tokenizer = load_model(
        chosen.name, job.say, dtype=chosen.dtype, revision=chosen.revision
    )
    folder.begin(header(job.about, planned, model, tokenizer))
    worker = Worker(planned, job.benchmark, folder, model, tokenizer, job.data)
    computed = 0
    left = list(planned.units)
    while left:
        left = job.left(left)
        waiting = True
        for unit in filter(job.ready, left):
            claim = folder.claim(unit.number)
            if claim is None:
                continue
            with claim:
                folder.finish(unit.number, worker.lines(unit))
            computed += 1
            waiting = False
            break
        if left and waiting:
            time.sleep(WAIT)
    while not folder.assemble():
        time.sleep(WAIT)  # somebody else is at it
    return Outcome(folder.results, True, computed)


# Who computes.
ENGINES: Mapping[str, Callable[[Job], Outcome]] = {"local": local, "ray": cluster}


def _of_load(arguments: dict[str, Any], data: Any) -> dict[str, Any]:
    """Those of a benchmark's arguments that its `load` (or `from_hub`) takes."""
    return {name: arguments.pop(name) for name in ("trait", "verify") if name in arguments}


def _asked(planned: Plan, benchmark: Benchmark) -> dict[str, Any]:
    return {
        "benchmark": {
            "name": benchmark.name,
            "source": benchmark.source,
            "files": dict(benchmark.files),
            "notes": list(benchmark.notes),
            "metrics": list(benchmark.metrics),
            "wanted": dict(benchmark.wanted),
        },
        "folds": [fold.as_dict() for fold in planned.folds],
    }
