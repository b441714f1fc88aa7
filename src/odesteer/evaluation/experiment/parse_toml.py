"""Parser of experiment files.

experiment = read(Path("experiments/smollm2-truthfulqa-mc.toml"))

All that can be wrong with a file is found here, before anything slow happens: the error names the
file, the key, the value and what to do, on one line.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from odesteer.common.registry import lookup
from odesteer.evaluation.experiment.config import (
    CHOOSE,
    DOSE_TYPES,
    NONE,
    OFFLINE,
    PROMPT,
    Choosing,
    Experiment,
    Limits,
    Matched,
    ModelChoice,
)
from odesteer.models.generation import Sampling

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
