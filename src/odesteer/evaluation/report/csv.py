"""CSV files of a report's tables."""

import csv
import io
import math
from collections.abc import Iterator, Sequence

from odesteer.evaluation.report.build import Report
from odesteer.evaluation.report.table import Cell

HEADING = (
    "run", "table", "heading", "condition", "method", "id", "setting", "metric",
    "better", "value", "low", "high", "n", "unscored", "difference",
    "difference_low", "difference_high", "pairs", "groups", "p", "p_holm", "significant",
)  # fmt: skip


def document(reports: Sequence[Report]) -> str:
    """Write one file for all reports; a missing number is empty, never a zero."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADING)
    for report in reports:
        for table in report.tables:
            for line in table.lines:
                for cell, column in zip(line.cells, table.columns, strict=True):
                    if cell is None:
                        continue
                    words = (
                        report.run.name, table.name, line.heading, line.label,
                        line.method, line.id, line.setting, column.key, column.better or "",
                    )  # fmt: skip
                    writer.writerow([*map(_plain, words), *_numbers(cell)])
    return out.getvalue()


def _numbers(cell: Cell) -> Iterator[str]:
    value, change = cell.value, cell.difference
    yield from (_number(x) for x in (value[:3] if value else (None,) * 3))
    yield "" if value is None or not value.n else str(value.n)
    yield "" if value is None or not value.n else str(cell.unscored)
    yield from (_number(x) for x in (change.interval[:3] if change else (None,) * 3))
    yield str(change.interval.n) if change else ""
    yield str(change.groups) if change else ""
    yield _number(change.p if change else None)
    yield _number(cell.adjusted)
    yield "" if cell.adjusted is None else str(int(cell.significant))


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(float(value))


def _plain(text: str) -> str:
    """Quote text that a spreadsheet would run as a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text
