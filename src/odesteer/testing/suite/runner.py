"""Runner of the conformance suite and its table.

Each check runs on each architecture, first with the unsteered model: what the model itself
cannot do (a recurrent model has no static cache) says nothing about a library.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch

from odesteer.common.registry import lookup
from odesteer.testing.suite.adapter import Adapter, NotOffered, Unsteered
from odesteer.testing.suite.architectures import ARCHITECTURES
from odesteer.testing.suite.checks import CHECKS
from odesteer.testing.suite.testbed import Testbed

Outcome = Literal["pass", "fail", "not offered", "not possible"]


@dataclass(frozen=True)
class Result:
    """What one check on one architecture showed.

    Attributes:
        architecture, check: their names.
        outcome: "pass", "fail", "not offered" by the library, or "not possible": the
            unsteered model does not do it either.
        reason: of all but "pass".
    """

    architecture: str
    check: str
    outcome: Outcome
    reason: str = ""


@dataclass(frozen=True)
class Case:
    """One check of one library on one architecture."""

    adapter: Adapter
    architecture: str
    question: str

    @property
    def name(self) -> str:
        return f"{self.question}-{self.architecture}".replace(" ", "_")

    def run(self) -> Result:
        """Never raises: what went wrong is the result."""
        impossible = _control(self.architecture, self.question)
        return self._result("not possible", impossible) if impossible else self._steered()

    def check(self) -> None:
        """For pytest: fails, or skips what is not offered or not possible, with the reason.

        The unsteered model only excuses a failure, so it is not run where the library passes.
        """
        import pytest

        excused = self.question in ARCHITECTURES[self.architecture].excuses
        with deterministic():
            result = self.run() if excused else self._steered()
            if result.outcome == "fail":
                impossible = _control(self.architecture, self.question)
                result = self._result("not possible", impossible) if impossible else result
        if result.outcome == "fail":
            pytest.fail(f"{result.reason}\n{CHECKS[self.question].question}", pytrace=False)
        if result.outcome != "pass":
            pytest.skip(f"{result.outcome}: {result.reason}")

    def _steered(self) -> Result:
        """The result of the check of the library, whatever the unsteered model does."""
        if self.question in self.adapter.unclaimed:
            return self._result("not offered", self.adapter.unclaimed[self.question])
        try:
            CHECKS[self.question].run(Testbed(ARCHITECTURES[self.architecture], self.adapter))
        except NotOffered as reason:
            return self._result("not offered", str(reason))
        except Exception as error:
            return self._result("fail", _said(error))
        return self._result("pass", "")

    def _result(self, outcome: Outcome, reason: str) -> Result:
        return Result(self.architecture, self.question, outcome, reason)


def cases(
    adapter: Adapter,
    architectures: Iterable[str] | None = None,
    checks: Iterable[str] | None = None,
) -> list[Case]:
    """Every check on every architecture, or those named.

    Raises:
        ValueError: for a name that is not known.
    """
    models = [*ARCHITECTURES] if architectures is None else list(architectures)
    names = [*CHECKS] if checks is None else list(checks)
    for model in models:
        lookup(ARCHITECTURES, model, "architecture")
    for name in names:
        lookup(CHECKS, name, "check")
    return [
        Case(adapter, model, name)
        for model in models
        for name in names
        if not CHECKS[name].only or model in CHECKS[name].only
    ]


def run(cases: Iterable[Case], progress: Callable[[int], None] | None = None) -> list[Result]:
    """The results of all cases, in order; `progress` is called with how many are done."""
    results = []
    with deterministic():
        for case in cases:
            results.append(case.run())
            if progress is not None:
                progress(len(results))
    return results


def load_adapter(path: str) -> Adapter:
    """The adapter that "package.module:Class" names.

    Raises:
        ValueError: if it is not there, or is no adapter.
    """
    module, _, name = path.partition(":")
    try:
        made: Any = getattr(import_module(module), name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"No adapter at '{path}': {error}. Give package.module:Class, a subclass of "
            f"odesteer.testing.Adapter that takes no arguments."
        ) from None
    if not isinstance(made, Adapter):
        raise ValueError(f"'{path}' makes a {type(made).__name__}, which is no Adapter.")
    return made


@contextmanager
def deterministic() -> Iterator[None]:
    """One thread: sums in one order, and tiny models run faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _control(architecture: str, check: str) -> str:
    """Why the unsteered model fails a check; empty if it does not."""
    excuse = ARCHITECTURES[architecture].excuses.get(check)
    if excuse is not None:
        return excuse
    try:
        CHECKS[check].run(Testbed(ARCHITECTURES[architecture], Unsteered()))
    except Exception as error:
        return _said(error)
    return ""


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, AssertionError):
        return lines[0]
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(last.filename).name}:{last.lineno}"
    return f"{type(error).__name__}: {lines[0]} ({place})"


Runs = Mapping[str, Sequence[Result]]  # by library


def rows(runs: Runs) -> Iterator[tuple[str, str, list[str]]]:
    """(check, its question, a cell a library), the last row over all checks.

    A cell: architectures right / of those possible; a dash where the library does not offer it.
    """
    names = dict.fromkeys(result.check for results in runs.values() for result in results)
    for name in names:
        cells = [_cell([r for r in results if r.check == name]) for results in runs.values()]
        yield name, " ".join(CHECKS[name].question.split()), cells
    yield "all", "", [_cell(results) for results in runs.values()]


def table(runs: Runs) -> str:
    """The rows as Markdown."""
    lines = [f"| check | | {' | '.join(runs)} |", "|---|---|" + "---|" * len(runs)]
    lines += [
        f"| {name} | {question} | {' | '.join(cells)} |" for name, question, cells in rows(runs)
    ]
    return "\n".join(lines)


def report(runs: Runs) -> str:
    """Markdown: the table, what was wrong, and what was not asked of anybody and why."""
    wrong = [
        f"| {name} | {r.check} | {r.architecture} | {_plain(r.reason)} |"
        for name, results in runs.items()
        for r in results
        if r.outcome == "fail"
    ]
    impossible = dict.fromkeys(
        f"| {r.check} | {r.architecture} | {_plain(r.reason)} |"
        for results in runs.values()
        for r in results
        if r.outcome == "not possible"
    )
    parts = [table(runs)]
    if wrong:
        parts.append("\n".join(["| wrong | check | architecture | |", "|---|---|---|---|", *wrong]))
    if impossible:
        head = ["| not possible without steering | architecture | |", "|---|---|---|"]
        parts.append("\n".join([*head, *impossible]))
    return "\n\n".join(parts) + "\n"


def _cell(results: Sequence[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    asked = counts["pass"] + counts["fail"]
    return f"{counts['pass']} / {asked}" if asked else "–"


def _plain(reason: str) -> str:
    return reason.replace("|", "/")
