"""Table of a report, before it is rendered."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from odesteer.evaluation.report.measures import Better, Measure
from odesteer.evaluation.statistics.bootstrap import Interval, holm
from odesteer.evaluation.statistics.paired_tests import PairedDifference

LEVEL = 0.05
MARK = "*"
ABSENT = "–"


@dataclass(frozen=True)
class Column:
    """Metric. `note` explains it; `tested`: its differences may carry a mark."""

    key: str
    label: str
    better: Better = None
    digits: int = 3
    note: str = ""
    tested: bool = True

    @classmethod
    def of(cls, measure: Measure) -> "Column":
        judges = " and ".join(name for name in measure.judges[0] if name != measure.name)
        note = "; ".join(part for part in (f"by {judges}" if judges else "", measure.note) if part)
        label, digits = measure.label, measure.digits
        return cls(measure.key, label, measure.better, digits, note, measure.tested)

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓"}.get(self.better or "", "")


@dataclass(frozen=True)
class Cell:
    """Metric of one condition.

    Attributes:
        value: with its own 95 % interval; None where there is only a difference.
        difference: paired, to the unsteered model or to what the row says.
        unscored: number of answers without a value, which are in neither.
        adjusted: p of the difference after Holm's correction within the table.
    """

    value: Interval | None = None
    difference: PairedDifference | None = None
    unscored: int = 0
    adjusted: float | None = None

    @property
    def significant(self) -> bool:
        return self.adjusted is not None and self.adjusted <= LEVEL


@dataclass(frozen=True)
class Line:
    """Row: `heading` is shared with the rows beside it, `n` are cases and groups."""

    label: str
    setting: str
    heading: str
    cells: tuple[Cell | None, ...]
    n: tuple[int, int] | None = None
    method: str = ""
    id: str = ""


@dataclass(frozen=True)
class Table:
    """Table of metrics by condition.

    `name` is for files. `versus` is the baseline of the differences; if it is "", there are none
    and values are shown with their own intervals.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    versus: str = "the unsteered model"
    notes: tuple[str, ...] = ()

    def corrected(self) -> "Table":
        """Correct the p-values of all tested differences for their number."""
        tested = [
            (i, j, cell.difference.p)
            for i, line in enumerate(self.lines)
            for j, cell in enumerate(line.cells)
            if cell and cell.difference and self.columns[j].tested
            and not math.isnan(cell.difference.p)
        ]  # fmt: skip
        adjusted = holm([p for _, _, p in tested])
        by_place = {(i, j): p for (i, j, _), p in zip(tested, adjusted, strict=True)}
        lines = tuple(
            replace(line, cells=tuple(
                replace(cell, adjusted=by_place[i, j]) if cell and (i, j) in by_place else cell
                for j, cell in enumerate(line.cells)
            ))
            for i, line in enumerate(self.lines)
        )  # fmt: skip
        return replace(self, lines=lines)

    @property
    def comparisons(self) -> int:
        """Number of tested differences."""
        return sum(c is not None and c.adjusted is not None for w in self.lines for c in w.cells)

    def legend(self) -> list[str]:
        """Return the notes that a reader of the numbers needs, in any format."""
        notes = []
        if self.versus:
            notes.append(
                f"Differences are to {self.versus}, paired by case, with 95 % intervals (bootstrap "
                f"over groups)."
            )
        if self.comparisons:
            notes.append(
                f"{MARK}: significant at 5 % after Holm's correction for the {self.comparisons} "
                f"differences tested in this table (randomisation test over groups)."
            )
        by_note: dict[str, list[str]] = {}
        for column in self.columns:
            by_note.setdefault(column.note, []).append(column.label)
        notes += [f"{', '.join(labels)}: {note}." for note, labels in by_note.items() if note]
        return [*notes, *self.notes]


def number(value: float, digits: int, sign: bool = False) -> str:
    """Format a number with a real minus sign; nan as a dash."""
    if math.isnan(value):
        return ABSENT
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    # No "-0.000": it would suggest a direction.
    if float(text) == 0.0:
        text = text.replace("-", "").replace("+", "")
    return text.replace("-", "−")


def value_text(cell: Cell, column: Column, interval: bool = False) -> str:
    """Format as "0.412" or "0.412 [0.380, 0.450]"."""
    if cell.value is None:
        return ""
    mean, low, high, _ = cell.value
    text = number(mean, column.digits)
    if interval and not math.isnan(low):
        text += f" [{number(low, column.digits)}, {number(high, column.digits)}]"
    return text


def change_text(cell: Cell, column: Column, interval: bool = True) -> str:
    """Format as "+0.041 [+0.010, +0.072]*"."""
    if cell.difference is None:
        return ""
    mean, low, high, _ = cell.difference.interval
    if math.isnan(mean):
        return ABSENT
    text = number(mean, column.digits, sign=True)
    if interval and not math.isnan(low):
        text += f" [{number(low, column.digits, True)}, {number(high, column.digits, True)}]"
    return text + (MARK if cell.significant else "")


def effect(cell: Cell, column: Column) -> Literal["better", "worse", "changed", ""]:
    """Return the meaning of a significant difference, "" of another one."""
    if not cell.significant or cell.difference is None:
        return ""
    if column.better is None:
        return "changed"
    rises = cell.difference.interval.mean > 0
    return "better" if rises == (column.better == "higher") else "worse"


def headings(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    """Group lines by heading, in order."""
    groups: list[tuple[str, list[Line]]] = []
    for line in lines:
        if not groups or groups[-1][0] != line.heading:
            groups.append((line.heading, []))
        groups[-1][1].append(line)
    return groups
