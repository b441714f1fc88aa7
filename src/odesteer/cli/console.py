"""Console output shared by all commands: errors, progress, doses."""

import functools
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

import odesteer as ods

if TYPE_CHECKING:
    from odesteer.ode import Dose

# Results go to stdout and everything else to stderr, so that output can be piped.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

STOPPED = 130  # what shells say of a command that Ctrl-C ended: 128 + SIGINT

F = TypeVar("F", bound=Callable[..., Any])


def teaching_errors(command: F) -> F:
    """Report bad input on one line, with exit code 2; ODESTEER_DEBUG=1 shows the trace."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (ValueError, OSError, ImportError) as error:
            if os.environ.get("ODESTEER_DEBUG"):
                raise
            tell(f"[bold red]error:[/] {plain(error)}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            err.print("Stopped. What was written is whole; the same command begins anew.")
            raise typer.Exit(STOPPED) from None

    return run  # type: ignore[return-value]


def one_line_warnings() -> None:
    """Show warnings on one line, without the place in the code that they come from."""
    show = warnings.showwarning

    def show_line(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        # Deprecations and the like are for developers, and are shown as usual.
        if category in (UserWarning, RuntimeWarning) and not os.environ.get("ODESTEER_DEBUG"):
            warn(message)
        else:
            show(message, category, *rest)

    warnings.showwarning = show_line  # type: ignore[assignment]


def any_encoding() -> None:
    """Print "?" for characters that the encoding of a terminal or pipe lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def plain(error: object) -> str:
    """Return a message on one line, with markup escaped."""
    return escape(" ".join(str(error).split()) or type(error).__name__)


def say(line: str) -> None:
    """Print a status line on stderr."""
    tell(f"[dim]{line}[/]")


def warn(line: object) -> None:
    """Print a warning on stderr."""
    tell(f"[yellow]warning:[/] {plain(line)}")


def tell(markup: str) -> None:
    """Print a line on stderr: wrapped between words on a terminal, whole in a file."""
    err.print(markup, soft_wrap=not err.is_terminal)


def show_answers(prompt: str, answers: Mapping[str, str]) -> None:
    """Print a prompt and answers to it, each as prose under its label."""
    out.print(f"\n[bold]{escape(prompt)}[/]")
    for label, text in answers.items():
        out.print(f"[dim]{escape(label)}[/]")
        out.print(Padding(escape(" ".join(text.split())), (0, 0, 0, 2)))


def bar(share: float, width: int = 8) -> str:
    """Draw a share between 0 and 1.

    >>> bar(0.75)
    '▕██████░░▏'
    """
    full = round(width * min(max(share, 0.0), 1.0)) if share == share else 0
    return f"▕{'█' * full}{'░' * (width - full)}▏"


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr, and yield a callback of (done, total)."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        # In a file a bar would be an empty line.
        disable=not err.is_terminal,
    ) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def stoppable(then: str) -> Iterator[None]:
    """Say, when Ctrl-C stops the command, what is left and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        tell(f"Stopped. {plain(then)}")
        raise typer.Exit(STOPPED) from None


def goes_on(folder: Path) -> AbstractContextManager[None]:
    """Return `stoppable` for a command that can be continued from a directory."""
    return stoppable(f"What was done is in {folder}; the same command goes on from there.")


def reading(cache: bool) -> AbstractContextManager[None]:
    """Return `stoppable` for a command that reads activations and writes a steering."""
    if not cache:
        return stoppable("Nothing was written; the same command begins anew.")
    return stoppable(
        "Nothing was written. The activations that were read are kept (`odesteer cache ls`): the "
        "same command goes on from them."
    )


def parse_dose(
    strength: float | None, angle: float | None, target: float | None
) -> "Dose | float | None":
    """Return the dose of --strength, --angle and --target, or None.

    Raises:
        ValueError: if strength and angle are both given, or a target has no budget.
    """
    if strength is not None and angle is not None:
        raise ValueError("--strength and --angle both say how far; give one of them.")
    amount = ods.Angle(angle) if angle is not None else strength
    if target is None:
        return amount
    if amount is None:
        raise ValueError(
            "--target stops as soon as the probability is reached and needs a budget: add "
            "--angle 0.6, say."
        )
    return ods.Target(target, budget=amount)


def parse_kl(kl: str | None, dose: "Dose | float | None") -> "ods.KL | None":
    """Return the budget of --kl, or None.

    Raises:
        ValueError: for a budget that is none, or a dose beside it.
    """
    if kl is None:
        return None
    if dose is not None:
        raise ValueError("--kl and --strength, --angle or --target all say how far; give one.")
    try:
        return ods.KL(float(kl))
    except ValueError:
        return ods.KL(kl)
