"""`odesteer chat`: a conversation with a steered model, in a terminal."""

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from odesteer.cli import options
from odesteer.cli.chat_session import COMMANDS, Conversation, Quit, Refit
from odesteer.cli.console import err, out, parse_dose, plain, progress, teaching_errors, tell
from odesteer.cli.load_steering import load_or_fit, read_contrast, with_solver

if TYPE_CHECKING:
    from odesteer.data import Contrast
    from odesteer.steering import Steering


@teaching_errors
def chat(
    model: options.Model,
    steering: options.SteeringPath = None,
    method: options.MethodNow = None,
    contrast: options.ContrastNow = None,
    columns: options.Columns = None,
    layer: options.Layer = "auto",
    strength: options.Strength = None,
    angle: options.Angle = None,
    target: options.Target = None,
    spread: options.Spread = False,
    solver: options.Solver = None,
    steps: options.Steps = None,
    positions: options.Positions = "last+generated",
    max_new_tokens: options.MaxNewTokens = 200,
    cache: options.Cache = True,
    seed: options.Seed = 0,
) -> None:
    """Chat with a steered model; dose, method and layer can be changed while talking.

    After each answer a bar shows P(positive) of its tokens, before and after they were moved.
    Ctrl-C stops an answer, Ctrl-D or /quit the chat; /help lists what else there is. With
    --contrast, also beside --steering, /method and /layer fit anew on those texts.

    Example: odesteer chat smollm2 -s cheerful --angle 0.2

    Example: odesteer chat smollm2 --method caa --contrast pairs.jsonl --layer 14 --angle 0.2
    """
    dose = parse_dose(strength, angle, target)
    language_model, tokenizer, one = load_or_fit(
        model,
        steering,
        method,
        contrast,
        layer,
        dose,
        spread,
        positions,
        seed,
        cache,
        columns,
        solver,
        steps,
        refits=True,
    )
    if tokenizer.chat_template is None:
        raise ValueError("Chat needs a model with a chat template; use `odesteer generate`.")
    refit: Refit | None = None
    if method is not None or contrast is not None:
        data = read_contrast(contrast, columns=columns)
        refit = fitter(language_model, tokenizer, data, solver, steps, seed, cache)
    conversation = Conversation(
        language_model, tokenizer, one, refit, positions, max_new_tokens=max_new_tokens
    )
    err.print(f"[dim]{escape(conversation.about())}\n{'  '.join(COMMANDS)}[/]")
    talk(conversation, reader(), wrapped(_write, out.width) if out.is_terminal else _write)


def talk(conversation: Conversation, read: Callable[[], str], write: Callable[[str], None]) -> None:
    """Read lines until there are none; answers go to `write`, everything about them to stderr."""
    while True:
        try:
            line = read().strip()
        except (EOFError, KeyboardInterrupt):
            err.print()
            return
        if not line:
            continue
        try:
            if line.startswith("/"):
                said = conversation.command(line)
            else:
                said = conversation.answer(line, write)
        except Quit:
            return
        except (ValueError, OSError) as error:
            tell(f"[red]{plain(error)}[/]")
        except KeyboardInterrupt:  # stops the answer, or what is fitted, and not the chat
            err.print("\n[dim]Stopped; all is as it was before.[/]")
        else:
            tell(f"[dim]{escape(said)}[/]")


def fitter(
    model: Any,
    tokenizer: Any,
    data: "Contrast",
    solver: str | None,
    steps: int | None,
    seed: int,
    cache: bool,
) -> Refit:
    """Fits a method at a layer on the same texts."""

    def refit(method: str, layer: Any) -> "Steering":
        import odesteer as ods

        with progress(f"Fitting {method}") as callback:
            fitted = ods.fit(
                model,
                tokenizer,
                data,
                method=method,
                layer=layer,
                seed=seed,
                progress=callback,
                cache=cache,
            )
        return with_solver(fitted, solver, steps)

    return refit


def reader() -> Callable[[], str]:
    """Lines from the terminal, with history and completion, or from a pipe, without a prompt."""
    if not sys.stdin.isatty():
        return input
    prompt = "you> "
    with suppress(ImportError):  # Windows has no readline
        import readline

        readline.set_completer(completion)
        readline.set_completer_delims("")
        readline.parse_and_bind("tab: complete")
    if out.is_terminal and out.color_system is not None:
        # Between \x01 and \x02 is what takes no room, or readline counts it as typed.
        prompt = "\x01\x1b[1;36m\x02you>\x01\x1b[0m\x02 "
    return lambda: input(prompt)


def completion(text: str, state: int) -> str | None:
    """The `state`-th line that begins with what was typed: commands, and names of methods."""
    lines = [
        *(f"{each.split()[0]}{' ' if ' ' in each else ''}" for each in COMMANDS),
        *(f"/method {name}" for name in options.METHODS),
    ]
    found = [line for line in lines if text.startswith("/") and line.startswith(text)]
    return found[state] if state < len(found) else None


def wrapped(write: Callable[[str], None], width: int) -> Callable[[str], None]:
    """`write`, with lines that end between words; it is given whole words."""
    column = 0

    def write_wrapped(text: str) -> None:
        nonlocal column
        for piece in re.findall(r"\n|[^\S\n]+|\S+", text):
            if piece == "\n":
                column = 0
            elif not piece.isspace() and 0 < column and column + len(piece) > width:
                write("\n")
                column = 0
            write(piece)
            column += 0 if piece == "\n" else len(piece)

    return write_wrapped


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
