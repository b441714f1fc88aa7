"""`odesteer cache` and `odesteer extract`: activations on disk."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

import odesteer as ods
from odesteer.cli import library, options
from odesteer.cli.console import err, goes_on, out, progress, say, teaching_errors
from odesteer.cli.load_steering import as_layers, read_contrast
from odesteer.common import catalogue
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


@teaching_errors
def extract(
    model: options.Model,
    contrast: options.Contrast,
    layer: Annotated[
        str, typer.Option(help="Block index, negative from the end, or several as `10,14`.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="Directory of the shards; an unfinished one is continued."
        ),
    ],
    tokens: Annotated[
        str,
        typer.Option(
            help="What is read of each text: the last token, the mean, the mean of the response, "
            "or the end of the prompt (last, mean, response, prompt).",
            autocompletion=options.among(catalogue.TOKENS),
        ),
    ] = "last",
    max_tokens: options.MaxTokens = None,
    columns: options.Columns = None,
    format: options.Format = None,
    template: options.Template = "auto",
    rows_per_shard: Annotated[
        int | None,
        typer.Option(min=2, help="Texts per shard; 2048 by default."),
    ] = None,
    engine: options.Engine = "local",
    workers: options.Workers = None,
    as_json: options.AsJson = False,
) -> None:
    """Keep the activations of many texts, extracted by one process or many; to OUT/shards.

    A stopped or killed run is resumed by the same command. Several processes
    may be given the same directory, and share the work. The activations are the same to the bit.
    `odesteer.Shards.open(OUT)` reads them.

    Example: odesteer extract smollm2 pairs.jsonl --layer 10,14 --out activations
    """
    # Errors of input come before anything slow.
    blocks = as_layers(layer)
    if isinstance(blocks, str):
        raise ValueError("--layer of extract is a block index, or several with commas, not auto.")
    chosen = library.check_tokens(tokens)
    data = read_contrast(contrast, template, columns, format)
    with goes_on(output), progress("Reading texts") as callback:
        shards = ods.extract_shards(
            model,
            data,
            blocks,
            output,
            tokens=chosen,
            max_tokens=max_tokens,
            rows_per_shard=rows_per_shard or library.ROWS,
            engine=engine,
            workers=workers,
            say=say,
            progress=callback,
        )
    n, m = shards.sizes
    if as_json:
        out.print_json(
            data={
                "path": str(output),
                "shards": len(shards),
                "computed": shards.computed,
                "layers": shards.layers,
                "tokens": chosen,
                "positive": n,
                "negative": m,
                "truncated": shards.truncated,
            }
        )
        return
    if shards.truncated:
        err.print(
            f"[yellow]warning:[/] {shards.truncated} of {n + m} texts were too long; their "
            f"beginnings were cut off.",
            soft_wrap=True,
        )
    note = "" if shards.computed else " (it was complete)"
    where = ", ".join(map(str, shards.layers))
    out.print(
        f"Wrote {escape(str(output))}: {len(shards)} shard{'s' if len(shards) > 1 else ''}, "
        f"{n} + {m} texts, layer {where}{note}",
        soft_wrap=True,
    )
