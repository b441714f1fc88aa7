"""Which figures can be drawn of a run?"""

from collections.abc import Sequence

from odesteer.report.columns import headline
from odesteer.report.drawing import Drawing
from odesteer.report.measures import Measure
from odesteer.report.overview import overview_drawing
from odesteer.report.rows import Row
from odesteer.report.run import Run
from odesteer.report.sweeps import sweep_drawings
from odesteer.report.table import Table
from odesteer.report.tradeoff import tradeoff_drawing


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
