"""Control-vector files by format.

.gguf          llama.cpp, repeng, saklas, EasySteer; see `.gguf`
.svec          CAST, AISteer360: JSON {model_type, directions: {layer: numbers}, ...}
.safetensors   plain tensors, direction.N for block N
.pt            lm-evaluation-harness's `steered` models; written, never read: it is pickle
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from odesteer.common.limits import (
    MAX_BULK_VALUES,
    MAX_VECTOR_BYTES,
    brief,
    check_header,
    open_bounded,
    parse_json,
)
from odesteer.common.registry import lookup
from odesteer.integrations.control_vectors import gguf
from odesteer.integrations.control_vectors.vectors import Vectors, by_layer

_DTYPES = ("F64", "F32", "F16", "BF16")


def read_vectors(path: str | os.PathLike[str], as_extracted: bool = False) -> Vectors:
    """Read the control vectors of a file; nothing in it is executed.

        steering = read_vectors("happy.gguf").steering(strength=0.5)

    Args:
        path: .gguf, .svec or .safetensors.
        as_extracted: for a GGUF file of llama.cpp's own generator, see `.gguf`.

    Raises:
        FileNotFoundError: for a missing file.
        ValueError: for another kind of file, or a damaged one.
    """
    path = Path(path)
    if path.suffix == ".pt":
        raise ValueError(
            f"'{path}' is a pickle, which can run code when it is read: convert it to "
            f".safetensors with the library that wrote it."
        )
    read = lookup(_READERS, path.suffix, "kind of control vector")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file '{path}'.")
    if as_extracted and path.suffix != ".gguf":
        raise ValueError("Only GGUF files of llama.cpp's generator are off by one layer.")
    try:
        with open_bounded(path, MAX_VECTOR_BYTES) as file:
            vectors = read(file)
        return vectors.moved(-1) if as_extracted else vectors
    except (ValueError, SafetensorError) as error:
        raise ValueError(
            f"'{path}' is no {path.suffix} file of control vectors: {brief(error)}."
        ) from None


def write_vectors(vectors: Vectors, path: str | os.PathLike[str]) -> Path:
    """Write control vectors in the format of the file's suffix, completely or not at all.

        write_vectors(vectors_of(repeng_vector), "happy.safetensors")

    Raises:
        ValueError: for another suffix, or vectors that the format cannot hold.
    """
    path = Path(path)
    write = lookup(FORMATS, path.suffix, "kind of control vector")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as directory:
        temporary = Path(directory) / path.name
        write(vectors, temporary)
        os.replace(temporary, path)
    return path


def _read_svec(file: BinaryIO) -> Vectors:
    tree = parse_json(file.read(), MAX_VECTOR_BYTES, MAX_BULK_VALUES)
    directions = tree.get("directions") if isinstance(tree, dict) else None
    if not isinstance(directions, dict):
        raise ValueError("it has no object 'directions'")
    kind = tree.get("model_type")
    return Vectors(
        by_layer((layer, _numbers(layer, value)) for layer, value in directions.items()),
        kind if isinstance(kind, str) else None,
    )


def _numbers(layer: str, value: Any) -> Tensor:
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        (value,) = value
    if not isinstance(value, list) or not all(type(number) in (int, float) for number in value):
        raise ValueError(f"the direction of layer {layer:.20} is no list of numbers")
    return torch.tensor(value, dtype=torch.float64)


def _read_safetensors(file: BinaryIO) -> Vectors:
    notes = check_header(file, _DTYPES)
    directions = by_layer(load(file.read()).items())
    return Vectors(directions, notes.pop("model_type", None), notes)


def _write_svec(vectors: Vectors, path: Path) -> None:
    tree = {
        "model_type": vectors.model_type or "",
        "directions": {str(layer): d.tolist() for layer, d in vectors.directions.items()},
        "explained_variances": {},  # of a principal component, which these need not be
    }
    path.write_text(json.dumps(tree), encoding="utf-8")


def _write_safetensors(vectors: Vectors, path: Path) -> None:
    kind = {} if vectors.model_type is None else {"model_type": vectors.model_type}
    tensors = {f"direction.{layer}": d.contiguous() for layer, d in vectors.directions.items()}
    save_file(tensors, path, {**vectors.notes, **kind})


def _write_steered(vectors: Vectors, path: Path) -> None:
    """Write the hook points of lm-evaluation-harness, relative to the base model."""
    hooks = {
        f"layers.{layer}": {
            "steering_vector": d[None].clone(),
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for layer, d in vectors.directions.items()
    }
    torch.save(hooks, path)


# By suffix; the order is that of the page.
FORMATS: dict[str, Callable[[Vectors, Path], None]] = {
    ".gguf": gguf.write,
    ".svec": _write_svec,
    ".safetensors": _write_safetensors,
    ".pt": _write_steered,
}

_READERS: dict[str, Callable[[BinaryIO], Vectors]] = {
    ".gguf": gguf.read,
    ".svec": _read_svec,
    ".safetensors": _read_safetensors,
}
