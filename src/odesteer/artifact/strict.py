"""What may the files of a steering hold, whoever wrote them?

Sizes are looked at before anything is read, JSON is the part of it that Python, other parsers
and people read alike (no NaN, no key twice, no number beyond 64 bits), and the header of the
tensors is checked before they are. Reasons are raised plainly; `saving` names the
file.
"""

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

# A steering of 80 layers with all its receipts is about 1 MiB and 40,000 values of JSON.
MAX_JSON_BYTES = 8 * 2**20
MAX_JSON_VALUES = 200_000
MAX_JSON_DEPTH = 100
# 80 layers of one 8192 x 8192 matrix each are 20 GiB.
MAX_TENSOR_BYTES = 32 * 2**30
# Wider than any residual stream; keeps an empty tensor [0, 10^12] from becoming a full one.
MAX_TENSOR_SIDE = 2**20
DTYPES = ("F64", "F32", "F16", "BF16", "I64")
_TENSOR_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)


def open_inside(folder: Path, name: str, limit: int) -> BinaryIO:
    """The file of that name, open for reading, if it is in the folder and not too long.

    Raises:
        FileNotFoundError: if there is no file of that name.
        ValueError: if it is a link out of the folder, or longer than `limit` bytes.
    """
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{name} is missing")
    folder = folder.resolve()
    # The Hub's cache keeps <cache>/models--<name>/snapshots/<commit>/<file> as links to where
    # the bytes are, elsewhere in the cache.
    cached = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    if not path.resolve().is_relative_to(folder.parents[2] if cached else folder):
        raise ValueError("it is a link to a file outside of the directory; copy the file instead")
    file = path.open("rb")
    size = os.fstat(file.fileno()).st_size
    if size > limit:
        file.close()
        raise ValueError(f"it has {size:,} bytes, more than the {limit:,} that one may have")
    return file


def parse_json(payload: bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: if it is none, or is outside of the limits above.
    """
    if len(payload) > MAX_JSON_BYTES:
        raise ValueError(
            f"it has {len(payload):,} bytes, more than the {MAX_JSON_BYTES:,} that one may have"
        )
    try:
        value = json.loads(
            payload.decode("utf-8"),
            parse_constant=_number,
            parse_float=_number,
            parse_int=_integer,
            object_pairs_hook=_object,
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels") from None
    _check_extent(value)
    return value


def check_header(file: BinaryIO) -> None:
    """Read the header of a safetensors file, and stand at its start again.

    Raises:
        ValueError: if it is not a header, does not describe the whole file, or names a tensor
            that no steering has.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_JSON_BYTES):
        raise ValueError(f"its header claims {length:,} bytes of {size:,}")
    header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    ends = [0]
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"its header says of the tensor {name!r:.80} {entry!r:.80}")
        if not _TENSOR_NAME.fullmatch(name):
            raise ValueError(f"{name!r:.80} is no name of a tensor")
        if entry["dtype"] not in DTYPES:
            raise ValueError(
                f"the tensor '{name:.80}' is of type {entry['dtype']!r:.40}; a steering has "
                f"{', '.join(DTYPES)}"
            )
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not _counts(shape) or max(shape, default=0) > MAX_TENSOR_SIDE:
            raise ValueError(
                f"the tensor '{name:.80}' has the shape {shape!r:.80}; no side may be longer than "
                f"{MAX_TENSOR_SIDE:,}"
            )
        if not _counts(offsets) or len(offsets) != 2:
            raise ValueError(f"the tensor '{name:.80}' is at {offsets!r:.80}")
        ends.append(offsets[1])
    if 8 + length + max(ends) != size:
        raise ValueError(
            f"its header describes {8 + length + max(ends):,} bytes, and it has {size:,}"
        )
    file.seek(0)


def brief(error: BaseException | str, limit: int = 240) -> str:
    """What an error says, on one line and no longer than `limit`, without a full stop."""
    text = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * limit]).split())
    return (text[: limit - 1] + "…" if len(text) > limit else text).rstrip(".")


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {text:.40}, which is not finite")
    return value


def _integer(text: str) -> int:
    # Measured by its text: turning a million digits into a number is quadratic.
    if len(text) > 19 or abs(int(text)) >= 2**63:
        raise ValueError(f"it holds the whole number {text:.20}..., which is beyond 64 bits")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it gives {twice!r:.80} twice")
    return result


def _check_extent(value: Any) -> None:
    """Depth, number of values, and strings that are text; level by level, so without a stack."""
    level, seen = [value], 0
    for _ in range(MAX_JSON_DEPTH):
        seen += len(level)
        if seen > MAX_JSON_VALUES:
            raise ValueError(f"it holds more than {MAX_JSON_VALUES:,} values")
        for each in level:
            if isinstance(each, dict):
                _check_text(each)
            elif isinstance(each, str):
                _check_text((each,))
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")


def _check_text(strings: Iterable[str]) -> None:
    for string in strings:
        if not string.isascii() and any("\ud800" <= c <= "\udfff" for c in string):
            raise ValueError("it holds half of a surrogate pair, which is not text")
