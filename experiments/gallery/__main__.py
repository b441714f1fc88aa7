"""`python -m experiments.gallery`: all methods on two-dimensional data."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from odesteer.cli import options
from odesteer.cli.console import out, progress, say, teaching_errors

if TYPE_CHECKING:
    from experiments.gallery.result import Gallery, Outcome


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
    """Draw what every method does to three data sets in the plane, and count who arrives.

    Writes gallery.png, gallery.json and gallery.md.

    Example: odesteer gallery --methods caa,odesteer
    """
    from experiments.gallery import measure as library

    names = None if methods is None else [name.strip() for name in methods.split(",")]
    library.check(names, points)
    _make_writable(output)
    from experiments.gallery.plot import gallery_figure

    from odesteer.common.files import write_whole

    with progress("Fitting and steering") as done:
        result = library.run(names, points, seed, done)
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
    """Finding out before the work is done, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        allowed = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        allowed = False
    if not allowed:
        raise ValueError(f"Cannot write to '{folder}'; give another directory with --out.")


def share_table(result: "Gallery") -> Table:
    """Percent of held-out negatives that arrive; narrow enough for 80 columns."""
    from experiments.gallery.result import DOSES
    from experiments.gallery.toy_data import PLANES

    table = Table(
        box=None, padding=(0, 1, 0, 0), title="% in the desired region at equal displacement"
    )
    table.add_column("\nmethod", style="bold", no_wrap=True)
    for plane in PLANES:
        for place, dose in enumerate(DOSES):
            heading = plane if place == 0 else ""
            table.add_column(f"{heading}\n{dose:g}×", justify="right", no_wrap=True)
    for method in result.methods:
        cells = [cell(result.outcome(method, plane, dose)) for plane in PLANES for dose in DOSES]
        table.add_row(method, *cells, style="cyan" if method == "odesteer" else None)
    return table


def cell(outcome: "Outcome") -> str:
    """Share, half the width of its interval, and how far it got where that is less than asked."""
    share = outcome.share
    text = f"{100 * share.mean:.0f}±{50 * (share.high - share.low):.0f}"
    return f"{text}\n≤{outcome.moved:.1f}×" if outcome.falls_short else text


def _notes(result: "Gallery") -> str:
    return (
        f"n = {result.points} held-out negatives a plane; ± is half the width of a 95 % bootstrap "
        f"interval. 1×: displaced on average by their mean distance to the desired region, with "
        f"which a perfect method brings all there. ≤0.9×: the method moves them no further."
    )
