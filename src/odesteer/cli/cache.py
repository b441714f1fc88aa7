"""`odesteer cache`: the activations that are kept on disk, and their removal."""

from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from odesteer.cli import options
from odesteer.cli.console import out, teaching_errors
from odesteer.extraction.cache_index import (
    CachedModel,
    activations_dir,
    cached_models,
    remove,
    size_limit,
)

app = typer.Typer(
    help="List or remove the activations that `fit`, `tune` and `generate` keep on disk.",
    no_args_is_help=True,
)


@app.command("ls")
@teaching_errors
def ls(as_json: options.AsJson = False) -> None:
    """List the models whose activations are kept, the one used last first.

    They are in ODESTEER_CACHE, or ~/.cache/odesteer, and take at most ODESTEER_CACHE_GB (20):
    what was used least lately goes first.

    Example: odesteer cache ls
    """
    folder, limit = activations_dir(), size_limit()
    models = cached_models(folder)
    total = sum(model.size for model in models)
    if as_json:
        rows = [_as_json(model) for model in models]
        out.print_json(data={"folder": str(folder), "size": total, "limit": limit, "models": rows})
        return
    if models:
        table = Table(box=None, pad_edge=False)
        for heading in ("model", "layers", "rows", "size", "last used", "key"):
            table.add_column(heading, overflow="fold")
        for model in models:
            table.add_row(
                model.name + (f" @ {model.revision[:8]}" if model.revision else ""),
                "; ".join(f"{site}: {_spans(layers)}" for site, layers in model.layers.items()),
                str(model.rows),
                size_text(model.size),
                datetime.fromtimestamp(model.last_used).strftime("%Y-%m-%d %H:%M"),
                model.key[:8],
            )
        out.print(table)
    out.print(f"{size_text(total)} of {size_text(limit)} in {folder}", soft_wrap=True, markup=False)


@app.command("rm")
@teaching_errors
def rm(
    model: Annotated[
        str | None, typer.Option(help="Only of this model: its name or key, as listed.")
    ] = None,
    older_than: Annotated[
        float | None, typer.Option(min=0.0, help="Only activations not used for this many days.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All activations.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Remove kept activations; they are computed again when they are needed.

    Example: odesteer cache rm --older-than 30
    """
    if everything and (model is not None or older_than is not None):
        raise ValueError("--all removes everything; leave it out to choose by the other options.")
    if not everything and model is None and older_than is None:
        raise ValueError("Say what to remove: --model NAME, --older-than DAYS, or --all.")
    folder = activations_dir()
    known = [each.name for each in cached_models(folder)]
    count, size = remove(folder, model, older_than)
    if as_json:
        out.print_json(data={"folder": str(folder), "files": count, "size": size})
        return
    hint = ""
    if model is not None and not count and model not in known:
        hint = (
            f" There is nothing of '{model}'; kept: {', '.join(dict.fromkeys(known)) or 'nothing'}."
        )
    out.print(
        f"Removed {count} file{'' if count == 1 else 's'} ({size_text(size)}) from {folder}.{hint}",
        soft_wrap=True,
        markup=False,
    )


def _as_json(model: CachedModel) -> dict[str, object]:
    used = datetime.fromtimestamp(model.last_used).astimezone().isoformat(timespec="seconds")
    return {**vars(model), "last_used": used}


def _spans(numbers: list[int]) -> str:
    """Format `[1, 2, 3, 5]` as `1-3, 5`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][-1] == number - 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ", ".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else str(s[0]) for s in spans)


def size_text(count: float) -> str:
    """Format a number of bytes."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} GB"
