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
    """One file for all; empty where there is no number, never a zero."""
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
    value, apart = cell.value, cell.difference
    yield from (_number(x) for x in (value[:3] if value else (None,) * 3))
    yield "" if value is None or not value.n else str(value.n)
    yield "" if value is None or not value.n else str(cell.unscored)
    yield from (_number(x) for x in (apart.interval[:3] if apart else (None,) * 3))
    yield str(apart.interval.n) if apart else ""
    yield str(apart.groups) if apart else ""
    yield _number(apart.p if apart else None)
    yield _number(cell.adjusted)
    yield "" if cell.adjusted is None else str(int(cell.significant))


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(float(value))


def _plain(text: str) -> str:
    """Spreadsheets run what begins like a formula; a run's names may be anybody's."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text
