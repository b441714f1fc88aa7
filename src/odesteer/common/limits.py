"""Limits and strict parsing for files of untrusted origin.

Every reader of JSON, safetensors, GGUF, CSV and compressed text takes its limits from here. Sizes
are checked before anything is read. JSON is the part of it that Python, other parsers and people
read alike: no NaN, no duplicate key, no number beyond 64 bits. Unless stated otherwise, errors
give the reason alone, as a clause that begins with "it": the caller names the file.
"""

import gzip
import io
import json
import math
import os
import re
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

# A steering of 80 layers with all its receipts is about 1 MiB and 40,000 values of JSON.
MAX_JSON_BYTES = 8 * 2**20
MAX_JSON_VALUES = 200_000
MAX_JSON_DEPTH = 100
# A document that is one list or vector: Llama 3.1 405B has 126 x 16384 = 2,064,384 numbers in its
# residual streams, which Python writes in 48 MB.
MAX_BULK_BYTES = 64 * 2**20
MAX_BULK_VALUES = 2**21
# A steering: 80 layers of one 8192 x 8192 matrix each are 20 GiB.
MAX_TENSOR_BYTES = 32 * 2**30
# A control vector in any format. The same 2,064,384 numbers are 16 MiB in float64.
MAX_VECTOR_BYTES = MAX_BULK_BYTES
# Layers of a control vector; the deepest models have fewer than 200.
MAX_LAYERS = 1000
# Wider than any residual stream; keeps an empty tensor [0, 10^12] from becoming a full one.
MAX_TENSOR_SIDE = 2**20
# Keys, tensors and array elements in the header of a GGUF control vector, which has about 200.
MAX_GGUF_ENTRIES = 2**16
# Characters of a key or value there.
MAX_GGUF_STRING = 2**20
# A row of text data, in characters: a prompt and its answers, about two million tokens.
MAX_LINE = 8 * 2**20
# Rows of a data file. The largest we know, Jigsaw's comments, has 1.8 million.
MAX_ROWS = 2**21
# Columns of a table.
MAX_COLUMNS = 1000
# How much larger a .gz or Parquet file may become when it is decompressed. Gzip makes prose 3 to 10
# times smaller, rows with one long system prompt 100 times, one repeated character 1000 times.
MAX_RATIO = 250
# Bytes that it may become whatever the ratio.
MIN_ALLOWANCE = 16 * 2**20
DTYPES = ("F64", "F32", "F16", "BF16", "I64")
_TENSOR_NAME = re.compile(r"\w+(\.\w+)*", re.ASCII)


def open_inside(folder: Path, name: str, limit: int) -> BinaryIO:
    """Open a file for reading if it is inside the folder and not too long.

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
    return open_bounded(path, limit)


def open_bounded(path: Path, limit: int) -> BinaryIO:
    """Open a file for reading if it has at most `limit` bytes.

    Raises:
        ValueError: if it is longer.
    """
    file = path.open("rb")
    size = os.fstat(file.fileno()).st_size
    if size > limit:
        file.close()
        raise ValueError(_too_long(size, limit))
    return file


@contextmanager
def open_text(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    """Open a UTF-8 text file or .gz, without byte-order mark, keeping line breaks.

    Raises:
        ValueError: naming the file, while it is read, if it is not UTF-8, is not a whole gzip
            file, or becomes much larger than it is.
    """
    raw = _Inflated(path) if path.suffix == ".gz" else path.open("rb")
    try:
        with io.TextIOWrapper(raw, encoding="utf-8-sig", errors=errors, newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not UTF-8 text: {error.reason}.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"'{path}' is not a whole gzip file: {brief(error)}.") from None


def text_lines(path: Path, errors: str = "strict") -> Iterator[str]:
    """Yield the lines of a text file, also in .gz, each with its line break.

    Raises:
        ValueError: naming the file, as `open_text` does, or for a line that is too long or one
            line too many.
    """
    with open_text(path, errors) as file:
        number = 0
        # Not by any other line break: U+2028 may stand in a JSON text.
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise ValueError(
                    f"Line {number} of '{path}' has more than the {MAX_LINE:,} characters that "
                    f"one may have."
                )
            if number > MAX_ROWS:
                raise ValueError(
                    f"'{path}' has more than the {MAX_ROWS:,} lines that one may have; split it."
                )
            yield line


class _Inflated(gzip.GzipFile):
    """A gzip file that is not read beyond `MAX_RATIO` times its size."""

    def __init__(self, path: Path):
        super().__init__(path, "rb")
        self._path = path

    def read1(self, size: int = -1) -> bytes:
        piece = super().read1(size)
        check_inflated(self._path, self.tell())
        return piece


def check_inflated(path: Path, size: int) -> None:
    """Refuse a compressed file that becomes `size` bytes, if that is out of proportion.

    Raises:
        ValueError: naming the file.
    """
    allowance = max(MIN_ALLOWANCE, MAX_RATIO * path.stat().st_size)
    if size > allowance:
        raise ValueError(
            f"'{path}' becomes more than {allowance:,} bytes when it is decompressed (a file may "
            f"become {MAX_RATIO} times its size, or {MIN_ALLOWANCE:,} bytes): it may be a bomb. "
            f"Decompress it yourself if you trust it."
        )


def parse_json(
    payload: bytes | str, max_bytes: int = MAX_JSON_BYTES, max_values: int = MAX_JSON_VALUES
) -> Any:
    """Parse a JSON text: UTF-8, or text already.

    Raises:
        ValueError: if it is none, or is outside of the limits above.
    """
    if len(payload) > max_bytes:
        raise ValueError(_too_long(len(payload), max_bytes))
    try:
        text = payload if isinstance(payload, str) else payload.decode("utf-8")
        # Before there are objects: "[]," is three bytes, and the list takes 72, like three numbers.
        # Every value but the first follows a comma or is the first in a container, which ends.
        if text.count(",") + 3 * (text.count("]") + text.count("}")) > 2 * max_values:
            raise ValueError(
                f"it holds more than {max_values:,} values, or too many lists and objects"
            )
        value = json.loads(
            text,
            parse_constant=_number,
            parse_float=_number,
            parse_int=_integer,
            object_pairs_hook=_object,
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels") from None
    _check_extent(value, max_values)
    return value


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        OSError: if it cannot be read.
        ValueError: as `parse_json` does.
    """
    with open_bounded(path, MAX_JSON_BYTES) as file:
        return parse_json(file.read())


def check_header(file: BinaryIO, dtypes: Collection[str] = DTYPES) -> dict[str, Any]:
    """Check the header of a safetensors file, go back to its start, and return its metadata.

    Only what the reader of safetensors accepts and we do not is checked: where its tensors lie,
    and that nothing else is in the file, it checks itself.

    Raises:
        ValueError: if it is not a header, gives something twice, or names a tensor of another
            type than `dtypes` or of an unlikely shape.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_JSON_BYTES):
        raise ValueError(f"its header claims {length:,} bytes of {size:,}")
    header = parse_json(file.read(length))
    file.seek(0)
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    for name, value in header.items():
        if not _TENSOR_NAME.fullmatch(name):
            raise ValueError(f"{name!r:.80} is no name of a tensor")
        entry = value if isinstance(value, dict) else {}
        kind, shape = entry.get("dtype"), entry.get("shape")
        if kind not in dtypes:
            raise ValueError(
                f"the tensor '{name:.80}' is of type {kind!r:.40}; it may be {', '.join(dtypes)}"
            )
        sides = shape if isinstance(shape, list) else [None]
        if not all(type(side) is int and 0 <= side <= MAX_TENSOR_SIDE for side in sides):
            raise ValueError(
                f"the tensor '{name:.80}' has the shape {shape!r:.80}; no side may be longer than "
                f"{MAX_TENSOR_SIDE:,}"
            )
    return metadata if isinstance(metadata, dict) else {}


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that was there before; None if there is none."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def brief(error: BaseException | str, limit: int = 240) -> str:
    """Shorten an error text to one line of `limit` characters, without full stop."""
    text = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * limit]).split())
    return (text[: limit - 1] + "…" if len(text) > limit else text).rstrip(".")


def _too_long(size: int, limit: int) -> str:
    return f"it has {size:,} bytes, more than the {limit:,} that one may have"


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
        raise ValueError(f"it gives {repeated(key for key, _ in pairs)!r:.80} twice")
    return result


def _check_extent(value: Any, max_values: int) -> None:
    """Check depth, number of values and strings level by level, without recursion."""
    level, seen = [value], 0
    for _ in range(MAX_JSON_DEPTH):
        seen += len(level)
        if seen > max_values:
            raise ValueError(f"it holds more than {max_values:,} values")
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
