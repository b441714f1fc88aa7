"""Console output shared by all commands: errors, progress, doses."""

import functools
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from odesteer.ode import Dose

# Results go to stdout and everything else to stderr, so that output can be piped.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

STOPPED = 130  # what shells say of a command that Ctrl-C ended: 128 + SIGINT

F = TypeVar("F", bound=Callable[..., Any])


def teaching_errors(command: F) -> F:
    """Bad input ends in one line on stderr and exit code 2; ODESTEER_DEBUG=1 shows the trace."""

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
    """Let warnings be a line for people; where in the code they come from says nothing to them."""
    show = warnings.showwarning

    def shown(message: Warning | str, category: type[Warning], *place: Any) -> None:
        # Deprecations and the like are for developers, and stay as they are.
        if category in (UserWarning, RuntimeWarning) and not os.environ.get("ODESTEER_DEBUG"):
            warn(message)
        else:
            show(message, category, *place)

    warnings.showwarning = shown  # type: ignore[assignment]


def any_encoding() -> None:
    """Print "?" for what a terminal or pipe of another encoding than UTF-8 cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def plain(error: object) -> str:
    """On one line, and nothing in it is markup."""
    from rich.markup import escape

    return escape(" ".join(str(error).split()) or type(error).__name__)


def say(line: str) -> None:
    """A line about what happens now, on stderr."""
    tell(f"[dim]{line}[/]")


def warn(line: object) -> None:
    """A line that somebody should read, on stderr."""
    tell(f"[yellow]warning:[/] {plain(line)}")


def tell(markup: str) -> None:
    """A line on stderr: wrapped between words on a terminal, whole in a file."""
    err.print(markup, soft_wrap=not err.is_terminal)


def bar(share: float, width: int = 8) -> str:
    """A share of 0 to 1 to look at.

    >>> bar(0.75)
    '▕██████░░▏'
    """
    full = round(width * min(max(share, 0.0), 1.0)) if share == share else 0
    return f"▕{'█' * full}{'░' * (width - full)}▏"


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with the time left, on stderr; yields a callback of (done, total)."""
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
    """Says, to whoever stops the command with Ctrl-C, what is left and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        tell(f"Stopped. {plain(then)}")
        raise typer.Exit(STOPPED) from None


def goes_on(folder: Path) -> AbstractContextManager[None]:
    """`stoppable`, for what goes on from what is in a directory."""
    return stoppable(f"What was done is in {folder}; the same command goes on from there.")


def reading(cache: bool) -> AbstractContextManager[None]:
    """`stoppable`, for what reads activations and then writes a steering."""
    if not cache:
        return stoppable("Nothing was written; the same command begins anew.")
    return stoppable(
        "Nothing was written. The activations that were read are kept (`odesteer cache ls`): the "
        "same command goes on from them."
    )


def parse_dose(
    strength: float | None, angle: float | None, target: float | None
) -> "Dose | float | None":
    """The dose of --strength, --angle and --target; None where none was given.

    Raises:
        ValueError: if strength and angle are both given, or a target has no budget.
    """
    from odesteer.ode import Angle, Target

    if strength is not None and angle is not None:
        raise ValueError("--strength and --angle both say how far; give one of them.")
    amount = Angle(angle) if angle is not None else strength
    if target is None:
        return amount
    if amount is None:
        raise ValueError(
            "--target stops as soon as the probability is reached and needs a budget: add "
            "--angle 0.6, say."
        )
    return Target(target, budget=amount)
