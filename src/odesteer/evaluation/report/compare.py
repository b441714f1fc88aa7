"""Comparison of methods at equal dose or equal damage."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from odesteer.evaluation.report.measures import Measure, damage
from odesteer.evaluation.report.rows import (
    RANDOM,
    UNSTEERED,
    Row,
    amount,
    dose_words,
    method_rank,
    steered,
    unsteered,
)
from odesteer.evaluation.report.table import Cell, Column, Line, Table, number
from odesteer.evaluation.report.tables import versus
from odesteer.evaluation.statistics import mixture
from odesteer.evaluation.statistics import paired_tests as estimate
from odesteer.evaluation.statistics.paired_tests import Mean, PairedDifference, Units

REFERENCE = "odesteer"


def reference(rows: Sequence[Row], wanted: str | None = None) -> str | None:
    """The method that others are compared with: the one asked for, ODESteer, or the last.

    Raises:
        ValueError: if the one asked for is not in the run.
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
    """The reference method minus each other one, where both have the same dose and place."""
    base, lines = unsteered(rows), []
    columns = [measure for measure in measures if measure.tested]
    for own in (row for row in rows if row.family == method):
        for other in steered(rows):
            if other.family == method or not _alike(own, other):
                continue
            cells = tuple(Cell(difference=versus(m, own, other, base)) for m in columns)
            label = f"{own.label} − {other.label}"
            where = own.setting if own.setting == other.setting else "each as chosen"
            lines.append(Line(label, where, own.heading, cells, _pairs(cells), method=other.method))
    title = f"{_label(rows, method)} against the others at equal dose"
    return _table("equal-dose", title, columns, lines, "the other method of the row", ())


def at_equal_damage(rows: Sequence[Row], measures: Sequence[Measure], method: str) -> Table | None:
    """The same where the reference method does as much damage as the other one (`mixture`)."""
    cost, base = damage(measures), unsteered(rows)
    if cost is None or base is None:
        return None
    columns = [m for m in measures if m.tested and not m.grams and m.name != cost.name]
    lines = []
    for other in sorted(steered(rows), key=lambda row: (method_rank(row.method), row.family)):
        if other.family == method or other.condition.chosen:
            continue
        own = [r for r in rows if r.family == method and _same_place(r, other)]
        bracket = _bracket(
            [base, *sorted(own, key=lambda r: amount(r.condition.dose))], other, cost
        )
        if bracket is not None:
            cells = tuple(Cell(difference=bracket.difference(m, cost, base)) for m in columns)
            label = f"{_label(rows, method)} − {other.label}"
            heading = f"against {other.label}"
            lines.append(
                Line(label, bracket.words(cost), heading, cells, _pairs(cells), method=other.method)
            )
    title = f"{_label(rows, method)} against the others at equal {cost.label}"
    notes = (
        f"At the other method's {cost.label}, the first method is a mixture of its answers at the "
        f"two neighbouring doses; where effects saturate that counts against it. Doses beyond its "
        f"range are left out.",
    )
    what = f"the other method of the row, at its {cost.label}"
    return _table("equal-damage", title, columns, lines, what, notes)


@dataclass(frozen=True)
class Bracket:
    """Two doses of the reference method around another's damage; `share` of the upper one."""

    lower: Row
    upper: Row
    other: Row
    level: float
    share: float

    def words(self, cost: Measure) -> str:
        def dose(row: Row) -> str:
            return "unsteered" if row.method == UNSTEERED else dose_words(row.condition.dose)

        level = number(_shown(cost, self.level), cost.digits)
        return (
            f"at {self.other.setting} ({cost.label} {level}): "
            f"{1 - self.share:.0%} {dose(self.lower)}, {self.share:.0%} {dose(self.upper)}"
        )

    def difference(self, measure: Measure, cost: Measure, base: Row) -> PairedDifference:
        rows, against = (self.lower, self.upper, self.other), base.beside(self.other)
        units = [measure.units(row.beside(self.other), against) for row in rows]
        return mixture.difference(
            measure.statistic, units, [_paid(row, self.other, cost) for row in rows]
        )


def _bracket(curve: Sequence[Row], other: Row, cost: Measure) -> Bracket | None:
    """The first two neighbouring doses between whose damages the other's lies."""
    for lower, upper in pairwise(curve):
        paid = mixture.common([_paid(row, other, cost) for row in (lower, upper, other)])
        low, high, level = (estimate.value(Mean(), units).mean for units in paid)
        if low <= level <= high:
            share = float(mixture.share([np.array(x) for x in (low, high, level)]))
            return Bracket(lower, upper, other, level, share)
    return None


def _paid(row: Row, other: Row, cost: Measure) -> Units:
    """The damage of a row's answers to what the other was asked; the unsteered model does none."""
    answers = row.beside(other)
    units = cost.units(answers, ())
    if row.method == UNSTEERED and cost.name != "perplexity":
        return Units(np.zeros_like(units.values), units.groups, units.keys)
    return units


def _shown(cost: Measure, mean: float) -> float:
    """A perplexity is measured in nats and shown as exp of them."""
    return float(cost.statistic.number(np.array([mean, 1.0]), np.empty(0)))


def _pairs(cells: Sequence[Cell]) -> tuple[int, int]:
    """How many cases and groups the comparison of the first measure has."""
    found = cells[0].difference
    return (0, 0) if found is None else (found.interval.n, found.groups)


def _same_place(one: Row, other: Row) -> bool:
    return (one.condition.layer, one.condition.steps, one.condition.chosen) == (
        other.condition.layer,
        other.condition.steps,
        other.condition.chosen,
    )


def _alike(one: Row, other: Row) -> bool:
    return (
        _same_place(one, other)
        and one.condition.dose == other.condition.dose
        and one.heading == other.heading
    )


def _label(rows: Sequence[Row], method: str) -> str:
    return next(row.label for row in rows if row.family == method)


def _table(
    name: str,
    title: str,
    columns: Sequence[Measure],
    lines: Sequence[Line],
    versus_what: str,
    notes: tuple[str, ...],
) -> Table | None:
    if not lines:
        return None
    table = Table(name, title, tuple(map(Column.of, columns)), tuple(lines), versus_what, notes)
    return table.corrected()
