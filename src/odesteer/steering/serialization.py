"""Saved steerings: fields as a JSON tree with tensors, their checks, and the directory on disk.

A field, barrier or whitening is its class name, its constructor's arguments and its tensors.
`describe` turns one into a JSON tree and named tensors; `rebuild` reverses it, only for the
classes in `CLASSES` and only with arguments of the types that they take, since the file may come
from anybody.

A rebuilt steering must then move a few activations to finite values (`try_out`), several at once
and one alone: parts whose sizes disagree, or only agree by broadcasting, and numbers that overflow
do not pass. The same is required before a steering is written, so that whatever was written can be
read.

In the directory, `steering_config.json` holds everything but tensors, and the hash of
`steering.safetensors`; a `README.md` is for people. Each file is written to a temporary name and
renamed. Reading checks everything and executes nothing.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, BinaryIO, Union, get_args, get_origin

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from odesteer import ode
from odesteer.common import limits
from odesteer.common.catalogue import LAST_AND_GENERATED
from odesteer.common.files import replace_files
from odesteer.common.registry import lookup
from odesteer.ode import DOSES, Dose, Target, as_dose
from odesteer.steering.model_card import card

if TYPE_CHECKING:
    from odesteer.steering.layer_steering import LayerSteering


# Squares of larger numbers overflow in float32, where not every activation need show it.
LARGEST = 1e18
# Arguments that files name otherwise: what 0.1.0 wrote is read, and it reads what is written.
_SAVED_NAMES = {("RectifiedField", "prompt_conditioned"): "reads_prompt"}
# Hash buckets; every other tensor holds real numbers.
_INTEGERS = {("SketchBarrier", "index")}


def _check_numbers(name: str, arguments: Mapping[str, Any]) -> None:
    """Raise ValueError for a tensor of numbers that nothing can be computed with."""
    for argument, value in arguments.items():
        if not isinstance(value, Tensor):
            continue
        if value.dtype.is_floating_point == ((name, argument) in _INTEGERS):
            raise ValueError(f"the {argument} of a {name} cannot be of type {value.dtype}")
        if not bool((value.abs() <= LARGEST).all()):
            raise ValueError(
                f"the {argument} of a {name} holds NaN, infinity or a number beyond {LARGEST:g}"
            )


# Whole numbers count repetitions (of a flow's steps): more is a mistake, or meant to hang.
MAX_REPETITIONS = 1000

CLASSES: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        ode.AffineBarrier,
        ode.AndBarrier,
        ode.ConstantField,
        ode.Dense,
        ode.FormBarrier,
        ode.FourierBarrier,
        ode.GaussianBarrier,
        ode.GradientField,
        ode.Hourglass,
        ode.LinearBarrier,
        ode.MetricBarrier,
        ode.MixtureBarrier,
        ode.Network,
        ode.NetworkBarrier,
        ode.OrBarrier,
        ode.PlainGradientField,
        ode.QuadraticBarrier,
        ode.RectifiedField,
        ode.RotationField,
        ode.SafetyField,
        ode.SketchBarrier,
        ode.TransportField,
        ode.Whitening,
        ode.ZeroField,
    )
}


def describe(module: nn.Module, prefix: str = "field") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON tree of a module, and its tensors by their path in the tree.

    Raises:
        ValueError: if the module, or a part of it, is not one of `CLASSES`.
    """
    name = type(module).__name__
    if name not in CLASSES:
        raise ValueError(
            f"A {name} cannot be saved: it is code, and loading a steering never runs code. "
            f"Saveable are: {', '.join(CLASSES)}."
        )
    tree: dict[str, Any] = {"type": name}
    tensors: dict[str, Tensor] = {}
    for argument in _arguments(name):
        value = getattr(module, argument)
        saved = _SAVED_NAMES.get((name, argument), argument)
        path = f"{prefix}.{saved}"
        if isinstance(value, Tensor):
            tensors[path] = value.detach().cpu().contiguous().clone()
            tree[saved] = {"tensor": path}
        elif isinstance(value, nn.ModuleList):
            described = [describe(part, f"{path}.{i}") for i, part in enumerate(value)]
            tree[saved] = [part for part, _ in described]
            for _, more in described:
                tensors.update(more)
        elif isinstance(value, nn.Module):
            tree[saved], more = describe(value, path)
            tensors.update(more)
        else:
            tree[saved] = value
    return tree, tensors


def rebuild(tree: Any, tensors: dict[str, Tensor]) -> nn.Module:
    """Rebuild the module that `describe` described.

    Raises:
        ValueError: for a class that is not listed, an argument of another type or shape than
            the class takes, or a tensor that is missing.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("type"), str):
        raise ValueError(f"a part of a steering is an object with its type; got {tree!r:.80}")
    name = tree["type"]
    # No class has a long name, and looking for the nearest one takes time with the length.
    cls = lookup(CLASSES, name[:100], "part of a steering")
    known = {
        _SAVED_NAMES.get((name, argument), argument): hint
        for argument, hint in _arguments(name).items()
    }
    arguments = {key: _value(value, tensors) for key, value in tree.items() if key != "type"}
    if set(arguments) != set(known):
        raise ValueError(
            f"a {name} is made of {', '.join(known) or 'nothing'}; the file gives "
            f"{', '.join(arguments) or 'nothing'}"
        )
    for argument, value in arguments.items():
        if not _is(value, known[argument]):
            # Not the repr of tensors and modules, which may be as long as they are.
            shown = value if isinstance(value, str | int | float) else type(value)
            raise ValueError(f"the {argument} of a {name} cannot be {shown!r:.80}")
    _check_numbers(name, arguments)
    return cls(*(arguments[argument] for argument in known))


def _value(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [rebuild(part, tensors) for part in value]
    if isinstance(value, dict) and set(value) == {"tensor"}:
        name = value["tensor"]
        if not isinstance(name, str) or name not in tensors:
            raise ValueError(f"the tensor {name!r:.80} is missing from the file")
        return tensors[name]
    return rebuild(value, tensors) if isinstance(value, dict) else value


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type: a class, a sequence of it, or a union."""
    if get_origin(hint) in (Union, UnionType):
        return any(_is(value, each) for each in get_args(hint))
    if get_origin(hint) is Sequence:
        return isinstance(value, list) and all(_is(each, *get_args(hint)) for each in value)
    if hint is float:
        return type(value) in (int, float) and abs(value) <= LARGEST
    if hint is int:
        return type(value) is int and 0 <= value <= MAX_REPETITIONS
    return isinstance(value, hint)


@cache
def _arguments(name: str) -> dict[str, Any]:
    """Return the arguments of a class of `CLASSES` and their types."""
    signature = inspect.signature(CLASSES[name], eval_str=True)
    return {key: parameter.annotation for key, parameter in signature.parameters.items()}


# Attributes that are JSON values as they are, and of which type.
_PLAIN: dict[str, tuple[type, ...]] = {
    "solver": (str,),
    "steps": (int,),
    "layer": (int, type(None)),
    "method": (str,),
    "hyperparameters": (dict,),
    "receipts": (dict,),
    "model": (dict,),
    "site": (str,),
    "positions": (str,),
}
# Of files from before there were others.
_DEFAULTS = {"site": "residual", "positions": LAST_AND_GENERATED}
# More would make generation wait at every token.
MAX_STEPS = 1000
# Of the trial: enough to see a flow diverge that does so early.
_TRIAL_STEPS = 50
# Errors in the arithmetic of parts that do not belong together.
MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def plain_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a steering that are stored as they are.

    Raises:
        ValueError: for a value of another type, or more than `MAX_STEPS` steps.
        KeyError: for one that is missing.
    """
    values = {key: config[key] for key in _PLAIN if key not in _DEFAULTS}
    values |= {key: config.get(key, default) for key, default in _DEFAULTS.items()}
    for key, kinds in _PLAIN.items():
        value = values[key]
        if type(value) not in kinds or (isinstance(value, str) and len(value) > 1000):
            raise ValueError(f"its {key} cannot be {value!r:.80}")
    if values["steps"] > MAX_STEPS:
        raise ValueError(f"steps may be at most {MAX_STEPS}; got {values['steps']}")
    return values


def calibration_of(values: Any) -> dict[str, float]:
    """Return scale and offset; ValueError unless they are numbers and scale > 0."""
    if not isinstance(values, dict) or set(values) != {"scale", "offset"}:
        raise ValueError(f"its calibration is scale and offset; got {values!r:.80}")
    if any(type(each) not in (int, float) for each in values.values()) or not values["scale"] > 0:
        raise ValueError(f"its calibration needs a scale > 0 and an offset; got {values!r:.80}")
    return values


def try_out(steering: "LayerSteering") -> None:
    """Raise ValueError unless activations 0, 1, random and large go to finite values."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn((4, steering.hidden_size or 1), generator=generator, dtype=torch.float32)
    rows[0], rows[1] = 0.0, 1.0
    # The largest coordinates of language models are some thousands.
    rows[3] *= 1000.0
    # What has a size of its own fits the batch by chance at most, and then not a single row.
    for a, steps in ((rows, min(steering.steps, _TRIAL_STEPS)), (rows[2], 1)):
        trial = replace(steering, steps=steps)
        results = {"activation": (trial(a), a.shape), "velocity": (trial.velocity(a), a.shape)}
        if steering.field.barrier is not None:
            results["log-odds"] = trial.log_odds(a), a.shape[:-1]
        for what, (values, shape) in results.items():
            if values.shape != shape or not bool(torch.isfinite(values).all()):
                raise ValueError(
                    f"its {type(steering.field).__name__} gives activations {list(a.shape)} a "
                    f"{what} {list(values.shape)} that is of another shape or not finite"
                )


SCHEMA = 1
CONFIG, TENSORS, CARD = "steering_config.json", "steering.safetensors", "README.md"


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], dose: str) -> Path:
    """Write the directory, with schema and hash in the configuration.

    Raises:
        ValueError: if `config` is not JSON, or more of it than `read` accepts.
    """
    payload = dump_tensors(tensors)
    config = {"schema": SCHEMA, **config, "sha256": hashlib.sha256(payload).hexdigest()}
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        config = limits.parse_json(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"This steering cannot be saved: its {CONFIG} could not be read back, because "
            f"{limits.brief(error)}. Keep plain JSON values in receipts and hyperparameters."
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    # The configuration holds the hash of the tensors and comes last: a directory cut off in
    # the middle is detected when it is read.
    files = {TENSORS: payload, CARD: card(config, dose).encode(), CONFIG: text.encode()}
    replace_files(folder, files)
    return folder


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the configuration and the tensors of a directory that `write` wrote.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged, was written by a newer version, or holds what no steering
            does (`odesteer.common.limits`).
    """
    name = CONFIG
    try:
        with limits.open_inside(folder, CONFIG, limits.MAX_JSON_BYTES) as file:
            text = file.read(limits.MAX_JSON_BYTES + 1)
        name = TENSORS
        with limits.open_inside(folder, TENSORS, limits.MAX_TENSOR_BYTES) as file:
            name = CONFIG
            config = _configuration(text)
            name = TENSORS
            if _sha256(file) != config.get("sha256"):
                raise ValueError(
                    "it does not match its checksum: the copy is incomplete or was changed; copy "
                    "the whole directory again"
                )
            limits.check_header(file)
            return config, load_tensors(file.read())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"No steering at '{folder}': {error}. A steering is a directory written by "
            f"save_pretrained or `odesteer fit --out`."
        ) from None
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"'{folder / name}' cannot be used: {limits.brief(error)}.") from None


def _configuration(text: bytes) -> dict[str, Any]:
    config = limits.parse_json(text)
    if not isinstance(config, dict) or config.get("schema") != SCHEMA:
        schema = config.get("schema") if isinstance(config, dict) else None
        raise ValueError(
            f"it has schema {schema!r:.40}; this version reads schema {SCHEMA}: upgrade odesteer, "
            f"or fit again"
        )
    return config


def _sha256(file: BinaryIO) -> str:
    """Hash a file piece by piece, without filling memory, and rewind it."""
    digest = hashlib.sha256()
    while piece := file.read(2**20):
        digest.update(piece)
    file.seek(0)
    return digest.hexdigest()


def dose_to_json(dose: Dose) -> dict[str, Any]:
    """Convert a dose to JSON values.

        >>> dose_to_json(as_dose(0.5))
        {'type': 'time', 'amount': 0.5}

    Raises:
        ValueError: for one that belongs to the rows of a batch.
    """
    name = next((name for name, cls in DOSES.items() if type(dose) is cls), None)
    if name is None:
        raise ValueError(
            f"{type(dose).__name__} belongs to the rows of a batch and cannot be saved; give the "
            f"steering one dose first: steering.with_strength(...)."
        )
    if isinstance(dose, Target):
        covered = {} if dose.coverage is None else {"coverage": dose.coverage}
        return {
            "type": name,
            "probability": dose.probability,
            "budget": dose_to_json(as_dose(dose.budget)),
            **covered,
        }
    return {"type": name, "amount": dose.size}


def dose_from_json(tree: Any) -> Dose:
    """Rebuild the dose that `dose_to_json` wrote.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("type"), str):
        raise ValueError(f"a dose is an object with its type; got {tree!r:.80}")
    kind = lookup(DOSES, tree["type"][:100], "dose")
    values = {key: value for key, value in tree.items() if key != "type"}
    names = {"probability", "budget"} if kind is Target else {"amount"}
    if set(values) - ({"coverage"} if kind is Target else set()) != names:
        raise ValueError(
            f"the dose '{tree['type']}' is not made of {', '.join(values) or 'nothing'}"
        )
    if kind is Target:
        values["budget"] = dose_from_json(values["budget"])
    for name, value in values.items():
        if name != "budget" and type(value) not in (int, float):
            raise ValueError(f"the {name} of a dose is a number; got {value!r:.80}")
    return kind(**values)
