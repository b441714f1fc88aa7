"""`odesteer pairs` and `odesteer behaviours`: contrasts that are written, and those at hand."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

import odesteer as ods
from odesteer.cli import library, options
from odesteer.cli.console import (
    out,
    progress,
    say,
    show_answers,
    stoppable,
    teaching_errors,
    warn,
)
from odesteer.common.catalogue import BEHAVIOURS

SHOWN = 3  # pairs


@teaching_errors
def pairs(
    description: Annotated[
        str | None,
        typer.Argument(
            metavar="[DESCRIPTION]",
            help='How the positive answers are written, such as "speaks like a sea captain".',
        ),
    ] = None,
    *,
    writer: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="MODEL|URL",
            help="Who writes: a chat model as for `odesteer fit`, or the address of an "
            "OpenAI-compatible server such as http://localhost:8000/v1.",
            autocompletion=options.models,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--out", "-o", help="JSONL file to write, for `odesteer fit`.")
    ] = Path("pairs.jsonl"),
    n: Annotated[int, typer.Option("--n", min=1, help="Pairs.")] = 60,
    opposite: Annotated[
        str | None,
        typer.Option(help="How the negative answers are written; by default plainly."),
    ] = None,
    trait: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Instead of a description: a trait file of persona vectors, JSON with "
            "`instruction` (`pos`, `neg`) and `questions`.",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(help="End of both instructions; empty if length is the behaviour."),
    ] = "Use one or two sentences.",
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature.")] = 0.7,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 96,
    length_ratio: Annotated[
        float,
        typer.Option(min=1.0, help="Largest ratio of the two answers' lengths, in words."),
    ] = 3.0,
    model: Annotated[
        str | None, typer.Option(help="Model of the server; by default its first.")
    ] = None,
    key_variable: Annotated[
        str, typer.Option(help="Environment variable with the server's key.")
    ] = "OPENAI_API_KEY",
    timeout: Annotated[
        float, typer.Option(min=1.0, help="Seconds to wait for an answer of the server.")
    ] = 180.0,
    template: options.Template = "auto",
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Let a language model write pairs of answers that differ in a behaviour.

    A model answers everyday questions as described and plainly. What was answered is kept beside
    the file, in FILE.answers: a run that was stopped goes on, and one for more pairs asks only for
    those.

    Example: odesteer pairs "speaks like a sea captain" --with smollm2 --out sea.jsonl

    Example: odesteer pairs "is rude" --opposite "is polite" --with http://localhost:8000/v1 --n 200
    """
    if (description is None) == (trait is None):
        raise ValueError(
            'Give a description such as "speaks like a sea captain", or --from TRAIT.json'
            + (", not both." if trait else ".")
        )
    behaviour = library.Trait.from_file(trait) if trait is not None else str(description)
    then = f"What was answered is in {output}.answers; the same command goes on from there."
    with stoppable(then), progress("Writing pairs") as callback:
        written = ods.write_pairs(
            behaviour,
            writer,
            output,
            n,
            opposite=opposite,
            form=form,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            length_ratio=length_ratio,
            seed=seed,
            model=model,
            template=template.replace("\\n", "\n"),
            key_variable=key_variable,
            progress=callback,
            say=say,
            timeout=timeout,
        )
    contrast, count = written.contrast, len(written.contrast.positive)
    alike = library.alike(contrast)
    notes = [*library.confounds.confounds(contrast), *([alike] if alike else [])]
    reasons = ", ".join(f"{number} {reason}" for reason, number in written.rejected.items())
    if count < n:
        warn(f"{count} pairs of {n}: of {written.questions} questions, left out {reasons}.")
    for note in notes:
        warn(note)
    if as_json:
        out.print_json(
            data={
                "path": str(written.path),
                "model": written.model,
                "pairs": count,
                "questions": written.questions,
                "rejected": dict(written.rejected),
                "notes": notes,
            }
        )
        return
    for wanted, unwanted in list(zip(contrast.positive, contrast.negative, strict=True))[:SHOWN]:
        show_answers(str(wanted.prompt), {"+": wanted.response, "-": unwanted.response})
    out.print(
        f"\nWrote {escape(str(written.path))}: {count} pairs by {escape(written.model)}, of "
        f"{written.questions} questions" + (f" (left out: {reasons})" if reasons else ""),
        soft_wrap=True,
    )
    out.print(f"Read them, then: odesteer fit smollm2 {escape(str(written.path))} --out steering")


@teaching_errors
def behaviours(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="One behaviour, with pairs of it.",
            autocompletion=options.among(BEHAVIOURS),
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """List the packaged behaviours, or show pairs of one.

    Example: odesteer behaviours formal
    """
    if name is not None:
        contrast = library.behaviours.load(name)
        pairs = [
            {
                "prompt": str(wanted.prompt),
                "positive": wanted.response,
                "negative": unwanted.response,
            }
            for wanted, unwanted in zip(contrast.positive, contrast.negative, strict=True)
        ]
        if as_json:
            out.print_json(data={"name": name, "description": BEHAVIOURS[name][2], "pairs": pairs})
            return
        out.print(f"[bold]{name}[/]: {BEHAVIOURS[name][2]}; {len(pairs)} pairs\n")
        for pair in pairs[:SHOWN]:
            out.print(f"[dim]{escape(pair['prompt'])}[/]")
            out.print(f"  [green]+[/] {escape(pair['positive'])}")
            out.print(f"  [red]-[/] {escape(pair['negative'])}\n")
        out.print(f"odesteer fit smollm2 --behaviour {name} --out {name}")
        return
    rows = {name: library.behaviours.load(name, 2).positive[0].response for name in BEHAVIOURS}
    if as_json:
        out.print_json(
            data=[
                {"name": name, "description": BEHAVIOURS[name][2], "example": example}
                for name, example in rows.items()
            ]
        )
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, example in rows.items():
        table.add_row(name, f"{BEHAVIOURS[name][2]}\n[dim]{escape(example)}[/]")
    out.print(table)
    out.print("\nPairs of one: [bold]odesteer behaviours NAME[/]")
