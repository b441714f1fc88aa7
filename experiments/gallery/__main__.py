"""All methods on two-dimensional data: `python -m experiments.gallery`."""

import os
from pathlib import Path
from typing import Annotated

import typer
from experiments.gallery import measure
from experiments.gallery.plot import gallery_figure
from experiments.gallery.result import DOSES, Gallery, Outcome
from experiments.gallery.toy_data import PLANES
from rich.table import Table

from odesteer.cli import options
from odesteer.cli.console import out, progress, say, teaching_errors
from odesteer.common.files import write_whole

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
@teaching_errors
def gallery(
    output: Annotated[Path, typer.Option("--out", "-o", help="Directory to write.")] = Path(
        "odesteer-gallery"
    ),
    methods: Annotated[
        str | None, typer.Option(help="Names with commas between them; all by default.")
    ] = None,
    points: Annotated[
        int, typer.Option(help="Negatives to learn from, and negatives held out, in each plane.")
    ] = 400,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Draw what each method does to three data sets in the plane, and count arrivals.

    Writes gallery.png, gallery.json and gallery.md.

    Example: odesteer gallery --methods caa,odesteer
    """
    names = None if methods is None else [name.strip() for name in methods.split(",")]
    measure.check(names, points)
    _make_writable(output)
    with progress("Fitting and steering") as done:
        result = measure.run(names, points, seed, done)
    result.save(output / "gallery.json")
    write_whole(output / "gallery.md", result.markdown().encode())
    gallery_figure(result, output / "gallery.png")
    if as_json:
        out.print_json(data=result.as_json())
    else:
        out.print(share_table(result))
        out.print(_notes(result))
    say(f"Wrote {output / 'gallery.png'}, gallery.json and gallery.md beside it.")


def _make_writable(folder: Path) -> None:
    """Create the directory, or raise before the work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        allowed = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        allowed = False
    if not allowed:
        raise ValueError(f"Cannot write to '{folder}'; give another directory with --out.")


def share_table(result: Gallery) -> Table:
    """Tabulate the percentage of held-out negatives that arrive, in at most 80 columns."""
    table = Table(
        box=None, padding=(0, 1, 0, 0), title="% in the desired region at equal displacement"
    )
    table.add_column("\nmethod", style="bold", no_wrap=True)
    for plane in PLANES:
        for column, dose in enumerate(DOSES):
            heading = plane if column == 0 else ""
            table.add_column(f"{heading}\n{dose:g}×", justify="right", no_wrap=True)
    for method in result.methods:
        cells = [cell(result.outcome(method, plane, dose)) for plane in PLANES for dose in DOSES]
        table.add_row(method, *cells, style="cyan" if method == "odesteer" else None)
    return table


def cell(outcome: Outcome) -> str:
    """Format the share, half its interval's width and a displacement below the dose."""
    share = outcome.share
    text = f"{100 * share.mean:.0f}±{50 * (share.high - share.low):.0f}"
    return f"{text}\n≤{outcome.moved:.1f}×" if outcome.falls_short else text


def _notes(result: Gallery) -> str:
    return (
        f"n = {result.points} held-out negatives a plane; ± is half the width of a 95 % bootstrap "
        f"interval. 1×: displaced on average by their mean distance to the desired region, with "
        f"which a perfect method brings all there. ≤0.9×: the method moves them no further."
    )


if __name__ == "__main__":
    app()
