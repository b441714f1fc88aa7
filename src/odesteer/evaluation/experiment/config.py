"""Experiment configuration, read from a TOML file: all that its numbers depend on.

The file has the attributes below as its keys,
tables being attributes that are classes of their own; pydantic checks it against their types.
Where data lies and who computes is not part of it: a result says by checksums what was read.

    experiment = read(Path("experiments/smollm2-truthfulqa-mc.toml"))

All that can be wrong with a file is found here, before anything slow happens: the error names the
file, the key, the value and what to do, on one line.
"""

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictFloat,
    StrictInt,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)

from odesteer.common.registry import lookup, resolve
from odesteer.evaluation.benchmarks import find_benchmark
from odesteer.evaluation.judges import JUDGES, find_judge
from odesteer.extraction.tokenize import Tokens
from odesteer.methods import GROUP, METHODS, Method
from odesteer.models.generation import Sampling
from odesteer.models.hooks.positions import PositionRule
from odesteer.ode import DOSES, Dose
from odesteer.steering.serialization import dose_from_json, dose_to_json

TASKS = ("choices", "generations", "barrier")
OFFLINE, PAPER = "offline", "paper"
CHOOSE, OWN = "choose", "own"
PROMPT, NONE = "prompt", "none"
UNSTEERED = "unsteered"  # as a judge's model: the one that is steered, without its steering
MEASURES = ("kl", "displacement")
DTYPES = ("auto", "float32", "bfloat16", "float16")
DOSE_TYPES = tuple(DOSES)[:3]

Layer = int | tuple[int, ...]
T = TypeVar("T")

# Types of a benchmark's fields that a file may set.
_SIZES = ("int", int, "str | None", str | None, "tuple[int, ...]", tuple[int, ...])
_FORBID = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


def _choice(table: tuple[str, ...], kind: str) -> AfterValidator:
    """Check that a name is in a table; the error suggests the nearest."""

    def check(name: str) -> str:
        lookup(dict.fromkeys(table), name, kind)
        return name

    return AfterValidator(check)


def _positions(text: str) -> str:
    return str(PositionRule.parse(text))


def _without_names(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value for value in values if not isinstance(value, str))


def _model(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    """Make a tuple; a single value is a list of one."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _layer(value: Any) -> Layer | str:
    if value == CHOOSE:
        return CHOOSE
    if isinstance(value, list) and value and all(type(each) is int for each in value):
        return tuple(value)
    if type(value) is int:
        return value
    raise ValueError(f'a layer is a block index from 0, a list of them, or "choose"; got {value!r}')


def _dose(value: Any, info: ValidationInfo) -> Dose | str:
    if value in (CHOOSE, OWN):
        return str(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _of_type(float(value), info)
    return _dose_from_json(value)


def _doses(value: Any, info: ValidationInfo) -> tuple[Dose | str, ...]:
    return tuple(_dose(each, info) for each in _listed(value))


def _within(value: Any, info: ValidationInfo) -> Dose:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"is a number; got {value!r:.80}")
    if not value > 0:
        raise ValueError(f"is more than 0; got {value!r:.80}")
    return _of_type(float(value), info)


def _of_type(amount: float, info: ValidationInfo) -> Dose:
    """Return so much of the experiment's type of dose."""
    context: Any = info.context
    return _dose_from_json({"type": context["dose_type"], "amount": amount})


def _dose_from_json(value: Any) -> Dose:
    try:
        return dose_from_json(value)
    except TypeError as error:  # which pydantic lets pass
        raise ValueError(error) from None


def _named(value: Any) -> "Named":
    if isinstance(value, str):
        return Named(value)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise ValueError(f'is a name, or {{name = "...", argument = ...}}; got {value!r:.80}')
    return Named(value["name"], {key: each for key, each in value.items() if key != "name"})


def _benchmark(value: Any) -> "Named":
    """Check arguments: those of the benchmark's `load`, or its sizes."""
    named = _named(value)
    kind: Any = find_benchmark(named.name)
    known = [name for name in inspect.signature(kind.load).parameters if name != "data"]
    known += [each.name for each in fields(kind) if each.type in _SIZES]
    for name in named.arguments:
        lookup(dict.fromkeys(known), name, f"argument of {named.name}")
    return named


def _method(value: Any) -> Any:
    """Separate a method's hyperparameters from the keys of its row."""
    named = _named(value)
    kind = resolve({**METHODS, PROMPT: None}, named.name, "method", GROUP, Method)
    special = ("id", "label", "layers", "doses", "within", "tokens", "shuffled")
    known = [] if kind is None else [each.name for each in fields(kind)]
    for key in named.arguments:
        lookup(dict.fromkeys([*special, *known]), key, f"key of {named.name}")
    rest = {key: _tupled(each) for key, each in named.arguments.items() if key not in special}
    if kind is not None:
        try:
            kind(**rest)  # refuses what it cannot be made of, in its own words
        except TypeError as error:
            raise ValueError(error) from None
    row = {key: each for key, each in named.arguments.items() if key in special}
    name = row.setdefault("id", named.name)
    return {"name": named.name, "label": name, **row, "hyperparameters": rest}


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _distinct(methods: "tuple[MethodChoice, ...]") -> "tuple[MethodChoice, ...]":
    ids = [method.id for method in methods]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f'has two rows with the id "{twice}"; give one of them another: '
            f'{{name = "{twice}", id = "{twice}-2"}}'
        )
    return methods


def _sampling(value: Any, info: ValidationInfo) -> dict[str, Any]:
    """Add the benchmark's own settings."""
    if not isinstance(value, dict):
        raise ValueError(f"is a table; got {value!r:.80}")
    for key in value:
        lookup(
            dict.fromkeys(each.name for each in fields(Sampling) if each.name != "seed"), key, "key"
        )
    return {**_of_benchmark(info, "sampling", {}), **value}


def _judges(value: Any, info: ValidationInfo) -> "tuple[Named, ...]":
    if info.data.get("task") != "generations":
        return ()
    if value == PAPER:
        return tuple(map(Named, _of_benchmark(info, "judges", ())))
    if value == OFFLINE:
        # The paper's perplexity is by a model that has to be fetched.
        arguments: dict[str, dict[str, Any]] = {"perplexity": {"model": UNSTEERED}}
        names: Any = _of_benchmark(info, "offline_judges", ())
        return tuple(Named(name, arguments.get(name, {})) for name in names)
    if isinstance(value, str) and value not in JUDGES:
        raise ValueError(
            f'is "offline", "paper" or a list of names; got "{value}". '
            f"Available: {', '.join(JUDGES)}"
        )
    if value == []:
        raise ValueError("is a list of values; got []")
    return tuple(_judge(each) for each in _listed(value))


def _judge(value: Any) -> "Named":
    named = _named(value)
    kind = find_judge(named.name)
    for name in named.arguments:
        lookup(dict.fromkeys(each.name for each in fields(kind)), name, f"argument of {named.name}")
    missing = [
        each.name
        for each in fields(kind)
        if each.default is each.default_factory is MISSING and each.name not in named.arguments
    ]
    if missing:
        cure = " damage = true measures it." if named.name == "kl" else ""
        raise ValueError(f"the judge {named.name} needs {', '.join(missing)}.{cure}")
    return named


def _of_benchmark(info: ValidationInfo, attribute: str, otherwise: T) -> T:
    """Return an attribute of the benchmark's class; `otherwise` if the benchmark is invalid."""
    named = info.data.get("benchmark")
    if named is None:
        return otherwise
    value: T = getattr(find_benchmark(named.name), attribute)
    return value


Several = Annotated[tuple[T, ...], BeforeValidator(_listed), Field(min_length=1)]
Count = Annotated[StrictInt, Field(ge=1)]
Positive = Annotated[StrictFloat, Field(gt=0)]
Layers = Several[Annotated[Any, PlainValidator(_layer)]]
Doses = Several[Annotated[Any, PlainValidator(_dose)]]


@dataclass(frozen=True)
class ModelChoice:
    """Model: "smollm2", a directory or a Hub name; its precision and its commit."""

    __pydantic_config__ = _FORBID

    name: str = "smollm2"
    dtype: Annotated[str, _choice(DTYPES, "dtype")] = "auto"
    revision: str | None = None


@dataclass(frozen=True)
class Named:
    """A benchmark or a judge by name, with its arguments."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodChoice:
    """One row of the comparison.

    Attributes:
        name: a method, or "prompt" for the benchmark's instruction in words.
        id: names it in results; two settings of one method need two.
        label: what tables call it.
        layers, doses: instead of the experiment's; empty: as the experiment has them.
        within: matched conditions stop at a target with this budget, and the target's probability
            is what is matched; None: they go as far as matches.
        tokens: which tokens of the texts are read, see `odesteer.extraction.tokenize`; None: those
            of the method.
        shuffled: the control that learns from permuted labels: what is left of an effect is not
            of the labels.
        hyperparameters: of the method.
    """

    __pydantic_config__ = _FORBID

    name: str
    id: str
    label: str
    layers: Layers = ()
    doses: Doses = ()
    within: Annotated[Dose | None, BeforeValidator(_within)] = None
    tokens: Tokens | None = None
    shuffled: bool = False
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """At most so many groups (questions, prompts, comments) of each part of a fold; None: all."""

    __pydantic_config__ = _FORBID

    fit: Count | None = None
    validation: Count | None = None
    test: Count | None = None


@dataclass(frozen=True)
class Choosing:
    """Rule of "choose": the best metric on validation cases within a budget of damage.

    Attributes:
        layers, doses: the candidates.
        metric: one of the choices' scores, or a judge; None: the benchmark's first offline one.
        max_kl: mean KL to the unsteered next-token distribution, nats.
    """

    __pydantic_config__ = _FORBID

    layers: Annotated[Layers, AfterValidator(_without_names)] = ()
    doses: Annotated[Doses, AfterValidator(_without_names)] = ()
    metric: str | None = None
    max_kl: Positive = 0.5


@dataclass(frozen=True)
class Matched:
    """Doses at which every method has the same mean damage on validation cases.

    Attributes:
        kl: KL to the unsteered next-token distribution, nats a token.
        displacement: ||a(T) - a|| / ||a||.
    """

    __pydantic_config__ = _FORBID

    kl: Several[Positive] = ()
    displacement: Several[Positive] = ()


@dataclass(frozen=True)
class Experiment:
    """An experiment; see the module.

    Attributes:
        name: of the run's directory.
        title: of its report.
        task: "choices" (likelihoods of given answers), "generations", or "barrier" (held-out
            log-odds alone).
        benchmark: with the arguments of its `load` or other sizes.
        methods: the rows.
        layers: decoder blocks, or "choose"; a list in the list is several at once.
        doses: "choose", "own" (each method's default), a number of `dose_type`, or
            {type = "target", ...}.
        dose_type: what a number is, see `odesteer.ode.dose`.
        matched: more conditions, at doses of equal damage.
        steps: of the solver, instead of each method's own.
        seeds: of sampling and of methods that draw; each makes its own conditions.
        split_seed: of the folds.
        folds: how many of the benchmark's are run; None: all.
        samples: generations a prompt.
        positions: which tokens are steered, see `odesteer.models.hooks.positions`.
        sampling: instead of the benchmark's, see `odesteer.Sampling`.
        judges: "offline", "paper", or names.
        damage: also KL, displacement, and the likelihood under the unsteered model.
        barrier: also each barrier's log-odds on the test part's texts.
        batch: cases a unit of work.
    """

    __pydantic_config__ = _FORBID

    name: str
    benchmark: Annotated[Named, PlainValidator(_benchmark)]
    methods: Annotated[
        Several[Annotated[MethodChoice, BeforeValidator(_method)]], AfterValidator(_distinct)
    ]
    title: str = ""
    task: Annotated[str, _choice(TASKS, "task")] = "generations"
    model: Annotated[ModelChoice, BeforeValidator(_model)] = ModelChoice()
    layers: Layers = (CHOOSE,)
    # None at all where every dose is a matched one.
    doses: Annotated[tuple[Dose | str, ...], PlainValidator(_doses)] = (CHOOSE,)
    dose_type: Annotated[str, _choice(DOSE_TYPES, "dose")] = "angle"
    choose: Choosing = Choosing()
    matched: Matched = Matched()
    limits: Limits = Limits()
    steps: Several[Count] = ()
    seeds: Several[StrictInt] = (0,)
    split_seed: StrictInt = 0
    folds: Count | None = None
    samples: Count = 1
    positions: Annotated[str, AfterValidator(_positions)] = "last+generated"
    sampling: Annotated[Mapping[str, Any], PlainValidator(_sampling)] = field(default_factory=dict)
    judges: Annotated[tuple[Named, ...], PlainValidator(_judges)] = ()
    damage: StrictBool = True
    barrier: StrictBool = False
    batch: Count = 16

    def to_json(self) -> dict[str, Any]:
        """Return everything with defaults filled in, as JSON values."""
        tree: dict[str, Any] = _plain(self)
        return tree


def _plain(value: Any) -> Any:
    if isinstance(value, Dose):
        return dose_to_json(value)
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_TABLES: Mapping[str, Any] = {
    "": Experiment,
    "model": ModelChoice,
    "choose": Choosing,
    "matched": Matched,
    "limits": Limits,
}
_MISSING = {"benchmark": 'benchmark = {name = "truthfulqa"}', "methods": 'methods = ["caa"]'}
# What pydantic's errors want, of one value and of each in a list.
_WANTED = {
    "int_type": ("a whole number", "whole numbers"),
    "float_type": ("a number", "numbers"),
    "string_type": ("a text", "texts"),
    "bool_type": ("true or false", "values true or false"),
    "greater_than_equal": ("a whole number from 1 on", "whole numbers from 1 on"),
    "greater_than": ("more than 0", "numbers above 0"),
    "too_short": ("a list of one value or more", "values"),
    "dataclass_type": ("a table", "tables"),
}


def read(path: Path, changes: Sequence[str] = ()) -> Experiment:
    """Read an experiment from its file, with `key=value` changes.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: naming the file, the key, the value and what to do.
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
    return parse(values, path.name, path.stem)


def parse(values: Mapping[str, Any], file: str, stem: str = "experiment") -> Experiment:
    """Check the values of a file; see `read`.

    Args:
        values: as TOML gives them.
        file: its name, for errors.
        stem: names an experiment that has no name.
    """
    for key, example in _MISSING.items():
        if key not in values:
            raise ValueError(f"{file}: an experiment needs {key}: {example}.")
    values = {"name": stem, "judges": OFFLINE, "sampling": {}, **values}
    dose_type = values.get("dose_type")
    # Another one is refused where it stands.
    context = {"dose_type": dose_type if dose_type in DOSE_TYPES else Experiment.dose_type}
    try:
        experiment = TypeAdapter(Experiment).validate_python(values, context=context)
    except ValidationError as error:
        raise ValueError(_explained(error, values, file)) from None
    _check_whole(file, experiment)
    return experiment


def _explained(error: ValidationError, values: Mapping[str, Any], file: str) -> str:
    """Explain the first error in one line; keys that do not exist come before wrong values."""
    errors = error.errors(include_url=False)
    first = min(errors, key=lambda each: each["type"] != "unexpected_keyword_argument")
    kind, path = first["type"], first["loc"]
    name = ".".join(part for part in path if isinstance(part, str))
    if kind == "unexpected_keyword_argument":
        return _unknown_key(name, file)
    if kind == "value_error":
        message = str(first["ctx"]["error"]).removesuffix(".")
        joint = " " if message.startswith(("is ", "has ")) else ": "
        return f"{file}: {name}{joint}{message}."
    value, listed = _value_at(values, path)
    if kind not in _WANTED:
        return f"{file}: {name}: {first['msg']}; got {value!r:.120}."
    single, several = _WANTED[kind]
    return f"{file}: {name} is {f'a list of {several}' if listed else single}; got {value!r:.120}."


def _unknown_key(name: str, file: str) -> str:
    table, _, key = name.rpartition(".")
    try:
        lookup(dict.fromkeys(each.name for each in fields(_TABLES[table])), key, "key")
    except ValueError as error:
        return f"[{table}] of {file}: {error}" if table else f"{file}: {error}"
    raise AssertionError(f"{name} is a key.")


def _value_at(values: Any, path: Sequence[int | str]) -> tuple[Any, bool]:
    """Return what the file has at a path, or the list that it is in (and whether it is in one)."""
    for part in path:
        if isinstance(part, int):
            if not isinstance(values, list) or not isinstance(values[part], dict):
                return values, True
            values = values[part]
        elif isinstance(values, dict):
            values = values.get(part)
    return values, False


def _put(values: dict[str, Any], change: str) -> None:
    """Set `benchmark.test_prompts=20`; what is no TOML value is a text."""
    path, equals, text = change.partition("=")
    if not equals:
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


def _check_whole(file: str, experiment: Experiment) -> None:
    """Check what only several keys together can be wrong about."""
    moving = [method for method in experiment.methods if method.name not in (NONE, PROMPT)]
    layers = {layer for method in moving for layer in method.layers or experiment.layers}
    doses = {dose for method in moving for dose in method.doses or experiment.doses}
    generating = experiment.task == "generations"
    if CHOOSE in layers and not experiment.choose.layers:
        raise ValueError(f'{file}: layers = "choose" needs candidates: [choose] layers = [10, 14].')
    if experiment.task != "barrier" and CHOOSE in doses and not experiment.choose.doses:
        raise ValueError(f'{file}: doses = "choose" needs candidates: [choose] doses = [0.1, 0.2].')
    if experiment.samples > 1 and not generating:
        raise ValueError(f"{file}: samples = {experiment.samples} is for generations.")
    sampling = Sampling(**experiment.sampling)
    if generating and experiment.samples > 1 and sampling.temperature == 0:
        raise ValueError(
            f"{file}: samples = {experiment.samples} are all the same at temperature 0; set "
            f"sampling.temperature, or samples = 1."
        )
    metrics = [judge.name for judge in experiment.judges] if generating else ["mc1", "mc2", "mc3"]
    metric = experiment.choose.metric
    if metric is not None and metric not in metrics:
        raise ValueError(
            f"{file}: choose.metric is one of {', '.join(metrics) or 'no judge'}; got '{metric}'."
        )
