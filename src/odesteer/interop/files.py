"""Which file holds a control vector in which form?

.gguf          llama.cpp, repeng, saklas, EasySteer; see `odesteer.interop.gguf`
.svec          CAST, AISteer360: JSON {model_type, directions: {layer: numbers}, ...}
.safetensors   plain tensors, direction.N for block N
.pt            lm-evaluation-harness's `steered` models; written, never read: it is pickle
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from odesteer.artifact.strict import brief, parse_json
from odesteer.interop import gguf
from odesteer.interop.vectors import Vectors, as_direction
from odesteer.lookup import pick

_LARGEST = 2**28  # bytes of a JSON file
_PREFIX = "direction."


def read_vectors(path: str | os.PathLike[str], as_extracted: bool = False) -> Vectors:
    """The control vectors of a file; nothing in it is executed.

    Args:
        path: .gguf, .svec or .safetensors.
        as_extracted: of a GGUF file of llama.cpp's own generator, see `odesteer.interop.gguf`.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: for another kind of file, or one that is damaged.
    """
    path = Path(path)
    if path.suffix == ".pt":
        raise ValueError(
            f"'{path}' is a pickle, which can run code when it is read: convert it to "
            f".safetensors with the library that wrote it."
        )
    reads = {".gguf": gguf.read, ".svec": _read_svec, ".safetensors": _read_safetensors}
    read = pick(reads, path.suffix, "kind of control vector")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file '{path}'.")
    if path.suffix == ".gguf":
        return gguf.read(path, as_extracted)
    if as_extracted:
        raise ValueError("Only GGUF files of llama.cpp's generator are off by one layer.")
    return read(path)


def write_vectors(vectors: Vectors, path: str | os.PathLike[str]) -> Path:
    """Write control vectors in the form that the file's suffix names: whole, or not at all.

    Raises:
        ValueError: for another suffix, or what the form has no place for.
    """
    path = Path(path)
    write = pick(FORMATS, path.suffix, "kind of control vector")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as aside:
        half = Path(aside) / path.name
        write(vectors, half)
        os.replace(half, path)
    return path


def _read_svec(path: Path) -> Vectors:
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large for one")
        tree: Any = parse_json(path.read_bytes())
        directions = {
            int(layer): as_direction(torch.tensor(numbers, dtype=torch.float32))
            for layer, numbers in tree["directions"].items()
        }
        kind = tree.get("model_type")
        return Vectors(directions, kind if isinstance(kind, str) else None)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"'{path}' is no .svec file: {brief(error)}.") from None


def _read_safetensors(path: Path) -> Vectors:
    try:
        with safe_open(path, framework="pt") as file:
            about: Mapping[str, str] = file.metadata() or {}
            directions = {
                int(name.removeprefix(_PREFIX)): as_direction(file.get_tensor(name))
                for name in file.keys()  # noqa: SIM118 (it is no dictionary)
            }
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"'{path}' has no tensors direction.0, direction.1, ...: {brief(error)}."
        ) from None
    notes = {key: value for key, value in about.items() if key != "model_type"}
    return Vectors(directions, about.get("model_type"), notes)


def _write_svec(vectors: Vectors, path: Path) -> None:
    tree = {
        "model_type": vectors.model_type or "",
        "directions": {str(layer): d.tolist() for layer, d in vectors.directions.items()},
        "explained_variances": {},  # of a principal component, which these need not be
    }
    path.write_text(json.dumps(tree), encoding="utf-8")


def _write_safetensors(vectors: Vectors, path: Path) -> None:
    kind = {} if vectors.model_type is None else {"model_type": vectors.model_type}
    tensors = {f"{_PREFIX}{layer}": d.contiguous() for layer, d in vectors.directions.items()}
    save_file(tensors, path, {**vectors.notes, **kind})


def _write_steered(vectors: Vectors, path: Path) -> None:
    """lm-evaluation-harness reads hookpoints relative to the base model."""
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
