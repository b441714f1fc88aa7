"""Which commands are there?"""

from typing import Annotated

import typer

from odesteer.cli import (
    cache,
    conformance,
    demo,
    evaluate,
    extract,
    fit,
    gallery,
    generate,
    inspect,
    methods,
    playground,
    report,
    run,
    serve,
    tune,
)
from odesteer.cli.console import one_line_warnings

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

Exit codes: 0 done, 1 failed, 2 bad input. MODEL is a local directory, a Hub model, or smollm2.
"""

app = typer.Typer(
    help=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(extract.extract)
app.command()(fit.fit)
app.command()(tune.tune)
app.command()(generate.generate)
app.command()(generate.chat)
app.command()(playground.playground)
app.command()(inspect.inspect)
app.command()(methods.methods)
app.command()(gallery.gallery)
app.command("eval")(evaluate.evaluate)
app.command()(run.run)
app.command()(report.report)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": False})(
    serve.serve
)
app.command()(conformance.conformance)
app.add_typer(cache.app, name="cache")


def _version(wanted: bool) -> None:
    if wanted:
        from odesteer import __version__

        typer.echo(f"odesteer {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The `odesteer` command."""
    one_line_warnings()
    app()
