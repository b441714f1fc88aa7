"""Main table: what every condition does.

Every row by every measure, with what is unscored, and the paired difference to the unsteered
model.
"""

from collections.abc import Sequence

from odesteer.evaluation.report.measures import Measure
from odesteer.evaluation.report.rows import Row, unsteered
from odesteer.evaluation.report.table import Cell, Column, Line, Table
from odesteer.evaluation.statistics import jackknife as diversity
from odesteer.evaluation.statistics import paired_tests as estimate
from odesteer.evaluation.statistics.paired_tests import PairedDifference


def main_table(rows: Sequence[Row], measures: Sequence[Measure]) -> Table:
    """Every row by every measure, with the paired difference to the unsteered model."""
    base = unsteered(rows)
    lines = tuple(
        Line(
            row.label,
            row.setting,
            row.heading,
            tuple(cell(measure, row, base) for measure in measures),
            n=(len(row.answers), row.groups),
            method=row.method,
            id=row.condition.id,
        )
        for row in rows
    )
    notes = [] if base else ["There is no unsteered condition, so no difference to it."]
    return Table(
        "main",
        "All conditions",
        tuple(map(Column.of, measures)),
        lines,
        notes=tuple(notes),
    ).corrected()


def cell(measure: Measure, row: Row, base: Row | None) -> Cell | None:
    """One measure of a row; None where the row has nothing to measure it on."""
    beside = base.beside(row) if base else []
    if measure.grams:
        texts = measure.texts(row.keyed)
        if not texts:
            return None
        own, missing = diversity.value(texts, measure.grams), len(row.answers) - len(texts)
    else:
        units = measure.units(row.keyed, beside)
        own = estimate.value(measure.statistic, units)
        missing = int((~units.known).sum())
        judges = set(measure.judges[0])
        if own.n == 0 and not any(judges & set(answer.reasons) for _, answer in row.keyed):
            return None  # nobody tried: a prompt displaces nothing, and nothing of it is missing
    apart = None
    if measure.tested and base is not None and row is not base:
        apart = versus(measure, row, base, base)
        apart = apart if apart.interval.n else None
    return Cell(own, apart, missing)


def versus(measure: Measure, one: Row, other: Row, base: Row | None) -> PairedDifference:
    """one - other on the cases of both; `base` is what wins are counted against."""
    beside = other.beside(one)
    keys = {key for key, _ in beside}
    own = [pair for pair in one.keyed if pair[0] in keys]
    against = base.beside(one) if base else []
    if measure.grams:
        generated = {key for key, a in own if a.generation} & {k for k, a in beside if a.generation}
        first = measure.texts([pair for pair in own if pair[0] in generated])
        second = measure.texts([pair for pair in beside if pair[0] in generated])
        return diversity.difference(first, second, measure.grams)
    return estimate.difference(
        measure.statistic, measure.units(own, against), measure.units(beside, against)
    )
