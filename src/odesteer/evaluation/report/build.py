"""Assembly of a report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from odesteer.evaluation.report.barrier_table import barrier_table, ranks_pairs
from odesteer.evaluation.report.columns import headline, measures_of
from odesteer.evaluation.report.compare import at_equal_damage, at_equal_dose, reference
from odesteer.evaluation.report.figures import figures_of
from odesteer.evaluation.report.figures.barrier import calibration_drawing, flow_drawing
from odesteer.evaluation.report.figures.drawing import Drawing
from odesteer.evaluation.report.main_table import main_table
from odesteer.evaluation.report.measures import Measure
from odesteer.evaluation.report.paper import paper_lines
from odesteer.evaluation.report.provenance import Provenance, facts_of
from odesteer.evaluation.report.rows import Row, rows_of
from odesteer.evaluation.report.run import Run
from odesteer.evaluation.report.side_by_side import Beside, side_by_side
from odesteer.evaluation.report.summary import summary
from odesteer.evaluation.report.table import Table

_PAPER = (
    "Rows marked “paper” are the paper's numbers (ODESteer, ICLR 2026, tables 2, 3, 6 and 9) for "
    "this model: three seeds, its own judges, layer and strength; a column that another judge "
    "filled here has none. Its perplexity is gpt2-xl's."
)


@dataclass(frozen=True)
class Report:
    """Everything that is told of one run.

    Attributes:
        run: as it was read.
        sentences: what was found.
        tables: the main one first.
        figures: whatever the run has data for.
        facts: choices, judges, data.
        texts: single generations, unsteered beside steered.
        offensive: whether texts are to be hidden until they are asked for.
    """

    run: Run
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    figures: tuple[Drawing, ...]
    facts: tuple[Provenance, ...]
    texts: tuple[Beside, ...]
    offensive: bool

    @property
    def main(self) -> Table:
        return self.tables[0]


def check(run: Run, against: str | None = None) -> None:
    """That a report can be built, found out before the work is done.

    Raises:
        ValueError: if the run has no method of that name, or no score to report.
    """
    if not measures_of(run) and not run.barriers:
        raise ValueError(f"'{run.path}' has no score yet: nothing was judged.")
    reference(rows_of(run), against)


def build(run: Run, against: str | None = None, drawn: bool = True) -> Report:
    """The report of a run.

    Args:
        run: finished or not.
        against: the method that others are compared with; None: ODESteer, if the run has it.
        drawn: whether figures are wanted.

    Raises:
        ValueError: as `check` does.
    """
    check(run, against)
    rows, measures = rows_of(run), measures_of(run)
    tables: list[Table] = []
    sentences: tuple[str, ...] = ()
    texts: tuple[Beside, ...] = ()
    figures: tuple[Drawing, ...] = ()
    if measures:
        main = main_table(rows, measures)
        tables = [main, *_compared(rows, measures, reference(rows, against))]
        sentences = summary(run, rows, measures, tables)
        texts = side_by_side(rows, headline(measures))
        # After the correction: nothing of the paper's is tested here.
        if paper := paper_lines(run, measures):
            tables[0] = replace(main, lines=(*main.lines, *paper), notes=(*main.notes, _PAPER))
        figures = figures_of(run, rows, measures, main) if drawn else ()
    if (barriers := barrier_table(run)) is not None:
        tables.append(barriers)
        sentences += ranks_pairs(barriers)
        drawings = (flow_drawing(run), calibration_drawing(run)) if drawn else ()
        figures += tuple(drawing for drawing in drawings if drawing is not None)
    return Report(run, sentences, tuple(tables), figures, facts_of(run), texts, _offensive(run))


def _compared(rows: Sequence[Row], measures: Sequence[Measure], method: str | None) -> list[Table]:
    if method is None:
        return []
    found = (at_equal_dose(rows, measures, method), at_equal_damage(rows, measures, method))
    return [table for table in found if table is not None]


def _offensive(run: Run) -> bool:
    """Whether the benchmark asks for what few want to see unasked."""
    words: Sequence[str] = (str(run.benchmark.get("name", "")), *run.benchmark.get("metrics", ()))
    return any("toxic" in word for word in words)
