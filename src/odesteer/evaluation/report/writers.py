"""Files of a report: Markdown, CSV, LaTeX, and one HTML page (`report.html.j2`)."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path

import jinja2

from odesteer.common.files import table as plain_table
from odesteer.common.files import text, write_whole
from odesteer.evaluation.report.build import Report
from odesteer.evaluation.report.run import Run
from odesteer.evaluation.report.tables import (
    Cell,
    Column,
    Line,
    Table,
    change_text,
    effect,
    headings,
    number,
    value_text,
)

FORMATS = {"md": "report.md", "csv": "results.csv", "latex": "tables.tex", "html": "report.html"}
_FIGURES = {"md": "png", "latex": "pdf"}  # the page has them inside


def write(reports: Sequence[Report], folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write the files, each whole or absent; figures before what refers to them.

    Args:
        reports: one or more.
        folder: made if it is not there.
        formats: of `FORMATS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    documents = {"md": markdown, "csv": csv_table, "latex": latex, "html": html}
    written = []
    for kind in formats:
        for report in reports if kind in _FIGURES else ():
            for drawing in report.figures:
                name = f"{_file_name(report, drawing.name)}.{_FIGURES[kind]}"
                (folder / "figures").mkdir(exist_ok=True)
                write_whole(folder / "figures" / name, drawing.file(_FIGURES[kind]))
        target = folder / FORMATS[kind]
        write_whole(target, documents[kind](reports).encode())
        written.append(target)
    return written


def html(reports: Sequence[Report]) -> str:
    """Write the page, with style and figures inside it."""
    folder = files("odesteer.evaluation.report")
    page, css = (
        folder.joinpath(name).read_text(encoding="utf-8")
        for name in ("report.html.j2", "report.css")
    )
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(page)
    return template.render(
        reports=reports,
        title=reports[0].run.title if len(reports) == 1 else f"{len(reports)} runs",
        css=css,
        sections=_sections,
        settings=_settings,
        headings=headings,
        value_text=value_text,
        change_text=change_text,
        effect=effect,
        number=number,
    )


def _sections(report: Report) -> list[tuple[str, str]]:
    """Return (suffix of the id, name) of each section that a report has."""
    sections = (
        ("", "Summary", True),
        ("-texts", "Side by side", report.texts),
        ("-figures", "Figures", report.figures),
        ("-tables", "Tables", True),
        ("-facts", "Choices, judges, data", report.facts),
        ("-config", "Configuration", True),
    )
    return [(suffix, name) for suffix, name, content in sections if content]


def _settings(run: Run) -> str:
    settings = {"model": dict(run.model), "config": dict(run.config)}
    return json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True)


def _rows(
    table: Table, escaped: Callable[[str], str], cell: Callable[[Cell, Column, bool], str]
) -> Iterator[tuple[str, list[tuple[Line, list[str]]]]]:
    """Yield the groups of a table: the escaped heading, and its lines with escaped cells."""
    for heading, lines in headings(table.lines):
        rows = []
        for line in lines:
            pairs = zip(line.cells, table.columns, strict=True)
            cells = ["" if c is None else cell(c, column, not table.versus) for c, column in pairs]
            rows.append((line, [escaped(line.label), escaped(line.setting), *cells]))
        yield escaped(heading), rows


_LONG = 2_000  # characters; notes and rules are whole sentences


def markdown(reports: Sequence[Report]) -> str:
    """Write the Markdown page, which refers to figures in figures/."""
    return "\n\n".join(part for report in reports for part in _markdown_parts(report)) + "\n"


def markdown_table(table: Table) -> str:
    """Write a table with its title and legend."""
    heading = ["condition", "setting", "n"]
    heading += [f"{text(column.label)} {column.arrow}".strip() for column in table.columns]
    body = [heading, ["---", "---", *["---:"] * (len(heading) - 2)]]
    for group, rows in _rows(table, text, _markdown_cell):
        if group:
            body.append([f"**{group}**", *[""] * (len(heading) - 1)])
        for line, (label, setting, *cells) in rows:
            n = "" if line.n is None else f"{line.n[0]} ({line.n[1]})"
            body.append([label, setting, n, *cells])
    notes = [f"- {text(note, _LONG)}" for note in table.legend()]
    lines = [f"| {' | '.join(row)} |" for row in body]
    return "\n".join([f"### {text(table.title)}", "", *lines, "", *notes])


def _markdown_cell(cell: Cell, column: Column, interval: bool) -> str:
    # A bare asterisk could make the rest of a line italic.
    parts = [value_text(cell, column, interval), change_text(cell, column).replace("*", "\\*")]
    if cell.unscored:
        parts.append(f"{cell.unscored} unscored")
    return "<br>".join(part for part in parts if part)


def _markdown_parts(report: Report) -> Iterator[str]:
    run = report.run
    yield f"# {text(run.title)}"
    yield from (f"> **{text(remark, _LONG)}**" for remark in run.remarks)
    yield "\n".join(f"- {text(sentence, _LONG)}" for sentence in report.sentences)
    yield "n: answers (independent groups)."
    yield from map(markdown_table, report.tables)
    for drawing in report.figures:
        path = f"figures/{_file_name(report, drawing.name)}.png"
        yield f"![{text(drawing.title)}]({path})\n\n*{text(drawing.caption, _LONG)}*"
    for facts in report.facts:
        rows = ["| " + " | ".join(text(cell, _LONG) for cell in row) + " |" for row in facts.rows]
        body = "\n".join([plain_table(facts.heading, []), *rows])
        yield f"### {text(facts.title)}\n\n{body}"
    if run.notes:
        notes = "\n".join(f"- {text(note, _LONG)}" for note in run.notes)
        yield f"### Notes\n\n{notes}"


def _file_name(report: Report, name: str) -> str:
    """Return a figure's file name, which begins with the run's directory."""
    kept = "".join(c if c.isalnum() or c in "-_" else "-" for c in report.run.name)
    return f"{kept}-{name}"


_HEADER = r"""% Tables of `odesteer report`, to be \input. Needs \usepackage{booktabs,graphicx}.
% The figures are beside it, as PDF."""
# Other characters are left to LaTeX's own UTF-8.
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%",
    "#": r"\#", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "*": r"$^{*}$",
    "−": "$-$", "×": r"$\times$", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "≥": r"$\ge$", "≤": r"$\le$", "‖": r"$\|$", "–": "--", "“": "``", "”": "''", "…": r"\ldots{}",
}  # fmt: skip


def latex(reports: Sequence[Report]) -> str:
    """Write every table of every report, each as a float."""
    tables = [
        _latex_table(table, report.run.title) for report in reports for table in report.tables
    ]
    return "\n\n".join([_HEADER, *tables]) + "\n"


def _latex_table(table: Table, title: str) -> str:
    """Write a float with values above differences, scaled down to the line width."""
    heading = ["condition", "setting", "$n$"]
    heading += [_escaped(f"{column.label} {column.arrow}".strip()) for column in table.columns]
    body: list[str] = []
    for group, rows in _rows(table, _escaped, _latex_cell):
        if group:
            wide = rf"\multicolumn{{{len(heading)}}}{{l}}{{\itshape {group}}} \\"
            body += [*([r"\addlinespace"] if body else []), wide]
        for line, (label, setting, *cells) in rows:
            n = "" if line.n is None else str(line.n[0])
            body.append(" & ".join([label, setting, n, *cells]) + r" \\")
    notes = " ".join(_escaped(note) for note in table.legend())
    return "\n".join(
        [
            r"\begin{table*}[tp]",
            r"\centering",
            rf"\caption{{{_escaped(f'{table.title}: {title}.')} \footnotesize {notes}}}",
            rf"\label{{tab:{table.name}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{ll{'r' * (len(heading) - 2)}}}",
            r"\toprule",
            " & ".join(heading) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
        ]
    )


def _escaped(words: str) -> str:
    return "".join(_SPECIAL.get(c, c) for c in " ".join(words.split()))


def _latex_cell(cell: Cell, column: Column, interval: bool) -> str:
    value = _escaped(value_text(cell, column, interval))
    change = _escaped(change_text(cell, column))
    if cell.unscored:
        value += rf"\,{{\scriptsize({cell.unscored} unscored)}}"
    if value and change:
        return rf"\shortstack[r]{{{value}\\{{\scriptsize {change}}}}}"
    return value or change


HEADING = (
    "run", "table", "heading", "condition", "method", "id", "setting", "metric",
    "better", "value", "low", "high", "n", "unscored", "difference",
    "difference_low", "difference_high", "pairs", "groups", "p", "p_holm", "significant",
)  # fmt: skip


def csv_table(reports: Sequence[Report]) -> str:
    """Write one file for all reports; a missing number is empty, never a zero."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADING)
    for report in reports:
        for table in report.tables:
            for line in table.lines:
                for cell, column in zip(line.cells, table.columns, strict=True):
                    if cell is None:
                        continue
                    words = (
                        report.run.name, table.name, line.heading, line.label,
                        line.method, line.id, line.setting, column.key, column.better or "",
                    )  # fmt: skip
                    writer.writerow([*map(_no_formula, words), *_numbers(cell)])
    return out.getvalue()


def _numbers(cell: Cell) -> Iterator[str]:
    value, change = cell.value, cell.difference
    yield from (_digits(x) for x in (value[:3] if value else (None,) * 3))
    yield "" if value is None or not value.n else str(value.n)
    yield "" if value is None or not value.n else str(cell.unscored)
    yield from (_digits(x) for x in (change.interval[:3] if change else (None,) * 3))
    yield str(change.interval.n) if change else ""
    yield str(change.groups) if change else ""
    yield _digits(change.p if change else None)
    yield _digits(cell.adjusted)
    yield "" if cell.adjusted is None else str(int(cell.significant))


def _digits(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else repr(float(value))


def _no_formula(words: str) -> str:
    """Quote text that a spreadsheet would run as a formula."""
    return f"'{words}" if words[:1] in ("=", "+", "-", "@", "\t") else words
