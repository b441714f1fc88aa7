"""`odesteer extract`: the activations of many texts, to shards on disk."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import odesteer as ods
from odesteer.cli import library, options
from odesteer.cli.console import err, goes_on, out, progress, say, teaching_errors
from odesteer.cli.load_steering import as_layers, read_contrast
from odesteer.common import catalogue


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
