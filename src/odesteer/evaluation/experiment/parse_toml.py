"""Parser of experiment files.

    experiment = read(Path("experiments/smollm2-truthfulqa-mc.toml"))

What can be wrong with it is said here, before anything slow happens.
"""

import inspect
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from odesteer.backends.base import Sampling
from odesteer.common.registry import lookup
from odesteer.evaluation.benchmarks import Benchmark, find_benchmark
from odesteer.evaluation.experiment.config import (
    CHOOSE,
    DTYPES,
    MEASURES,
    NONE,
    OFFLINE,
    PAPER,
    PROMPT,
    TASKS,
    UNSTEERED,
    Choosing,
    Experiment,
    Limits,
    Matched,
    ModelChoice,
    Named,
)
from odesteer.evaluation.experiment.parse_methods import doses_of, layers_of, methods_of, named_of
from odesteer.evaluation.experiment.toml_reader import TomlTable
from odesteer.evaluation.judges import JUDGES, find_judge
from odesteer.models.hooks.positions import POSITIONS
from odesteer.ode import DOSES

# Types of a benchmark's fields that a file may set.
_SIZES = ("int", int, "str | None", str | None, "tuple[int, ...]", tuple[int, ...])


def read(path: Path, changes: Sequence[str] = ()) -> Experiment:
    """An experiment's file, with `key=value` changes.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: naming the file, the key, the value and what to do.
    """
    return parse(TomlTable.read(path, changes), path.stem)


def parse(table: TomlTable, stem: str = "experiment") -> Experiment:
    """See `read`; `stem` names an experiment that has no name."""
    own = Experiment(stem, Named(""), ())
    table.only([each.name for each in fields(Experiment)])
    if "benchmark" not in table.values or "methods" not in table.values:
        missing = "benchmark" if "benchmark" not in table.values else "methods"
        raise ValueError(
            f"{table.file}: an experiment needs {missing}: "
            + (
                'benchmark = {name = "truthfulqa"}.'
                if missing == "benchmark"
                else 'methods = ["caa"].'
            )
        )
    dose_type = table.choice("dose_type", dict.fromkeys(list(DOSES)[:3]), "dose", own.dose_type)
    benchmark = named_of(table, "benchmark", table.values["benchmark"])
    kind = _benchmark(table, benchmark)
    task = table.choice("task", dict.fromkeys(TASKS), "task", own.task)
    experiment = Experiment(
        name=table.one("name", str, own.name),
        title=table.one("title", str, own.title),
        task=task,
        model=_model(table),
        benchmark=benchmark,
        methods=methods_of(table, dose_type),
        layers=layers_of(table, own.layers),
        # None at all where every dose is a matched one.
        doses=() if table.values.get("doses") == [] else doses_of(table, dose_type, own.doses),
        dose_type=dose_type,
        choose=_choosing(table.within("choose"), dose_type),
        matched=_matched(table.within("matched")),
        limits=_limits(table.within("limits")),
        steps=_counts(table, "steps", 1),
        seeds=table.several("seeds", int, own.seeds),
        split_seed=table.one("split_seed", int, own.split_seed),
        folds=_count(table, "folds"),
        samples=_count(table, "samples", own.samples),
        positions=table.choice("positions", dict.fromkeys(POSITIONS), "positions", own.positions),
        sampling={**kind.sampling, **_sampling(table.within("sampling"))},
        judges=_judges(table, kind, task),
        damage=table.one("damage", bool, own.damage),
        barrier=table.one("barrier", bool, own.barrier),
        batch=_count(table, "batch", own.batch),
    )
    _check_whole(table, experiment)
    return experiment


def _model(table: TomlTable) -> ModelChoice:
    if isinstance(table.values.get("model"), str):
        return ModelChoice(table.values["model"])
    inner, own = table.within("model"), ModelChoice()
    inner.only([each.name for each in fields(ModelChoice)])
    return ModelChoice(
        inner.one("name", str, own.name),
        inner.choice("dtype", dict.fromkeys(DTYPES), "dtype", own.dtype),
        inner.one("revision", str, own.revision),
    )


def _benchmark(table: TomlTable, chosen: Named) -> type[Benchmark]:
    """Its class; its arguments are those of `load`, or its sizes."""
    try:
        kind: Any = find_benchmark(chosen.name)
        known = [name for name in inspect.signature(kind.load).parameters if name != "data"]
        known += [each.name for each in fields(kind) if each.type in _SIZES]
        for name in chosen.arguments:
            lookup(dict.fromkeys(known), name, f"argument of {chosen.name}")
    except ValueError as error:
        raise ValueError(f"{table.file}: benchmark: {error}") from None
    return kind


def _choosing(table: TomlTable, dose_type: str) -> Choosing:
    own = Choosing()
    table.only([each.name for each in fields(Choosing)])
    layers = [each for each in layers_of(table, ()) if not isinstance(each, str)]
    doses = [each for each in doses_of(table, dose_type, ()) if not isinstance(each, str)]
    max_kl = table.one("max_kl", float, own.max_kl)
    if not max_kl > 0:
        raise table.wrong("max_kl", "more than 0")
    return Choosing(tuple(layers), tuple(doses), table.one("metric", str), max_kl)


def _matched(table: TomlTable) -> Matched:
    table.only(MEASURES)
    found = {measure: table.several(measure, float) for measure in MEASURES}
    for measure, values in found.items():
        if any(not value > 0 for value in values):
            raise table.wrong(measure, "a list of numbers above 0")
    return Matched(**found)


def _limits(table: TomlTable) -> Limits:
    table.only([each.name for each in fields(Limits)])
    return Limits(*(_count(table, each.name) for each in fields(Limits)))


def _sampling(table: TomlTable) -> dict[str, Any]:
    known = [each.name for each in fields(Sampling) if each.name != "seed"]
    table.only(known)
    return dict(table.values)


def _judges(table: TomlTable, kind: Any, task: str) -> tuple[Named, ...]:
    given = table.values.get("judges", OFFLINE)
    if task != "generations":
        return ()
    if given == PAPER:
        return tuple(map(Named, kind.judges))
    if given == OFFLINE:
        # The paper's perplexity is by a model that has to be fetched.
        own = {"perplexity": {"model": UNSTEERED}}
        return tuple(Named(name, own.get(name, {})) for name in kind.offline_judges)

    def made(value: Any) -> Named:
        named = named_of(table, "judges", value)
        judge = find_judge(named.name)
        known = dict.fromkeys(each.name for each in fields(judge))
        for name in named.arguments:
            lookup(known, name, f"argument of {named.name}")
        missing = [
            each.name
            for each in fields(judge)
            if each.default is each.default_factory is MISSING and each.name not in named.arguments
        ]
        if missing:
            cure = " damage = true measures it." if named.name == "kl" else ""
            raise ValueError(f"the judge {named.name} needs {', '.join(missing)}.{cure}")
        return named

    if isinstance(given, str) and given not in JUDGES:
        raise ValueError(
            f'{table.file}: judges is "offline", "paper" or a list of names; got "{given}". '
            f"Available: {', '.join(JUDGES)}."
        )
    return table.each("judges", made)


def _count(table: TomlTable, key: str, otherwise: int | None = None) -> Any:
    value = table.one(key, int, otherwise)
    if value is not None and value < 1:
        raise table.wrong(key, "a whole number from 1 on")
    return value


def _counts(table: TomlTable, key: str, least: int) -> tuple[int, ...]:
    values = table.several(key, int)
    if any(value < least for value in values):
        raise table.wrong(key, f"a list of whole numbers from {least} on")
    return values


def _check_whole(table: TomlTable, experiment: Experiment) -> None:
    """What only several keys together can be wrong about."""
    moving = [each for each in experiment.methods if each.name not in (NONE, PROMPT)]
    layers = {each for one in moving for each in (one.layers or experiment.layers)}
    doses = {each for one in moving for each in (one.doses or experiment.doses)}
    generating = experiment.task == "generations"
    if CHOOSE in layers and not experiment.choose.layers:
        raise ValueError(
            f'{table.file}: layers = "choose" needs candidates: [choose] layers = [10, 14].'
        )
    if experiment.task != "barrier" and CHOOSE in doses and not experiment.choose.doses:
        raise ValueError(
            f'{table.file}: doses = "choose" needs candidates: [choose] doses = [0.1, 0.2].'
        )
    if experiment.samples > 1 and not generating:
        raise ValueError(f"{table.file}: samples = {experiment.samples} is for generations.")
    sampling = Sampling(**experiment.sampling)
    if generating and experiment.samples > 1 and sampling.temperature == 0:
        raise ValueError(
            f"{table.file}: samples = {experiment.samples} are all the same at temperature 0; set "
            f"sampling.temperature, or samples = 1."
        )
    metrics = [judge.name for judge in experiment.judges] if generating else ["mc1", "mc2", "mc3"]
    metric = experiment.choose.metric
    if metric is not None and metric not in metrics:
        raise ValueError(
            f"{table.file}: choose.metric is one of {', '.join(metrics) or 'no judge'}; got "
            f"'{metric}'."
        )
