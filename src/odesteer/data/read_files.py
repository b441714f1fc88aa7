"""Contrast files: JSONL, CSV, Parquet, text.

    .jsonl, .ndjson   one JSON object a line, or a list of two texts: positive, negative
    .json             one list of these
    .csv, .tsv        a header and a row of text cells each; an empty cell is no value
    .parquet          a row each (needs pyarrow)

Text files may be compressed: `.jsonl.gz`, `.csv.gz`, ... Every row comes with its place, for
errors that name it. A file may come from anybody: the limits of `odesteer.common.limits` hold.
"""

import csv
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from odesteer.common.limits import (
    MAX_BULK_BYTES,
    MAX_BULK_VALUES,
    MAX_COLUMNS,
    MAX_JSON_BYTES,
    MAX_JSON_VALUES,
    MAX_LINE,
    MAX_ROWS,
    brief,
    check_inflated,
    open_text,
    parse_json,
    repeated,
    text_lines,
)

Row = Mapping[str, Any]
Rows = Iterator[tuple[str, Row]]


def rows(
    path: str | os.PathLike[str], suffix: str | None = None, numbers: Collection[str] = ()
) -> Rows:
    """Yield (location, row) for every row of a file.

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
    located = _READERS[kind](file)
    return _values(located, numbers) if kind in (".csv", ".tsv") else located


def csv_cells(file: Path, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line and the cells of every row of a table, also in .gz.

    Raises:
        ValueError: naming the line that cannot be read.
    """
    length = 0

    def lines() -> Iterator[str]:
        nonlocal length
        for line in text_lines(file):
            # A quoted text may go on over many lines.
            length += len(line)
            if length > MAX_LINE:
                raise ValueError(
                    f"Line {reader.line_num} of '{file}' belongs to a row of more than the "
                    f"{MAX_LINE:,} characters that one may have."
                )
            yield line

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            length = 0
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise ValueError(f"Line {reader.line_num} of '{file}': {error}.") from None


def _json_lines(file: Path) -> Rows:
    for number, line in enumerate(text_lines(file), start=1):
        if line.strip():
            location = f"Line {number} of '{file}'"
            yield location, _as_object(_parsed(line, location), location)


def _json_list(file: Path) -> Rows:
    with open_text(file) as text:
        content = text.read(MAX_BULK_BYTES + 1)
    values = _parsed(content, f"'{file}'", MAX_BULK_BYTES, MAX_BULK_VALUES)
    if isinstance(values, dict) and {"instruction", "questions"} <= set(values):
        raise ValueError(
            f"'{file}' is a trait file of persona vectors: instructions and questions without "
            f"answers. `odesteer pairs --from {file} --with MODEL` lets a model write them."
        )
    if not isinstance(values, list):
        raise ValueError(f"'{file}' is not a list of JSON objects; a JSONL file has one a line.")
    for number, value in enumerate(values, start=1):
        location = f"Row {number} of '{file}'"
        yield location, _as_object(value, location)


def _table(delimiter: str) -> Callable[[Path], Rows]:
    def read(file: Path) -> Rows:
        rows = csv_cells(file, delimiter)
        _, header = next(rows, (0, []))
        _check_header([name for name in header if name], file)
        for number, cells in rows:
            location = f"Line {number} of '{file}'"
            if len(cells) > len(header):
                raise ValueError(
                    f"{location} has more cells than the header has names; a text with a "
                    f"separator in it stands in quotation marks."
                )
            # Spreadsheets leave columns without a name and rows without their last cells.
            yield location, {name: cell for name, cell in zip(header, cells, strict=False) if name}

    return read


def _check_header(names: list[str], file: Path) -> None:
    if len(names) > MAX_COLUMNS:
        raise ValueError(
            f"'{file}' has {len(names):,} columns, more than the {MAX_COLUMNS:,} that one may have."
        )
    twice = repeated(names)
    if twice is not None:
        raise ValueError(f"'{file}' has two columns of the name {twice!r:.80}; rename one.")


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
        with parquet.ParquetFile(
            file,
            thrift_string_size_limit=MAX_JSON_BYTES,
            thrift_container_size_limit=MAX_JSON_VALUES,
        ) as table:
            _check_header(table.schema_arrow.names, file)
            _check_extent(table.metadata, file)
            read = 0
            # A file, and Arrow's memory, hold a text once for all rows that have it; Python's does
            # not. So few rows at a time, measured as what they are here.
            for batch in table.iter_batches(batch_size=16):
                rows = batch.to_pylist()
                read += len(str(rows))
                check_inflated(file, read)
                for row in rows:
                    number += 1
                    yield f"Row {number} of '{file}'", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"'{file}' cannot be read as Parquet: {brief(error)}.") from None


def _check_extent(metadata: Any, file: Path) -> None:
    """Refuse a Parquet file by what it says of itself, before its columns are decompressed."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    check_inflated(file, sum(group.total_byte_size for group in groups))
    if metadata.num_rows > MAX_ROWS:
        raise ValueError(
            f"'{file}' has {metadata.num_rows:,} rows, more than the {MAX_ROWS:,} that one may "
            f"have; split it."
        )


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_list,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".parquet": _parquet,
}


def _parsed(
    text: str, location: str, max_bytes: int = MAX_JSON_BYTES, max_values: int = MAX_JSON_VALUES
) -> Any:
    try:
        return parse_json(text, max_bytes, max_values)
    except ValueError as error:
        raise ValueError(f"{location} is not JSON that can be read: {brief(error)}.") from None


def _as_object(value: Any, location: str) -> Row:
    if isinstance(value, list) and [type(text) for text in value] == [str, str]:
        return {"positive": value[0], "negative": value[1]}
    if not isinstance(value, dict):
        raise ValueError(f"{location} is not a JSON object: {value!r:.80}.")
    return value


def _values(rows: Rows, numbers: Collection[str]) -> Rows:
    """Convert cells of text to values; an empty cell is no value."""
    for location, cells in rows:
        row = {key: cell for key, cell in cells.items() if cell}
        for key in row.keys() & set(numbers):
            row[key] = _number(row[key], f"{location}: {key}")
        yield location, row


def _number(cell: str, name: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{name} is a number; got {cell!r:.80}.") from None
