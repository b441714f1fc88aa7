"""Comparison of one method with the others at equal dose."""

from collections.abc import Sequence

from odesteer.evaluation.report.measures import Measure
from odesteer.evaluation.report.rows import RANDOM, Row, method_rank, steered, unsteered
from odesteer.evaluation.report.table import Cell, Column, Line, Table
from odesteer.evaluation.report.tables import versus

REFERENCE = "odesteer"


def reference(rows: Sequence[Row], wanted: str | None = None) -> str | None:
    """Return the method that others are compared with: `wanted`, ODESteer, or the last one.

    Raises:
        ValueError: if `wanted` is not in the run.
    """
    ranks = {row.family: method_rank(row.method) for row in steered(rows) if row.method != RANDOM}
    if wanted is not None and wanted not in ranks:
        raise ValueError(
            f"There is no method '{wanted}' in this run to compare with; it has "
            f"{', '.join(ranks) or 'none'}."
        )
    if wanted or REFERENCE in ranks:
        return wanted or REFERENCE
    return max(ranks, key=ranks.__getitem__, default=None)


def at_equal_dose(rows: Sequence[Row], measures: Sequence[Measure], method: str) -> Table | None:
    """Compare a method with each other one that has the same dose, layer and steps.

    Conditions whose doses were matched on validation data to one damage are compared likewise.
    """
    base, lines = unsteered(rows), []
    columns = [measure for measure in measures if measure.tested]
    reference_rows = [row for row in rows if row.family == method]
    for row in reference_rows:
        for other in steered(rows):
            if other.family == method or _place(row) != _place(other):
                continue
            cells = tuple(Cell(difference=versus(m, row, other, base)) for m in columns)
            label = f"{row.label} − {other.label}"
            where = row.setting if row.setting == other.setting else "each as chosen"
            first = cells[0].difference
            n = (first.interval.n, first.groups) if first else (0, 0)
            lines.append(Line(label, where, row.heading, cells, n, method=other.method))
    if not lines:
        return None
    title = f"{reference_rows[0].label} against the others at equal dose"
    table = Table(
        "equal-dose", title, tuple(map(Column.of, columns)), tuple(lines),
        versus="the other method of the row",
    )  # fmt: skip
    return table.corrected()


def _place(row: Row) -> tuple[object, ...]:
    c = row.condition
    return c.layer, c.steps, c.chosen, c.dose, row.heading
