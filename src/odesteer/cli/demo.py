"""`odesteer demo`: a real model, steered, on this machine."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from odesteer.cli import library, options
from odesteer.cli.console import out, progress, say, teaching_errors
from odesteer.cli.inspect import layer_table
from odesteer.cli.report import main_table, report_json

if TYPE_CHECKING:
    from odesteer.evaluation.report import Report


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
    result = library.demo.run(language_model, tokenizer, output, progress)
    if as_json:
        typer.echo(report_json([result.report], [result.page]))
        return
    out.print(layer_table({str(i): q._asdict() for i, q in result.layers.items()}, result.layer))
    out.print(_texts(result.report))
    out.print(main_table(result.report))
    for sentence in result.report.sentences:
        out.print(f"- {sentence}", markup=False)
    out.print(
        f"Open [bold]{result.page}[/] for more texts and figures. The steerings are beside it; try:"
    )
    out.print(
        f'  odesteer generate {model} "How was your day?" '
        f"-s {output / 'steerings' / 'odesteer'} --angle 0.06 --compare",
        soft_wrap=True,
    )


def _texts(report: "Report") -> Table:
    """Tabulate the two prompts whose text ODESteer changed most at the middle dose."""
    run, shown = report.run, len(report.run.answers["none"])
    middle = str(library.demo.DOSES[1])
    beside = next(
        each for each in report.texts if (each.label, each.setting) == ("ODESteer", middle)
    )
    chosen = [pair.prompt for pair in beside.pairs[:2]]
    table = Table(
        title=f"Greedy generations on unseen prompts: of {shown}, the two that ODESteer changed "
        f"most ({beside.setting})",
        show_lines=True,
    )
    table.add_column("", style="bold")
    for prompt in chosen:
        table.add_column(escape(prompt), overflow="fold", ratio=1)
    for line in report.main.lines:
        texts = {answer.prompt: answer.generation or "" for answer in run.answers[line.id]}
        table.add_row(
            f"{line.label}\n{line.setting}".strip(),
            *[escape(texts[prompt]) for prompt in chosen],
            style="cyan" if line.method == "odesteer" else None,
        )
    return table
