"""`odesteer run` and `odesteer report`: an experiment file to results, results to a report."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from odesteer.cli import library, options
from odesteer.cli.console import goes_on, out, progress, say, stoppable, teaching_errors, warn
from odesteer.common.registry import lookup

if TYPE_CHECKING:
    from odesteer.evaluation.experiment.config import Experiment
    from odesteer.evaluation.report import Report
    from odesteer.evaluation.report.tables import Cell, Column

RUNS = Path("runs")
_SHOWN = 12


@teaching_errors
def run(
    experiment: Annotated[
        Path, typer.Argument(metavar="FILE", help="A TOML file, such as those of experiments/.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Run directory, by default runs/NAME; an unfinished one is continued.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Directory of the benchmarks, or `hub`; ODESTEER_DATA by default."),
    ] = None,
    dry: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the plan, downloads, memory and time; do nothing.",
        ),
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the file; repeatable."),
    ] = None,
    engine: options.Engine = "local",
    workers: options.Workers = None,
    backend: options.Backend = "transformers",
    as_json: options.AsJson = False,
) -> None:
    """Run an experiment: fit, choose on validation cases, ask, judge; to RUN/results.jsonl.

    A stopped or killed run is resumed by the same command. Several processes
    may be given the same directory, and share the work. The results are the same to the byte.

    Example: odesteer run experiments/smollm2-truthfulqa-mc.toml --dry-run

    Example: odesteer run experiments/smollm2-rtp.toml --set limits.test=20 --out try
    """
    chosen = library.config.read(experiment, changes or ())
    if dry:
        _describe(chosen, data, as_json)
        return
    folder = output or RUNS / chosen.name
    with goes_on(folder), progress(chosen.name, percent=True) as callback:
        summary = library.run.run(chosen, folder, data, engine, say, callback, workers, backend)
    if as_json:
        out.print_json(data={**summary._asdict(), "results": str(summary.results)})
        return
    note = "" if summary.computed else " (it was complete)"
    out.print(f"Wrote {escape(str(summary.results))}{note}", soft_wrap=True)


def _describe(experiment: "Experiment", data: Any, as_json: bool) -> None:
    """Print conditions, units, downloads, memory and time."""
    benchmark, planned = library.run.prepared(experiment, data)
    names = [each.id for each in planned.conditions]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    counts = {kind: sum(unit.kind == kind for unit in planned.units) for kind in library.KINDS}
    tested = [
        len({case for unit in planned.units if unit.fold == fold for case in unit.cases})
        for fold in range(len(planned.folds))
    ]
    about = library.estimate(planned, benchmark)
    lines = [
        ("experiment", f"{experiment.name}: {experiment.task} of {benchmark.name}"),
        ("conditions", f"{len(names)}: {', '.join(names[:_SHOWN])}{more}"),
        ("folds", f"{len(planned.folds)}, with {' + '.join(map(str, tested))} test cases"),
        ("units", ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)),
        *((f"model ({model.what})", _model(model)) for model in about.models),
        ("data", f"{benchmark.name} ({', '.join(benchmark.files) or 'in the package'})"),
        ("memory", "not known" if about.bytes is None else f"about {about.bytes / 1e9:.1f} GB"),
        ("tokens", f"about {about.tokens / 1e6:.2g} million"),
        ("time", _time(about)),
    ]
    if as_json:
        out.print_json(data={**dict(lines), "notes": benchmark.notes})
        return
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        out.print(f"{name:<{width}}  {escape(text)}", soft_wrap=True)
    for note in benchmark.notes:
        out.print(f"{'note':<{width}}  {escape(note)}", soft_wrap=True)


def _model(model: Any) -> str:
    size = "of unknown size" if model.size is None else f"{model.size / 1e9:.1f} GB in memory"
    return f"{model.name}, {size}; fetched from the Hub unless it is in its cache or a directory"


def _time(about: Any) -> str:
    if about.cpu_hours is None:
        return "not known"
    return f"about {_hours(about.cpu_hours)} on a CPU core, {_hours(about.gpu_hours)} on a GPU"


def _hours(hours: float) -> str:
    if hours >= 1.5:
        return f"{hours:.1f} hours"
    minutes = round(60.0 * hours)
    return f"{minutes} minutes" if minutes > 1 else "a minute"


FORMATS = "md,csv,latex,html"
_NUMBERS = {
    "value", "low", "high", "n", "unscored", "difference", "difference_low",
    "difference_high", "pairs", "groups", "p", "p_holm", "significant",
}  # fmt: skip


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
        str, typer.Option("--format", "-f", help="Comma-separated formats: md, csv, latex, html.")
    ] = FORMATS,
    compare: Annotated[
        str | None,
        typer.Option(
            help="The method that all others are compared with at equal dose; odesteer by default."
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Write tables, figures and one page about finished or unfinished runs.

    Every number stands beside its paired difference to the unsteered model with a 95 % interval;
    what no judge could score is counted, never a zero. The main table is also printed.

    Examples:

        odesteer report runs/toxicity

        odesteer report runs/toxicity runs/truth --out paper --format latex,csv

        odesteer report runs/toxicity --compare odesteer-paper
    """
    names = _formats(formats)
    folder = output or (runs[0] if runs[0].is_dir() else runs[0].parent) / "report"
    results = [library.report.read_run(run) for run in runs]
    for run in results:  # all of them, before any is worked on
        library.report.check(run, compare)
    for run in results:
        for remark in run.remarks:
            warn(f"{run.name}: {remark}")
    reports = []
    with stoppable(
        f"What is in {folder} is whole, and the runs are as they were; the same command writes "
        "all of it."
    ):
        for run in results:
            say(f"{escape(run.name)}: tables and figures ...")
            reports.append(library.report.build(run, compare, drawn=names != ["csv"]))
        written = library.report.write(reports, folder, names)
    if as_json:
        typer.echo(report_json(reports, written))
        return
    for each in reports:
        out.print(main_table(each))
        for sentence in each.sentences:
            out.print(f"- {sentence}", markup=False)
    say(escape(f"Wrote {', '.join(path.name for path in written)} in {folder}."))


def report_json(reports: "Sequence[Report]", written: Sequence[Path]) -> str:
    """Return, as JSON, the files, the findings, and the cells of every table as in results.csv."""
    rows = csv.DictReader(io.StringIO(library.csv_table(reports)))
    report: dict[str, Any] = {
        "files": [str(path) for path in written],
        "runs": {each.run.name: list(each.sentences) for each in reports},
        "cells": [{key: _value(key, text) for key, text in row.items()} for row in rows],
    }
    return json.dumps(report, ensure_ascii=False, indent=2)


def _value(key: str, text: str) -> str | float | None:
    if key not in _NUMBERS:
        return text
    return float(text) if text else None


def _formats(formats: str) -> list[str]:
    known = dict.fromkeys(FORMATS.split(","))
    names = list(dict.fromkeys(name.strip() for name in formats.split(",") if name.strip()))
    for name in names:
        lookup(known, name, "format")
    if not names:
        raise ValueError(f"--format needs at least one of {', '.join(known)}.")
    return names


def main_table(report: "Report") -> Table:
    """Tabulate values with their changes below, in as many columns as fit."""
    shown = _fitting(report.main.columns)
    table = Table(title=escape(report.run.title), box=None, padding=(0, 1, 0, 0))
    table.add_column("condition", style="bold", overflow="fold", max_width=24)
    table.add_column("n", justify="right", no_wrap=True)
    for index in shown:
        column = report.main.columns[index]
        table.add_column(escape(f"{column.label} {column.arrow}".strip()), justify="right")
    for line in report.main.lines:
        n = "" if line.n is None else str(line.n[0])
        cells = [_cell(line.cells[index], report.main.columns[index]) for index in shown]
        style = "cyan" if line.method == "odesteer" else None
        style = "dim" if line.method == library.RANDOM else style
        table.add_row(escape(f"{line.label}\n{line.setting}".strip()), n, *cells, style=style)
    left = len(report.main.columns) - len(shown)
    more = f" {left} more columns are in the files." if left else ""
    table.caption = (
        "Below each value its change from unsteered; *: significant after Holm's correction; "
        f"(3?): 3 unscored.{more}"
    )
    return table


def _fitting(columns: "Sequence[Column]") -> list[int]:
    """Return the columns that fit the terminal: effects and damage before diversity."""
    room = max((out.width - 31) // 11, 1)
    last = [i for i, column in enumerate(columns) if column.key.startswith("distinct")]
    cost = [i for i, column in enumerate(columns) if column.key in ("kl", "perplexity")]
    rest = [i for i in range(len(columns)) if i not in (*last, *cost)]
    order = [*rest[:1], *cost, *rest[1:], *last]
    return sorted(order[:room])


def _cell(cell: "Cell | None", column: "Column") -> str:
    if cell is None:
        return ""
    unscored = f" ({cell.unscored}?)" if cell.unscored else ""
    change = library.change_text(cell, column, interval=False)
    return f"{library.value_text(cell, column)}{unscored}\n{change}".strip()
