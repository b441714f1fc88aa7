"""Which rows does a contrast file hold?

    .jsonl, .ndjson   one JSON object a line
    .json             one list of JSON objects
    .csv, .tsv        a header and a row of text cells each; an empty cell is no value
    .parquet          a row each (needs pyarrow)

Text files may be compressed: `.jsonl.gz`, `.csv.gz`, ... Every row comes with its place, for
errors that name it.
"""

import csv
import gzip
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

Row = Mapping[str, Any]
Rows = Iterator[tuple[str, Row]]


def rows(
    path: str | os.PathLike[str], suffix: str | None = None, numbers: Collection[str] = ()
) -> Rows:
    """(place, row) of every row of a file.

    Args:
        path: the file.
        suffix: what kind of file it is; None: as its name says.
        numbers: the columns of .csv and .tsv files that hold numbers; all others are texts.

    Raises:
        FileNotFoundError: if the file is not there.
        ImportError: for Parquet without pyarrow.
        ValueError: for another kind of file, or naming the line that cannot be read.
    """
    file = Path(path)
    kind = (suffix or file.with_suffix("" if file.suffix == ".gz" else file.suffix).suffix).lower()
    if not file.is_file():
        raise FileNotFoundError(
            f"No contrast file at '{file}'. It is a JSONL, CSV or Parquet file with 'positive' "
            f"and 'negative' (and 'prompt') in each row."
        )
    if kind not in _READERS:
        raise ValueError(
            f"A contrast file ends in {', '.join(_READERS)} (text also in .gz); got '{file}'."
        )
    found = _READERS[kind](file)
    return _values(found, numbers) if kind in (".csv", ".tsv") else found


def _open(file: Path) -> IO[str]:
    # Spreadsheets write a byte-order mark; it belongs to no text.
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig", newline="")
    return file.open(encoding="utf-8-sig", newline="")


def _json_lines(file: Path) -> Rows:
    with _open(file) as lines:
        # Not by any other line break: U+2028 may stand in a JSON text.
        for number, line in enumerate(_decoded(lines, file), start=1):
            if line.strip():
                place = f"Line {number} of '{file}'"
                yield place, _as_object(_parsed(line, place), place)


def _json_list(file: Path) -> Rows:
    with _open(file) as text:
        values = _parsed("".join(_decoded(text, file)), f"'{file}'")
    if not isinstance(values, list):
        raise ValueError(f"'{file}' is not a list of JSON objects; a JSONL file has one a line.")
    for number, value in enumerate(values, start=1):
        place = f"Row {number} of '{file}'"
        yield place, _as_object(value, place)


def _table(delimiter: str) -> Callable[[Path], Rows]:
    def read(file: Path) -> Rows:
        with _open(file) as lines:
            reader = csv.DictReader(_decoded(lines, file), delimiter=delimiter, strict=True)
            try:
                for cells in reader:
                    place = f"Line {reader.line_num} of '{file}'"
                    if None in cells:
                        raise ValueError(
                            f"{place} has more cells than the header has names; a text with a "
                            f"separator in it stands in quotation marks."
                        )
                    yield place, cells
            except csv.Error as error:
                raise ValueError(f"Line {reader.line_num} of '{file}': {error}.") from None

    return read


def _parquet(file: Path) -> Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ImportError(
            f"Reading '{file}' needs pyarrow: pip install 'odesteer[data]', or save the rows as "
            f"JSONL."
        ) from None
    number = 0
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"Row {number} of '{file}'", row
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(f"'{file}' cannot be read as Parquet: {reason}.") from None


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_list,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": _parquet,
}


def _decoded(lines: IO[str], file: Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise ValueError(f"'{file}' is not UTF-8 text: {error.reason}.") from None
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"'{file}' is not a whole gzip file: {error}.") from None


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}.") from None


def _as_object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is not a JSON object: {value!r:.80}.")
    return value


def _values(found: Rows, numbers: Collection[str]) -> Rows:
    """Cells of text as values; an empty cell is none."""
    for place, cells in found:
        row = {key: cell for key, cell in cells.items() if cell not in ("", None)}
        for key in row.keys() & set(numbers):
            row[key] = _number(row[key], f"{place}: {key}")
        yield place, row


def _number(cell: str, name: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{name} is a number; got {cell!r:.80}.") from None
