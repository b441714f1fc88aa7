"""`odesteer playground`: see and feel what steering does, in a browser."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from odesteer.cli import options
from odesteer.cli.console import progress, say, teaching_errors
from odesteer.cli.load_steering import pairs

if TYPE_CHECKING:
    from odesteer.playground.library import SharedModel, Source

MOODS = "melancholy"


@teaching_errors
def playground(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]", help="A local directory, a Hub model, or `smollm2` (works offline)."
        ),
    ] = "smollm2",
    steering: Annotated[
        list[str] | None,
        typer.Option(
            "--steering",
            "-s",
            metavar="NAME=DIR",
            help="A directory written by `odesteer fit`, by the name it is to have; repeat. "
            f"Without one: `{MOODS}`, learnt from the sentences of the demo.",
        ),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(help="A directory that `odesteer run` wrote to, or one that holds several."),
    ] = None,
    keep: Annotated[Path, typer.Option(help="Where steerings are saved from the page.")] = Path(
        "steerings"
    ),
    host: Annotated[
        str, typer.Option(help="Where it listens; other machines reach 0.0.0.0.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = 7860,
    opened: Annotated[
        bool, typer.Option("--open/--no-open", help="Open it in this machine's browser.")
    ] = True,
    cache: options.Cache = True,
) -> None:
    """Steer in a browser: texts side by side, every token on the barrier, doses by a slider.

    Works offline. Whoever reaches the page can use the model and save steerings: it listens to
    this machine alone unless --host says otherwise.

    Example: odesteer playground

    Example: odesteer playground smollm2 -s truthful=truthful -s toxic=toxic --no-open
    """
    if importlib.util.find_spec("gradio") is None:
        raise ImportError("The playground is made with Gradio: pip install 'odesteer[playground]'.")
    named = named_paths(steering or [])
    from odesteer.evaluation.benchmarks.sentiment import SYSTEM
    from odesteer.models.loading import load_model
    from odesteer.playground.app import serve
    from odesteer.playground.controller import Controller, runs_in
    from odesteer.playground.library import SharedModel

    directories = runs_in(runs) if runs is not None else {}
    if runs is not None and not directories:
        raise ValueError(
            f"There is no run in '{runs}'; give a directory that `odesteer run` wrote."
        )
    shared = SharedModel(*load_model(model, say), name=model)
    library = saved(shared, named) if named else moods(shared, cache)
    page, address = serve(
        Controller(shared, library, keep, directories), "" if named else SYSTEM, host, port, opened
    )
    say(f"The page is at {address.rstrip('/')} until you press Ctrl-C.")
    page.block_thread()


def named_paths(given: list[str]) -> dict[str, Path]:
    """NAME=DIR, several times; ValueError for another form, a name given twice or unusable."""
    from odesteer.playground.library import check_name

    found = pairs(given, "--steering", "NAME=DIR")
    return {check_name(name): Path(path) for name, path in found.items()}


def saved(shared: "SharedModel", named: dict[str, Path]) -> "dict[str, Source]":
    """Steerings from their directories, if they fit the model."""
    import odesteer as ods
    from odesteer.models.hooks.attach import check_fits
    from odesteer.playground.library import SavedSteering

    library: dict[str, Source] = {}
    for name, path in named.items():
        one = ods.load(path)
        for part in one.parts:
            check_fits(part, shared.model)
        library[name] = SavedSteering(one, str(path))
    return library


def moods(shared: "SharedModel", cache: bool) -> "dict[str, Source]":
    """The sentences of the demo, read and ranked."""
    from odesteer.evaluation.demo import contrast
    from odesteer.fitting import middle_layers
    from odesteer.playground.library import prepare_contrast

    with progress("Reading the demo's sentences") as callback:
        found = prepare_contrast(
            shared,
            contrast()[0],
            middle_layers(shared.model),
            callback,
            imports=("from odesteer.evaluation.demo import contrast",),
            code="contrast()[0]",
            cache=cache,
        )
    return {MOODS: found}
