"""Console output shared by all commands: errors, progress, doses."""

import functools
import io
import math
import os
import sys
import time
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
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

import odesteer as ods

if TYPE_CHECKING:
    from odesteer.ode import Dose

# Results go to stdout and everything else to stderr, so that output can be piped.
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

EVERY = 10.0  # seconds between lines of progress in a pipe
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


class Count(ProgressColumn):
    """Column of a bar: done of all, or percent, once both are known."""

    def __init__(self, percent: bool):
        self._percent = percent
        super().__init__()

    def render(self, task: Task) -> Text:
        """Return what the column shows of a task."""
        return Text("" if task.total is None else count(task.completed, task.total, self._percent))


class Lines:
    """Progress where a bar cannot be drawn: a line on stderr every `EVERY` seconds.

    Args:
        label, percent: see `progress`.
        clock: returns seconds.
    """

    def __init__(self, label: str, percent: bool, clock: Callable[[], float] = time.monotonic):
        self._label, self._percent, self._clock = label, percent, clock
        self._told = clock()
        self._total = self._done = -1

    def __call__(self, done: int, total: int) -> None:
        """Print done, total and the time left, if the last line was long enough ago."""
        now = self._clock()
        if total != self._total or done < self._done:  # another stage, or work that was done before
            self._since, self._first = now, done
        self._done, self._total = done, total
        if now - self._told < EVERY or done >= total:
            return
        self._told = now
        line = f"{self._label}: {count(done, total, self._percent)}"
        if done > self._first:
            rate = (now - self._since) / (done - self._first)
            line += f", about {duration(rate * (total - done))} left"
        say(plain(line))


def count(done: float, total: float, percent: bool) -> str:
    """Return done of all in numbers, or in percent.

    >>> count(30, 120, False), count(30, 120, True)
    ('30 of 120', '25 %')
    """
    return f"{100 * done / max(total, 1):.0f} %" if percent else f"{done:.0f} of {total:.0f}"


def duration(seconds: float) -> str:
    """Return a time in words, rounded up.

    >>> duration(42.0), duration(100.0), duration(7000.0)
    ('50 seconds', '2 minutes', '2 hours')
    """
    for unit, size, least in (("hours", 3600.0, 1.5), ("minutes", 60.0, 1.5)):
        if seconds >= least * size:
            return f"{math.ceil(seconds / size)} {unit}"
    return f"{10 * math.ceil(seconds / 10)} seconds"


@contextmanager
def progress(label: str, percent: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show progress on stderr, and yield a callback of (done, total).

    A terminal has a bar; a pipe or file a line now and then, and none for what is quick.

    Args:
        label: what is done.
        percent: where the numbers are in no unit that a person counts in.
    """
    if not err.is_terminal:
        yield Lines(label, percent)
        return
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        Count(percent),
        TimeRemainingColumn(),
        console=err,
        transient=True,
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
    strength: float | None,
    angle: float | None,
    target: float | None,
    coverage: float | None = None,
) -> "Dose | float | None":
    """Return the dose of --strength, --angle, --target and --coverage, or None.

    Raises:
        ValueError: if strength and angle are both given, a target has no budget, or a coverage no
            target.
    """
    if strength is not None and angle is not None:
        raise ValueError("--strength and --angle both say how far; give one of them.")
    amount = ods.Angle(angle) if angle is not None else strength
    if target is None:
        if coverage is not None:
            raise ValueError("--coverage is of a target: add --target 0.9, say.")
        return amount
    if amount is None:
        raise ValueError(
            "--target stops as soon as the probability is reached and needs a budget: add "
            "--angle 0.6, say."
        )
    return ods.Target(target, budget=amount, coverage=coverage)


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
