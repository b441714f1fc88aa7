"""Table of commands."""

from collections.abc import Callable
from typing import Annotated

import typer

import odesteer as ods
from odesteer.cli import (
    cache,
    chat,
    conformance,
    demo,
    doctor,
    evaluate,
    exchange,
    fit,
    inspect,
    methods,
    pairs,
    playground,
    report,
    score,
    serve,
)
from odesteer.cli.console import any_encoding, one_line_warnings

EXAMPLES = """
Steer language models by solving an ODE on their activations.

Examples:

    odesteer demo

    odesteer fit smollm2 pairs.jsonl --out truthful

    odesteer tune smollm2 pairs.jsonl --out truthful

    odesteer generate smollm2 "How are you?" --steering truthful --compare

    odesteer playground

    odesteer serve smollm2 --steering truthful=truthful

    odesteer run experiments/smollm2-truthfulqa-mc.toml --dry-run

Exit codes: 0 done, 1 failed, 2 bad input (one line says what to do), 130 stopped by Ctrl-C.
MODEL is a local directory, a GGUF file, a Hub model, or smollm2, which works offline.
"""

app = typer.Typer(
    help=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

# By purpose, in the order in which people need them.
LEARN, USE, MEASURE, LOOK = (
    "Learn a steering",
    "Use a steering",
    "Measure what it does",
    "Look around",
)
_PANELS: dict[str, dict[str, Callable[..., None]]] = {
    LEARN: {
        "fit": fit.fit,
        "tune": fit.tune,
        "pairs": pairs.pairs,
        "extract": cache.extract,
    },
    USE: {
        "generate": chat.generate,
        "chat": chat.chat,
        "playground": playground.playground,
        "serve": serve.serve,
        "score": score.score,
        "inspect": inspect.inspect,
        "export": exchange.export,
        "import": exchange.import_,
        "push": exchange.push,
        "pull": exchange.pull,
    },
    MEASURE: {
        "run": report.run,
        "report": report.report,
        "eval": evaluate.evaluate,
        "conformance": conformance.conformance,
    },
    LOOK: {
        "demo": demo.demo,
        "behaviours": pairs.behaviours,
        "methods": methods.methods,
        "doctor": doctor.doctor,
    },
}
# Arguments after `--` belong to vLLM.
_SETTINGS = {"serve": {"allow_extra_args": True, "ignore_unknown_options": False}}
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel, context_settings=_SETTINGS.get(_name))(_command)
app.add_typer(cache.app, name="cache", rich_help_panel=LOOK)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"odesteer {ods.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the `odesteer` command."""
    one_line_warnings()
    any_encoding()
    app()
