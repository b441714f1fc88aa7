"""Markdown report."""

from collections.abc import Sequence

from odesteer.common.files import table as plain_table
from odesteer.common.files import text
from odesteer.evaluation.report.build import Report
from odesteer.evaluation.report.table import (
    Cell,
    Column,
    Line,
    Table,
    change_text,
    headings,
    value_text,
)

_LONG = 2_000  # characters; notes and rules are whole sentences


def document(reports: Sequence[Report], figures: str = "figures") -> str:
    """Write the page; `figures` is the folder of its figure files."""
    return "\n\n".join(part for report in reports for part in _parts(report, figures)) + "\n"


def table(one: Table) -> str:
    """Write a table with its title and legend."""
    heading = ["condition", "setting", "n"]
    heading += [f"{text(column.label)} {column.arrow}".strip() for column in one.columns]
    rows = []
    for group, lines in headings(one.lines):
        if group:
            rows.append([f"**{text(group)}**", *[""] * (len(heading) - 1)])
        rows += [_row(one, line) for line in lines]
    body = ["| " + " | ".join(heading) + " |", "|---|---|" + "---:|" * (len(heading) - 2)]
    body += ["| " + " | ".join(row) + " |" for row in rows]
    notes = [f"- {text(note, _LONG)}" for note in one.legend()]
    return "\n".join([f"### {text(one.title)}", "", *body, "", *notes])


def _row(one: Table, line: Line) -> list[str]:
    n = "" if line.n is None else f"{line.n[0]} ({line.n[1]})"
    pairs = zip(line.cells, one.columns, strict=True)
    cells = [_cell(cell, column, not one.versus) for cell, column in pairs]
    return [text(line.label), text(line.setting), n, *cells]


def _cell(cell: Cell | None, column: Column, interval: bool) -> str:
    if cell is None:
        return ""
    # A bare asterisk could make the rest of a line italic.
    parts = [value_text(cell, column, interval), change_text(cell, column).replace("*", "\\*")]
    if cell.unscored:
        parts.append(f"{cell.unscored} unscored")
    return "<br>".join(part for part in parts if part)


def _parts(report: Report, figures: str) -> list[str]:
    run = report.run
    parts = [f"# {text(run.title)}"]
    parts += [f"> **{text(remark, _LONG)}**" for remark in run.remarks]
    parts.append("\n".join(f"- {text(sentence, _LONG)}" for sentence in report.sentences))
    parts.append("n: answers (independent groups).")
    parts += [table(one) for one in report.tables]
    parts += [
        f"![{text(drawing.title)}]({figures}/{file_name(report, drawing.name)}.png)\n\n"
        f"*{text(drawing.caption, _LONG)}*"
        for drawing in report.figures
    ]
    for facts in report.facts:
        rows = [[text(cell, _LONG) for cell in row] for row in facts.rows]
        body = plain_table(facts.heading, [])
        body += "".join("\n| " + " | ".join(row) + " |" for row in rows)
        parts.append(f"### {text(facts.title)}\n\n{body}")
    if run.notes:
        notes = "\n".join(f"- {text(note, _LONG)}" for note in run.notes)
        parts.append(f"### Notes\n\n{notes}")
    return parts


def file_name(report: Report, name: str) -> str:
    """Return a figure's file name, which begins with the run's directory."""
    kept = "".join(c if c.isalnum() or c in "-_" else "-" for c in report.run.name)
    return f"{kept}-{name}"
