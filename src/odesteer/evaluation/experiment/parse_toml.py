"""Parser of experiment files.

experiment = read(Path("experiments/smollm2-truthfulqa-mc.toml"))

What can be wrong with it is said here, before anything slow happens.

Typed reader of TOML tables, with positions in errors.

Every key is asked for by name and kind; what is left over is a mistake, and the error names the
file, the key, the value and what to do.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from odesteer.backends.base import Sampling
from odesteer.common.registry import lookup, resolve
from odesteer.evaluation.benchmarks import Benchmark, find_benchmark
from odesteer.evaluation.experiment.config import (
    CHOOSE,
    DTYPES,
    MEASURES,
    NONE,
    OFFLINE,
    OWN,
    PAPER,
    PROMPT,
    TASKS,
    UNSTEERED,
    Choosing,
    Experiment,
    Layer,
    Limits,
    Matched,
    MethodChoice,
    ModelChoice,
    Named,
)
from odesteer.evaluation.judges import JUDGES, find_judge
from odesteer.methods import GROUP, METHODS, Method
from odesteer.models.hooks.positions import POSITIONS
from odesteer.ode import DOSES, Dose
from odesteer.steering.serialization.directory import dose_from_json

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
_SAID = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


class TomlTable:
    """One table of a file; `place` is its path in it, such as "benchmark"."""

    def __init__(self, values: Mapping[str, Any], file: str, place: str = ""):
        self.values = dict(values)
        self.file = file
        self._place = place

    @classmethod
    def read(cls, path: Path, changes: Sequence[str] = ()) -> "TomlTable":
        """A file, with `key=value` put in the place of what it says.

        Raises:
            FileNotFoundError, ValueError: if there is no such file, or it is no TOML.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"No experiment at '{path}'. The repository's experiments/ has some to begin with."
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"'{path}' is no TOML: {error}.") from None
        for change in changes:
            _put(values, change)
        return cls(values, path.name)

    def wrong(self, key: str, want: str) -> ValueError:
        """The error for a value that cannot be used."""
        name = self.name(key)
        given = repr(self.values[key]) if key in self.values else "nothing"
        return ValueError(f"{self.file}: {name} is {want}; got {given:.120}.")

    def name(self, key: str) -> str:
        return f"{self._place}.{key}" if self._place else key

    def only(self, known: Sequence[str]) -> None:
        """Refuse every key that is none of these."""
        try:
            for key in self.values:
                lookup(dict.fromkeys(known), key, "key")
        except ValueError as error:
            where = f"[{self._place}] of {self.file}" if self._place else self.file
            raise ValueError(f"{where}: {error}") from None

    def one(self, key: str, kind: type[T], otherwise: Any = None) -> Any:
        """A value of a kind; `otherwise` where the key is not there."""
        if key not in self.values:
            return otherwise
        value = self.values[key]
        if not _is(value, kind):
            raise self.wrong(key, _SAID[kind])
        return kind(value)  # type: ignore[call-arg]

    def several(self, key: str, kind: type[T], otherwise: Sequence[Any] = ()) -> tuple[Any, ...]:
        """A list of values of a kind."""
        return self.each(key, lambda value: kind(value), kind, otherwise)  # type: ignore[call-arg]

    def each(
        self,
        key: str,
        made: Callable[[Any], T],
        kind: type | None = None,
        otherwise: Sequence[Any] = (),
    ) -> tuple[T, ...]:
        """What is made of each value of a list; a value alone is a list of one."""
        if key not in self.values:
            return tuple(otherwise)
        given = self.values[key]
        values = given if isinstance(given, list) else [given]
        if not values or any(kind is not None and not _is(value, kind) for value in values):
            kinds = {str: "texts", int: "whole numbers", float: "numbers"}
            raise self.wrong(key, f"a list of {kinds.get(kind or object, 'values')}")
        try:
            return tuple(made(value) for value in values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.file}: {self.name(key)}: {error}") from None

    def within(self, key: str) -> "TomlTable":
        """A table in this one; empty where it is not there."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "a table")
        return TomlTable(value, self.file, self.name(key))

    def choice(self, key: str, known: Mapping[str, Any], what: str, otherwise: Any = None) -> Any:
        """A name in a table of ours."""
        value = self.one(key, str, otherwise)
        if value is not None:
            try:
                lookup(known, value, what)
            except ValueError as error:
                raise ValueError(f"{self.file}: {self.name(key)}: {error}") from None
        return value


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _put(values: dict[str, Any], change: str) -> None:
    """`benchmark.test_prompts=20`; what is no TOML value is a text."""
    path, found, text = change.partition("=")
    if not found:
        raise ValueError(f"--set takes key=value, such as limits.test=20; got '{change}'.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, key = path.strip().split(".")
    for name in tables:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ValueError(f"--set {change}: '{name}' is no table of this file.")
        values = inner
    values[key] = value


def named_of(table: TomlTable, key: str, given: Any) -> Named:
    if isinstance(given, str):
        return Named(given)
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ValueError(
            f'{table.file}: {table.name(key)} is a name, or {{name = "...", argument = ...}}; got '
            f"{given!r:.80}."
        )
    return Named(given["name"], {name: value for name, value in given.items() if name != "name"})


def methods_of(table: TomlTable, dose_type: str) -> tuple[MethodChoice, ...]:
    def made(given: Any) -> MethodChoice:
        named = named_of(table, "methods", given)
        own = TomlTable(named.arguments, table.file, f"methods, {named.name}")
        kind = resolve({**METHODS, PROMPT: None}, named.name, "method", GROUP, Method)
        special = ("id", "label", "layers", "doses", "within")
        known = [] if kind is None else [each.name for each in fields(kind)]
        own.only([*special, *known])
        rest = {key: value for key, value in own.values.items() if key not in special}
        rest = {key: tuple(v) if isinstance(v, list) else v for key, v in rest.items()}
        if kind is not None:
            kind(**rest)  # refuses what it cannot be made of, in its own words
        one = own.one("id", str, named.name)
        return MethodChoice(
            named.name,
            one,
            own.one("label", str, one),
            layers_of(own, ()),
            doses_of(own, dose_type, ()),
            within_of(own, dose_type),
            rest,
        )

    methods = table.each("methods", made)
    ids = [method.id for method in methods]
    twice = next((one for one in ids if ids.count(one) > 1), None)
    if twice is not None:
        raise ValueError(
            f'{table.file}: methods has two rows with the id "{twice}"; give one of them another: '
            f'{{name = "{twice}", id = "{twice}-2"}}.'
        )
    return methods


def layers_of(table: TomlTable, otherwise: tuple[Layer | str, ...]) -> tuple[Layer | str, ...]:
    def made(value: Any) -> Layer | str:
        if value == CHOOSE:
            return CHOOSE
        if isinstance(value, list) and value and all(type(each) is int for each in value):
            return tuple(value)
        if type(value) is int:
            return value
        raise ValueError(
            f'a layer is a block index from 0, a list of them, or "choose"; got {value!r}'
        )

    return table.each("layers", made, None, otherwise)


def doses_of(
    table: TomlTable, dose_type: str, otherwise: tuple[Dose | str, ...]
) -> tuple[Dose | str, ...]:
    def made(value: Any) -> Dose | str:
        if value in (CHOOSE, OWN):
            return str(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return dose_from_json({"type": dose_type, "amount": float(value)})
        return dose_from_json(value)

    return table.each("doses", made, None, otherwise)


def within_of(table: TomlTable, dose_type: str) -> Dose | None:
    amount = table.one("within", float)
    if amount is None:
        return None
    if not amount > 0:
        raise table.wrong("within", "more than 0")
    return dose_from_json({"type": dose_type, "amount": amount})


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
