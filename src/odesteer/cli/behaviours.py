"""`odesteer behaviours`: the packaged behaviours, each with an example."""

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from odesteer.cli import library, options
from odesteer.cli.console import out, teaching_errors
from odesteer.common.catalogue import BEHAVIOURS

SHOWN = 3  # pairs of one behaviour


@teaching_errors
def behaviours(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="One behaviour, with pairs of it.",
            autocompletion=options.among(BEHAVIOURS),
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the packaged behaviours, or show pairs of one.

    Example: odesteer behaviours formal
    """
    if name is not None:
        contrast = library.behaviours.load(name)
        pairs = [
            {
                "prompt": str(wanted.prompt),
                "positive": wanted.response,
                "negative": unwanted.response,
            }
            for wanted, unwanted in zip(contrast.positive, contrast.negative, strict=True)
        ]
        if as_json:
            out.print_json(data={"name": name, "description": BEHAVIOURS[name][2], "pairs": pairs})
            return
        out.print(f"[bold]{name}[/]: {BEHAVIOURS[name][2]}; {len(pairs)} pairs\n")
        for pair in pairs[:SHOWN]:
            out.print(f"[dim]{escape(pair['prompt'])}[/]")
            out.print(f"  [green]+[/] {escape(pair['positive'])}")
            out.print(f"  [red]-[/] {escape(pair['negative'])}\n")
        out.print(f"odesteer fit smollm2 --behaviour {name} --out {name}")
        return
    rows = {name: library.behaviours.load(name, 2).positive[0].response for name in BEHAVIOURS}
    if as_json:
        out.print_json(
            data=[
                {"name": name, "description": BEHAVIOURS[name][2], "example": example}
                for name, example in rows.items()
            ]
        )
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, example in rows.items():
        table.add_row(name, f"{BEHAVIOURS[name][2]}\n[dim]{escape(example)}[/]")
    out.print(table)
    out.print("\nPairs of one: [bold]odesteer behaviours NAME[/]")
