"""Figures of a run."""

from collections.abc import Sequence

from odesteer.evaluation.report.figures.charts import (
    overview_drawing,
    sweep_drawings,
    tradeoff_drawing,
)
from odesteer.evaluation.report.figures.style import Drawing
from odesteer.evaluation.report.measures import Measure, headline
from odesteer.evaluation.report.rows import Row
from odesteer.evaluation.report.run import Run
from odesteer.evaluation.report.table import Table


def figures_of(
    run: Run, rows: Sequence[Row], measures: Sequence[Measure], table: Table
) -> tuple[Drawing, ...]:
    """Those whose data the run has; `table` is its main table, with `measures` as columns."""
    effect = list(measures).index(headline(measures))
    costs = [i for i, measure in enumerate(measures) if measure.name in ("kl", "perplexity")]
    drawn: list[Drawing | None] = [overview_drawing(table, effect)]
    drawn += [tradeoff_drawing(rows, table, effect, cost) for cost in costs if cost != effect]
    drawn += sweep_drawings(rows, table, effect)
    return tuple(each for each in drawn if each is not None)
