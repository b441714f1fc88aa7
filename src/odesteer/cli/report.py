"""`odesteer report`: what did a run find?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from odesteer.cli.console import err, out, say, teaching_errors

if TYPE_CHECKING:
    from odesteer.report import Report
    from odesteer.report.table import Cell, Column

FORMATS = "md,csv,latex,html"


@teaching_errors
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Directories that `odesteer run` wrote to."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Directory to write; by default `report` within the first RUN."
        ),
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", "-f", help="Some of md, csv, latex and html, with commas.")
    ] = FORMATS,
    compare: Annotated[
        str | None,
        typer.Option(
            help="The method that all others are compared with at equal dose and at equal damage; "
            "odesteer by default."
        ),
    ] = None,
) -> None:
    """Write tables, figures and one page about finished or unfinished runs.

    Every number stands beside its paired difference to the unsteered model with a 95 % interval;
    what no judge could score is counted, never a zero. The main table is also printed.

    Examples:

        odesteer report runs/toxicity

        odesteer report runs/toxicity runs/truth --out paper --format latex,csv

        odesteer report runs/toxicity --compare odesteer-paper
    """
    wanted = _wanted(formats)
    folder = output or (runs[0] if runs[0].is_dir() else runs[0].parent) / "report"
    from odesteer.report import build, check, read_run, write

    read = [read_run(run) for run in runs]
    for run in read:  # all of them, before any is worked on
        check(run, compare)
    reports = []
    for run in read:
        for remark in run.remarks:
            err.print(f"[yellow]warning:[/] {escape(f'{run.name}: {remark}')}", soft_wrap=True)
        say(f"{escape(run.name)}: tables and figures ...")
        reports.append(build(run, compare, drawn=wanted != ["csv"]))
    for one in reports:
        out.print(main_table(one))
        for sentence in one.sentences:
            out.print(f"- {sentence}", markup=False)
    written = write(reports, folder, wanted)
    say(escape(f"Wrote {', '.join(path.name for path in written)} in {folder}."))


def _wanted(formats: str) -> list[str]:
    from odesteer.lookup import pick

    known = dict.fromkeys(FORMATS.split(","))
    names = list(dict.fromkeys(name.strip() for name in formats.split(",") if name.strip()))
    for name in names:
        pick(known, name, "format")
    if not names:
        raise ValueError(f"--format needs at least one of {', '.join(known)}.")
    return names


def main_table(one: "Report") -> Table:
    """Values with their changes below, as many columns as fit; intervals are in the files."""
    from odesteer.report.rows import RANDOM

    shown = _fitting(one.main.columns)
    table = Table(title=escape(one.run.title), box=None, padding=(0, 1, 0, 0))
    table.add_column("condition", style="bold", overflow="fold", max_width=24)
    table.add_column("n", justify="right", no_wrap=True)
    for place in shown:
        column = one.main.columns[place]
        table.add_column(escape(f"{column.label} {column.arrow}".strip()), justify="right")
    for line in one.main.lines:
        label = line.label + (" (paper)" if line.source == "paper" else "")
        n = "" if line.n is None else str(line.n[0])
        cells = [_cell(line.cells[place], one.main.columns[place]) for place in shown]
        style = "cyan" if line.method == "odesteer" else None
        style = "dim" if line.method == RANDOM or line.source == "paper" else style
        table.add_row(escape(f"{label}\n{line.setting}".strip()), n, *cells, style=style)
    left = len(one.main.columns) - len(shown)
    more = f" {left} more columns are in the files." if left else ""
    table.caption = (
        "Below each value its change from unsteered; *: significant after Holm's correction; "
        f"(3?): 3 unscored.{more}"
    )
    return table


def _fitting(columns: "Sequence[Column]") -> list[int]:
    """The places of those that fit the terminal: effects and damage before diversity."""
    room = max((out.width - 31) // 11, 1)
    last = [i for i, column in enumerate(columns) if column.key.startswith("distinct")]
    cost = [i for i, column in enumerate(columns) if column.key in ("kl", "perplexity")]
    rest = [i for i in range(len(columns)) if i not in (*last, *cost)]
    order = [*rest[:1], *cost, *rest[1:], *last]
    return sorted(order[:room])


def _cell(cell: "Cell | None", column: "Column") -> str:
    from odesteer.report.table import change_text, value_text

    if cell is None:
        return ""
    unscored = f" ({cell.unscored}?)" if cell.unscored else ""
    change = change_text(cell, column, interval=False)
    return f"{value_text(cell, column)}{unscored}\n{change}".strip()
