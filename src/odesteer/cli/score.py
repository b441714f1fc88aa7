"""`odesteer score`: probabilities that texts show what a steering steers towards."""

import csv
import io
import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import odesteer as ods
from odesteer.cli import library, options
from odesteer.cli.console import bar, out, progress, reading, say, teaching_errors, warn
from odesteer.cli.load_steering import as_columns
from odesteer.common import catalogue
from odesteer.common.files import write_whole

if TYPE_CHECKING:
    from odesteer.evaluation.detector import Scores
    from odesteer.evaluation.statistics import Detection, Interval, Threshold

_KINDS = (".csv", ".jsonl")


@teaching_errors
def score(
    model: options.Model,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="JSONL, CSV or Parquet: `text` (or `prompt` and `response`), with `label` where "
            "it is known; or `positive` and `negative`, as for `odesteer fit`.",
        ),
    ],
    steering: options.SavedSteering,
    layer: Annotated[
        int | None, typer.Option(help="Layer to score with, if the steering has several.")
    ] = None,
    away: Annotated[
        bool, typer.Option("--away", help="Score what it steers away from; labels change places.")
    ] = False,
    false_positives: Annotated[
        float | None,
        typer.Option(
            help="The threshold that calls at most this share of the negatives positive, such as "
            "0.05, and what share of positives it finds."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .csv or .jsonl file for every text, ranked."),
    ] = None,
    show: Annotated[
        int, typer.Option(min=0, help="Number of texts to print from each end of the ranking.")
    ] = 5,
    columns: options.Columns = None,
    format: options.Format = None,
    template: options.Template = "auto",
    tokens: Annotated[
        str | None,
        typer.Option(
            help="What is read of each text; by default what the steering was fitted on.",
            autocompletion=options.among(catalogue.TOKENS),
        ),
    ] = None,
    max_tokens: options.MaxTokens = None,
    cache: options.Cache = True,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Rank texts by a steering's barrier: the same steering, as a detector.

    Prints log-odds and probability at even priors, and certified radii. Where the file has labels,
    also AUC, calibration error and log-loss with 95 % intervals: give texts that the steering has
    not seen, for they say nothing otherwise.

    Example: odesteer score smollm2 texts.jsonl --steering gloomy --out ranked.csv

    Example: odesteer score smollm2 held-out.csv -s gloomy --false-positives 0.05 --json
    """
    # Errors of input come before anything slow.
    if output is not None and output.suffix not in _KINDS:
        raise ValueError(f"--out is a .csv or .jsonl file; got '{output}'.")
    if false_positives is not None and not 0.0 < false_positives < 1.0:
        raise ValueError(f"--false-positives is between 0 and 1; got {false_positives}.")
    loaded = ods.load(steering)
    named = as_columns(columns) or {}
    numbers = [named.get(key, key) for key in library.contrast.NUMBERS]
    rows = library.read_files.rows(file, None, numbers)
    examples = list(library.contrast.labelled(rows, named, required=False, format=format))
    if false_positives is not None and not {label for _, label in examples} >= {0, 1}:
        raise ValueError(
            "--false-positives needs texts of both classes: a `label` of 0 or 1 in each row."
        )
    labels = [label if label is None or not away else 1 - label for _, label in examples]
    language_model, tokenizer = library.load_model(model, say)
    with reading(cache), progress("Reading texts") as callback:
        scores = ods.score(
            language_model,
            tokenizer,
            ~loaded if away else loaded,
            [example for example, _ in examples],
            labels=labels,
            layer=layer,
            template=template.replace("\\n", "\n"),
            tokens=tokens,
            max_tokens=max_tokens,
            progress=callback,
            cache=cache,
        )
    ranked = _rows(scores)
    quality = scores.quality(seed) if {0, 1} <= set(scores.labels) else None
    level = None if false_positives is None else scores.threshold(false_positives, seed)
    if output is not None:
        _write(output, ranked)
    if quality is not None and scores.fitted_on:
        warn(
            "these are the texts that the steering was fitted on: the numbers about them are "
            "better than on others. Give held-out texts."
        )
    if as_json:
        about: dict[str, Any] = {
            "steering": str(steering),
            "layer": scores.layer,
            "tokens": scores.tokens,
            "truncated": scores.truncated,
            "fitted_on": scores.fitted_on,
            "quality": None if quality is None else _plain(quality),
            "threshold": None if level is None else _plain(level),
            "certificate": {"probability": 0.5, "reason": scores.uncertified},
            "texts": ranked,
        }
        typer.echo(json.dumps(about, ensure_ascii=False, indent=2))
        return
    if show:
        out.print(_table(ranked, show))
    if len(ranked) > 1:
        _print_summary(ranked)
        _print_certificate(scores)
    if len(ranked) > 2 * show and output is None:
        out.print("--out FILE writes all of them.")
    if quality is not None:
        _print_quality(quality)
    if level is not None:
        _print_threshold(level)
    if output is not None:
        out.print(f"Wrote {escape(str(output))}", soft_wrap=True)


def _rows(scores: "Scores") -> list[dict[str, Any]]:
    rows = []
    for rank, i in enumerate(scores.ranked(), start=1):
        example, label = scores.examples[i], scores.labels[i]
        row: dict[str, Any] = {
            "rank": rank,
            "row": i + 1,
            "log_odds": round(float(scores.log_odds[i]), 6),
            "probability": round(float(scores.probability[i]), 6),
            "radius": None if scores.radius is None else round(float(scores.radius[i]), 6),
            "label": label,
            "prompt": example.prompt,
            "text": example.response,
        }
        rows.append(row)
    return rows


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "prompt": _cell(row["prompt"])} for row in rows)
        content = text.getvalue()
    else:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.encode())


def _cell(prompt: Any) -> str | None:
    """Write chat messages as JSON in a cell."""
    return (
        prompt
        if prompt is None or isinstance(prompt, str)
        else json.dumps(prompt, ensure_ascii=False)
    )


def _table(rows: list[dict[str, Any]], ends: int) -> Table:
    """Show so many of both ends, and all where there are no more."""
    table = Table(box=None, pad_edge=False)
    for heading in ("rank", "row", "log-odds", "P(positive)", "label"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("text", no_wrap=True)
    room = max(out.width - 46, 20)  # beside the other columns
    left_out = range(ends, len(rows) - ends)
    for i, row in enumerate(rows):
        if i in left_out:
            if i == ends:
                table.add_row("", "", "…", "", "", "")
            continue
        prompt = row["prompt"]
        text = row["text"] if not isinstance(prompt, str) else f"{prompt} → {row['text']}"
        table.add_row(
            str(row["rank"]),
            str(row["row"]),
            f"{row['log_odds']:+.2f}",
            f"{bar(row['probability'])} {row['probability']:.2f}",
            "" if row["label"] is None else str(row["label"]),
            escape(shorten(text, room)),
        )
    return table


def _print_summary(rows: list[dict[str, Any]]) -> None:
    values = sorted(row["log_odds"] for row in rows)
    above = sum(value > 0 for value in values)
    out.print(
        f"{len(rows)} texts: {above} with P(positive) above 0.5; log-odds "
        f"{values[0]:+.2f} to {values[-1]:+.2f}, median {median(values):+.2f}."
    )


def _print_certificate(scores: "Scores") -> None:
    if scores.radius is None:
        out.print(f"No certified radius: {escape(str(scores.uncertified))}", soft_wrap=True)
        return
    radii = sorted(float(radius) for radius in scores.radius)
    out.print(
        f"Certified: no change of an activation by less than its radius takes P past 0.5; radii "
        f"{radii[0]:.3g} to {radii[-1]:.3g}, median {median(radii):.3g}.",
        soft_wrap=True,
    )


def shorten(text: str, room: int) -> str:
    """Return a text on one line of at most `room` characters."""
    line = " ".join(text.split())
    return line if len(line) <= room else f"{line[: room - 1]}…"


def _print_quality(quality: "Detection") -> None:
    groups = quality.groups
    rows = quality.positive + quality.negative
    resampled = "" if groups == rows else f", {groups} groups drawn as wholes"
    out.print(
        f"AUC {_interval(quality.auc)}, log-loss {_interval(quality.log_loss)} (chance 0.693), "
        f"calibration error {_interval(quality.ece)}; n = {quality.positive} positive + "
        f"{quality.negative} negative{resampled}; 95 % bootstrap intervals, which hold for texts "
        f"like these if the steering has seen none of them."
    )


def _print_threshold(level: "Threshold") -> None:
    out.print(
        f"Alarm above log-odds {level.log_odds:+.4g} (P {level.probability:.4g}): false positives "
        f"{_interval(level.false_positives)} of {level.false_positives.n}, recall "
        f"{_interval(level.recall)} of {level.recall.n}. Chosen on these texts: check it on others."
    )


def _interval(value: "Interval") -> str:
    return escape(f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]")


def _plain(value: Any) -> Any:
    """Convert named tuples to JSON objects."""
    if hasattr(value, "_asdict"):
        return {key: _plain(each) for key, each in value._asdict().items()}
    return value
