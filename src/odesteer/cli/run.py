"""`odesteer run`: run an experiment file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from odesteer.cli import library, options
from odesteer.cli.console import goes_on, out, progress, say, teaching_errors

if TYPE_CHECKING:
    from odesteer.evaluation.experiment.config import Experiment

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
    chosen = library.parse_toml.read(experiment, changes or ())
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
