"""`odesteer playground`: steering in a browser."""

import importlib.util
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import odesteer as ods
from odesteer.cli import library, options
from odesteer.cli.console import say, teaching_errors
from odesteer.cli.load_steering import pairs
from odesteer.common import catalogue

if TYPE_CHECKING:
    from odesteer.playground.library import SharedModel, Source

FIRST = "pessimistic"  # what the page begins with: the largest effect measured (docs/tuning.md)


@teaching_errors
def playground(
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]",
            help="A local directory, a GGUF file, a Hub model, or `smollm2` (works offline).",
        ),
    ] = "smollm2",
    steering: Annotated[
        list[str] | None,
        typer.Option(
            "--steering",
            "-s",
            metavar="NAME=DIR",
            help="A directory written by `odesteer fit`, by the name it is to have; repeat. "
            f"Without one: `{FIRST}`, of the packaged behaviours, which are always there.",
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
    """Steer in a browser: texts side by side, every token coloured, doses by a slider.

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
    shared = library.SharedModel(*library.load_model(model, say), name=model, cache=cache)
    presets = library.presets()
    sources: dict[str, Source] = {**saved(shared, named)}
    if not sources:
        sources[FIRST] = presets[FIRST]
        # While the page opens; a text that is asked for before it is learnt waits for it.
        first = (shared, catalogue.DEFAULT_METHOD, None)
        threading.Thread(target=presets[FIRST].get, args=first, daemon=True).start()
    controller = library.Controller(shared, sources | presets, keep, directories)
    page, address = library.serve(controller, host, port, opened)
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
