"""How do libraries compare, in one table?"""

from collections import Counter
from collections.abc import Mapping, Sequence

from odesteer.testing.check import CHECKS
from odesteer.testing.run import Result


def table(runs: Mapping[str, Sequence[Result]]) -> str:
    """Markdown: a row a check, a column a library: architectures right of those possible.

    A dash: the library does not offer it.
    """
    lines = [
        "| check | " + " | ".join(runs) + " |",
        "|---|" + "---|" * len(runs),
    ]
    names = dict.fromkeys(result.check for results in runs.values() for result in results)
    for name in names:
        cells = [_cell([r for r in results if r.check == name]) for results in runs.values()]
        lines.append(f"| {name}: {_short(CHECKS[name].question)} | {' | '.join(cells)} |")
    totals = [_cell(results) for results in runs.values()]
    lines.append(f"| all | {' | '.join(totals)} |")
    return "\n".join(lines)


def not_possible(results: Sequence[Result]) -> str:
    """Markdown: what the unsteered models do not do, and so was not asked of anybody."""
    reasons = [r for r in results if r.outcome == "not possible"]
    lines = ["| check | architecture | why |", "|---|---|---|"]
    lines += [f"| {r.check} | {r.architecture} | {r.reason.replace('|', '/')} |" for r in reasons]
    return "\n".join(lines)


def _cell(results: Sequence[Result]) -> str:
    counts = Counter(result.outcome for result in results)
    asked = counts["pass"] + counts["fail"]
    return f"{counts['pass']} / {asked}" if asked else "–"


def _short(question: str) -> str:
    return " ".join(question.split()).rstrip(".")
