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
from odesteer.testing.suite import checks as _checks  # noqa: F401  fills CHECKS
from odesteer.testing.suite.architectures import ARCHITECTURES
from odesteer.testing.suite.checks import CHECKS
from odesteer.testing.suite.testbed import Adapter, NotOffered, Testbed, Unsteered

Outcome = Literal["pass", "fail", "not offered", "not possible"]


@dataclass(frozen=True)
class Result:
    """Result of one check on one architecture.

    Attributes:
        architecture, check: their names.
        outcome: "pass", "fail", "not offered" by the library, or "not possible": the
            unsteered model does not do it either.
        reason: of any outcome but "pass".
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
    check_name: str

    @property
    def name(self) -> str:
        return f"{self.check_name}-{self.architecture}".replace(" ", "_")

    def run(self) -> Result:
        """Return the result; an error is a result too."""
        impossible = _control(self.architecture, self.check_name)
        return self._result("not possible", impossible) if impossible else self._steered()

    def check(self) -> None:
        """Fail or skip the current pytest test, with the reason.

        The unsteered model only excuses a failure, so it is not run where the library passes.
        """
        import pytest

        excused = self.check_name in ARCHITECTURES[self.architecture].excuses
        with deterministic():
            result = self.run() if excused else self._steered()
            if result.outcome == "fail":
                impossible = _control(self.architecture, self.check_name)
                result = self._result("not possible", impossible) if impossible else result
        if result.outcome == "fail":
            pytest.fail(f"{result.reason}\n{CHECKS[self.check_name].question}", pytrace=False)
        if result.outcome != "pass":
            pytest.skip(f"{result.outcome}: {result.reason}")

    def _steered(self) -> Result:
        """Run the check of the library, whatever the unsteered model does."""
        if self.check_name in self.adapter.unclaimed:
            return self._result("not offered", self.adapter.unclaimed[self.check_name])
        try:
            CHECKS[self.check_name].run(Testbed(ARCHITECTURES[self.architecture], self.adapter))
        except NotOffered as reason:
            return self._result("not offered", str(reason))
        except Exception as error:
            return self._result("fail", _describe(error))
        return self._result("pass", "")

    def _result(self, outcome: Outcome, reason: str) -> Result:
        return Result(self.architecture, self.check_name, outcome, reason)


def cases(
    adapter: Adapter,
    architectures: Iterable[str] | None = None,
    checks: Iterable[str] | None = None,
) -> list[Case]:
    """Return every check on every architecture, or those named.

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
    """Run all cases in order; `progress` is called with the number done."""
    results = []
    with deterministic():
        for case in cases:
            results.append(case.run())
            if progress is not None:
                progress(len(results))
    return results


def load_adapter(path: str) -> Adapter:
    """Import the adapter that "package.module:Class" names.

    Raises:
        ValueError: if it does not exist, or is no adapter.
    """
    module, _, name = path.partition(":")
    try:
        adapter: Any = getattr(import_module(module), name)()
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"No adapter at '{path}': {error}. Give package.module:Class, a subclass of "
            f"odesteer.testing.Adapter that takes no arguments."
        ) from None
    if not isinstance(adapter, Adapter):
        raise ValueError(f"'{path}' makes a {type(adapter).__name__}, which is no Adapter.")
    return adapter


@contextmanager
def deterministic() -> Iterator[None]:
    """Use one thread: sums in one order, and tiny models run faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _control(architecture: str, check: str) -> str:
    """Return why the unsteered model fails a check; empty if it does not."""
    excuse = ARCHITECTURES[architecture].excuses.get(check)
    if excuse is not None:
        return excuse
    try:
        CHECKS[check].run(Testbed(ARCHITECTURES[architecture], Unsteered()))
    except Exception as error:
        return _describe(error)
    return ""


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, AssertionError):
        return lines[0]
    last = traceback.extract_tb(error.__traceback__)[-1]
    location = f"{Path(last.filename).name}:{last.lineno}"
    return f"{type(error).__name__}: {lines[0]} ({location})"


Runs = Mapping[str, Sequence[Result]]  # by library


def rows(runs: Runs) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (check, its question, a cell for each library), the last row over all checks.

    A cell: architectures passed / of those possible; a dash if the library does not offer it.
    """
    names = dict.fromkeys(result.check for results in runs.values() for result in results)
    for name in names:
        cells = [_cell([r for r in results if r.check == name]) for results in runs.values()]
        yield name, " ".join(CHECKS[name].question.split()), cells
    yield "all", "", [_cell(results) for results in runs.values()]


def table(runs: Runs) -> str:
    """Return the rows as Markdown."""
    lines = [f"| check | | {' | '.join(runs)} |", "|---|---|" + "---|" * len(runs)]
    lines += [
        f"| {name} | {question} | {' | '.join(cells)} |" for name, question, cells in rows(runs)
    ]
    return "\n".join(lines)


def report(runs: Runs) -> str:
    """Return Markdown: the table, the failures, and the checks that were not possible."""
    failures = [
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
    if failures:
        parts.append(
            "\n".join(["| wrong | check | architecture | |", "|---|---|---|---|", *failures])
        )
    if impossible:
        head = ["| not possible without steering | architecture | |", "|---|---|---|"]
        parts.append("\n".join([*head, *impossible]))
    return "\n\n".join(parts) + "\n"


def _cell(results: Sequence[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    possible = counts["pass"] + counts["fail"]
    return f"{counts['pass']} / {possible}" if possible else "–"


def _plain(reason: str) -> str:
    return reason.replace("|", "/")
