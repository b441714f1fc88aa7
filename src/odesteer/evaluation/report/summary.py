"""Summary of a run in a few sentences."""

from collections.abc import Sequence

from odesteer.evaluation.report.columns import headline
from odesteer.evaluation.report.measures import Measure
from odesteer.evaluation.report.rows import CHOSEN, RANDOM, UNSTEERED, Row
from odesteer.evaluation.report.run import Run
from odesteer.evaluation.report.table import (
    Cell,
    Column,
    Line,
    Table,
    change_text,
    effect,
    value_text,
)


def summary(
    run: Run, rows: Sequence[Row], measures: Sequence[Measure], tables: Sequence[Table]
) -> tuple[str, ...]:
    """Sentences, all of them about the headline metric."""
    main = tables[0]
    place = list(measures).index(headline(measures))
    column = main.columns[place]
    answers = sum(len(row.answers) for row in rows)
    groups = max((row.groups for row in rows), default=0)
    told = [
        f"{run.benchmark.get('name', 'A benchmark')} with {run.model.get('name', 'a model')}: "
        f"{len(rows)} conditions, {answers:,} answers, {groups} independent groups, "
        f"{len(run.folds) or 1} fold{'s' if len(run.folds) > 1 else ''}."
    ]
    ours = [line for line in main.lines if line.source == "run"]
    told += _unsteered(ours, place, column)
    told += _chosen(ours, place, column)
    told += _largest(ours, place, column)
    told += [_tally(table, column) for table in tables if table.name.startswith("equal-")]
    return tuple(sentence for sentence in told if sentence)


def _unsteered(lines: Sequence[Line], place: int, column: Column) -> list[str]:
    for line in lines:
        cell = line.cells[place]
        if line.method == UNSTEERED and cell is not None:
            wanted = f", {column.better} is better" if column.better else ""
            return [f"Unsteered, {column.label} is {value_text(cell, column)}{wanted}."]
    return []


def _chosen(lines: Sequence[Line], place: int, column: Column) -> list[str]:
    told = []
    for line in lines:
        cell = line.cells[place]
        if line.heading == CHOSEN and cell is not None and cell.difference is not None:
            told.append(
                f"{line.label}, as chosen on validation data ({line.setting}): "
                f"{value_text(cell, column)}, {change_text(cell, column)}."
            )
    return told


def _largest(lines: Sequence[Line], place: int, column: Column) -> list[str]:
    """Which condition changed most in the wanted direction, and how far chance comes."""
    if column.better is None:
        return []
    best = _best([line for line in lines if line.method != RANDOM], place, column)
    if best is None:
        return []  # nothing to compare with
    size, cell, line = best
    if size <= 0:
        told = [f"No condition improved {column.label}."]
    else:
        where = f" ({line.setting})" if line.setting else ""
        doubt = "" if cell.significant else ", which is not significant"
        told = [
            f"The largest improvement of all conditions, picked after the fact: {line.label}"
            f"{where}, {change_text(cell, column)}{doubt}."
        ]
    chance = _best([line for line in lines if line.method == RANDOM], place, column)
    if chance is not None and chance[0] > 0:
        size, cell, line = chance
        told.append(
            f"A random direction alone ({line.setting}) reaches {change_text(cell, column)}: only "
            f"what a method has beyond that is its own."
        )
    return told


def _best(lines: Sequence[Line], place: int, column: Column) -> tuple[float, Cell, Line] | None:
    """The line that changed most in the wanted direction, by how much, and its cell."""
    sign = 1.0 if column.better == "higher" else -1.0
    found = [
        (sign * cell.difference.interval.mean, cell, line)
        for line in lines
        if (cell := line.cells[place]) is not None and cell.difference is not None
    ]
    return max(found, key=lambda each: each[0], default=None)


def _tally(table: Table, column: Column) -> str:
    """How often the reference method is better, worse, or cannot be told apart."""
    place = next((i for i, c in enumerate(table.columns) if c.key == column.key), None)
    if place is None:
        return ""
    cells = [line.cells[place] for line in table.lines]
    found = [effect(cell, table.columns[place]) for cell in cells if cell is not None]
    better, worse = found.count("better"), found.count("worse")
    return (
        f"{table.title}: {column.label} is significantly better in {better} of {len(found)} "
        f"comparisons, worse in {worse}, not told apart in {len(found) - better - worse}."
    )
