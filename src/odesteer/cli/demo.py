"""`odesteer demo`: a real model, steered, on this machine."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from odesteer.cli import library, options
from odesteer.cli.console import out, progress, say, teaching_errors
from odesteer.cli.inspect import layer_table

if TYPE_CHECKING:
    from odesteer.evaluation.demo import DemoResult


@teaching_errors
def demo(
    output: options.Directory = Path("odesteer-demo"),
    model: Annotated[
        str,
        typer.Option(help="A chat model; smollm2 works offline.", autocompletion=options.models),
    ] = "smollm2",
    as_json: options.AsJson = False,
) -> None:
    """Steer a real model and write a page with texts, numbers and figures.

    Example: odesteer demo --out my-demo
    """
    if importlib.util.find_spec("vaderSentiment") is None:
        raise ValueError("The demo judges moods with vaderSentiment: pip install 'odesteer[demo]'.")
    output.mkdir(parents=True, exist_ok=True)
    language_model, tokenizer = library.load_model(model, say)
    result = library.demo.run(language_model, tokenizer, progress)
    library.demo.draw(result, output)
    page = library.demo.write(result, output)
    for name, steering in result.steerings.items():
        steering.save_pretrained(output / "steerings" / name)
    if as_json:
        typer.echo((output / "results.json").read_text(encoding="utf-8"), nl=False)
        return
    out.print(layer_table({str(i): q._asdict() for i, q in result.layers.items()}, result.layer))
    out.print(_test_table(result))
    out.print(_texts(result))
    out.print(_effect_table(result))
    out.print(f"Open [bold]{page}[/] for all texts and figures. The steerings are beside it; try:")
    out.print(
        f'  odesteer generate {model} "How was your day?" '
        f"-s {output / 'steerings' / 'odesteer'} --angle 0.25 --compare",
        soft_wrap=True,
    )


def _test_table(result: "DemoResult") -> Table:
    table = Table(title=f"On unseen topics, layer {result.layer}")
    for heading in ("method", "AUC", "log-loss", "calibration error"):
        table.add_column(heading, justify="right")
    for name, quality in result.test_quality.items():
        table.add_row(name, *[f"{value:.3f}" for value in quality[:3]])
    return table


def _texts(result: "DemoResult") -> Table:
    table = Table(title="Greedy generations on unseen prompts", show_lines=True)
    table.add_column("", style="bold")
    # The first two prompts: because they come first, not because they look best.
    chosen = range(min(2, len(result.prompts)))
    for i in chosen:
        table.add_column(result.prompts[i], overflow="fold", ratio=1)
    for condition in result.conditions:
        table.add_row(
            f"{condition.method} {condition.dose_name}".strip(),
            *[condition.generations[i] for i in chosen],
            style="cyan" if condition.method == "odesteer" else None,
        )
    return table


def _effect_table(result: "DemoResult") -> Table:
    """Tabulate effects in 80 columns; the page has every interval."""
    table = Table(
        title=f"Mood by VADER (-1 gloomy, +1 bright), n = {len(result.prompts)}, "
        "change with 95 % interval"
    )
    headings: tuple[tuple[str, Callable[..., str]], ...] = (
        ("dose", lambda c: f"{c.dose:g}" if c.dose else ""),
        ("mood", lambda c: f"{c.effect[0]:+.2f}"),
        ("change", lambda c: "" if c.method == "none" else _interval(c.difference)),
        ("perplexity", lambda c: f"{c.perplexity:.1f}"),
        ("P(wanted)", lambda c: "" if c.before is None else f"{c.before:.2f} -> {c.after:.2f}"),
    )
    table.add_column("method", style="bold", no_wrap=True)
    for heading, _ in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for condition in result.conditions:
        table.add_row(
            condition.method,
            *[cell(condition) for _, cell in headings],
            style="cyan" if condition.method == "odesteer" else None,
        )
    return table


def _interval(values: tuple[float, float, float, int]) -> str:
    mean, low, high, _ = values
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
