"""Progress: a bar on a terminal, and lines now and then in a pipe or file."""

import io

import pytest
from rich.console import Console

from odesteer.cli import console
from odesteer.cli.console import Lines, duration, progress


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What goes to a stderr that is a file."""
    file = io.StringIO()
    monkeypatch.setattr(console, "err", Console(file=file, width=80))
    return file


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def work(lines: Lines, clock: Clock, steps: range, total: int, seconds: float) -> None:
    for done in steps:
        lines(done, total)
        clock.now += seconds


def test_what_is_quick_prints_nothing(printed: io.StringIO) -> None:
    clock = Clock()
    work(Lines("Reading texts", False, clock), clock, range(10), 9, 1.0)
    assert printed.getvalue() == ""


def test_what_is_long_prints_a_line_every_ten_seconds(printed: io.StringIO) -> None:
    clock = Clock()
    work(Lines("Reading texts", False, clock), clock, range(31), 30, 1.0)
    assert printed.getvalue().splitlines() == [
        "Reading texts: 10 of 30, about 20 seconds left",
        "Reading texts: 20 of 30, about 10 seconds left",
    ]


def test_the_time_left_is_that_of_the_stage_and_of_this_process(printed: io.StringIO) -> None:
    clock = Clock()
    lines = Lines("Tuning", True, clock)
    work(lines, clock, range(0, 50, 10), 100, 1.0)  # a quick stage
    work(lines, clock, range(900, 904), 1000, 12.0)  # 900 were done before
    assert printed.getvalue().splitlines() == [
        "Tuning: 90 %, about 20 minutes left",
        "Tuning: 90 %, about 20 minutes left",
        "Tuning: 90 %, about 20 minutes left",
    ]


def test_a_pipe_gets_lines_and_a_terminal_a_bar(
    printed: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress("Reading") as callback:
        assert isinstance(callback, Lines)
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr(console, "err", screen)
    with progress("Tuning", percent=True) as callback:
        callback(437, 1000)
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "44 %" in shown and "?" not in shown.replace("\x1b[?25", "")


def test_a_time_is_said_in_the_unit_that_a_person_would_use() -> None:
    assert [duration(t) for t in (1, 89, 91, 5000, 5401)] == [
        "10 seconds",
        "90 seconds",
        "2 minutes",
        "84 minutes",
        "2 hours",
    ]
