"""`odesteer conformance`: is a steering library right on every architecture?"""

from pathlib import Path
from typing import Annotated

import typer

from odesteer.cli import options
from odesteer.cli.console import out, progress, teaching_errors


@teaching_errors
def conformance(
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:CLASS", help="The library, several if given again; odesteer's own."
        ),
    ] = None,
    architecture: Annotated[
        list[str] | None, typer.Option(help="A model type, several if given again; all.")
    ] = None,
    check: Annotated[
        list[str] | None, typer.Option(help="A check, several if given again; all.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write the tables as Markdown.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Run the conformance suite on tiny random models and print the table.

    Each check runs on the unsteered model first: what transformers itself cannot do there is
    not counted. Exit code 1 if anything was wrong.

    Example: odesteer conformance --architecture llama --architecture mamba
    """
    import warnings
    from dataclasses import asdict

    from transformers.utils import logging as transformers_logging

    from odesteer.saving import write_whole
    from odesteer.testing.ours import OdesteerFlow, OdesteerVector
    from odesteer.testing.run import cases, load_adapter, run
    from odesteer.testing.table import not_possible, table

    adapters = [load_adapter(path) for path in adapter or []]
    work = {
        f"{each.name} {each.version}".strip(): cases(each, architecture, check)
        for each in adapters or [OdesteerVector(), OdesteerFlow()]
    }
    total, done = sum(len(group) for group in work.values()), 0
    runs = {}
    transformers_logging.set_verbosity_error()
    with progress("Checking") as callback, warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def step(_result: object) -> None:
            nonlocal done
            done += 1
            callback(done, total)

        for name, group in work.items():
            runs[name] = run(group, step)
    every = [result for results in runs.values() for result in results]
    failures = [(name, r) for name, results in runs.items() for r in results if r.outcome == "fail"]
    first = next(iter(runs.values()))
    text = f"{table(runs)}\n\nNot possible without steering either:\n\n{not_possible(first)}\n"
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, text.encode())
    if as_json:
        out.print_json(data={n: [asdict(r) for r in results] for n, results in runs.items()})
    else:
        out.print(text, markup=False, soft_wrap=True)
        for name, result in failures:
            where = f"{name}: {result.check} on {result.architecture}"
            out.print(f"{where}: {result.reason}", markup=False, soft_wrap=True)
        models = len({result.architecture for result in every})
        out.print(f"{models} architectures, {total} cases, {len(failures)} wrong")
    if failures:
        raise typer.Exit(1)
