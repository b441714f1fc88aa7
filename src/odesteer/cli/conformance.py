"""`odesteer conformance`: run the conformance suite on a steering library."""

import warnings
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from odesteer import testing
from odesteer.cli import library, options
from odesteer.cli.console import out, progress, say, teaching_errors
from odesteer.common.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from odesteer.testing import Result


@teaching_errors
def conformance(
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:CLASS",
            help="The library to check, several if given again; by default odesteer itself.",
        ),
    ] = None,
    architecture: Annotated[
        list[str] | None,
        typer.Option(help="A model type, several if given again; by default all."),
    ] = None,
    check: Annotated[
        list[str] | None, typer.Option(help="A check, several if given again; by default all.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="A Markdown file to write as well.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Run the conformance suite on tiny random models and print the table.

    Every check runs on the unsteered model first: what transformers cannot do there is not
    counted. Exit code 1 if a library was wrong anywhere.

    Example: odesteer conformance --architecture llama --architecture mamba
    """
    # Here: it takes seconds, and --help and completion do not need it.
    from transformers.utils import logging as transformers_logging

    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
    adapters = [testing.load_adapter(path) for path in adapter or []]
    adapters = adapters or [testing.OdesteerVector(), testing.OdesteerFlow()]
    work = {
        f"{a.name} {a.version}".strip(): testing.cases(a, architecture, check) for a in adapters
    }
    total = sum(len(group) for group in work.values())
    runs: dict[str, Sequence[Result]] = {}
    transformers_logging.set_verbosity_error()
    with progress("Checking") as callback, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = count(1)
        for name, group in work.items():
            runs[name] = testing.run(group, lambda _: callback(next(done), total))
    if output is not None:
        write_whole(output, library.runner.report(runs).encode())
        say(f"Wrote {output}")
    if as_json:
        out.print_json(data={n: [asdict(r) for r in results] for n, results in runs.items()})
    else:
        _show(runs)
    if any(result.outcome == "fail" for results in runs.values() for result in results):
        raise typer.Exit(1)


def _show(runs: "Mapping[str, Sequence[Result]]") -> None:
    table = Table("check", "", *runs, title="architectures right, of those possible")
    for name, question, cells in library.runner.rows(runs):
        table.add_row(name, question, *cells)
    out.print(table)
    for name, results in runs.items():
        for result in results:
            if result.outcome == "fail":
                where = f"{name}: {result.check} on {result.architecture}"
                out.print(f"{where}: {result.reason}", markup=False, soft_wrap=True)
    models = {result.architecture for results in runs.values() for result in results}
    cases = sum(len(results) for results in runs.values())
    impossible = sum(r.outcome == "not possible" for results in runs.values() for r in results)
    out.print(
        f"{len(models)} architectures, {cases} cases; {impossible} of them are not possible "
        f"without steering either."
    )
