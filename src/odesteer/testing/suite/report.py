"""Table of conformance results."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from odesteer.testing.suite.runner import CHECKS, Result

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
