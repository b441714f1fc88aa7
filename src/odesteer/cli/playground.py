"""`odesteer playground`: steering in a browser."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import odesteer as ods
from odesteer.cli import library, options
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
    keep: Annotated[Path, typer.Option(help="Directory for steerings saved from the page.")] = Path(
        "steerings"
    ),
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is reachable from other machines.")
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
    directories = library.runs_in(runs) if runs is not None else {}
    if runs is not None and not directories:
        raise ValueError(
            f"There is no run in '{runs}'; give a directory that `odesteer run` wrote."
        )
    shared = library.SharedModel(*library.load_model(model, say), name=model)
    sources = saved(shared, named) if named else moods(shared, cache)
    page, address = library.serve(
        library.Controller(shared, sources, keep, directories),
        "" if named else library.sentiment.SYSTEM,
        host,
        port,
        opened,
    )
    say(f"The page is at {address.rstrip('/')} until you press Ctrl-C.")
    page.block_thread()


def named_paths(texts: list[str]) -> dict[str, Path]:
    """Parse NAME=DIR; ValueError for another form, or a repeated or invalid name."""
    paths = pairs(texts, "--steering", "NAME=DIR")
    return {library.check_name(name): Path(path) for name, path in paths.items()}


def saved(shared: "SharedModel", named: dict[str, Path]) -> "dict[str, Source]":
    """Load steerings from their directories, and check that they fit the model."""
    sources: dict[str, Source] = {}
    for name, path in named.items():
        steering = ods.load(path)
        for part in steering.parts:
            library.check_fits(part, shared.model)
        sources[name] = library.SavedSteering(steering, str(path))
    return sources


def moods(shared: "SharedModel", cache: bool) -> "dict[str, Source]":
    """Read the sentences of the demo and rank the layers."""
    with progress("Reading the demo's sentences") as callback:
        source = library.prepare_contrast(
            shared,
            library.demo.contrast()[0],
            library.middle_layers(shared.model),
            callback,
            imports=("from odesteer.evaluation.demo import contrast",),
            code="contrast()[0]",
            cache=cache,
        )
    return {MOODS: source}
