"""LaTeX tables."""

from collections.abc import Sequence

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


def document(reports: Sequence[Report]) -> str:
    """Write every table of every report, each as a float."""
    tables = [table(one, report.run.title) for report in reports for one in report.tables]
    return "\n\n".join([_HEADER, *tables]) + "\n"


def table(one: Table, title: str) -> str:
    """Write a float with values above differences, scaled down to the line width."""
    heading = ["condition", "setting", "$n$"]
    heading += [escape(f"{column.label} {column.arrow}".strip()) for column in one.columns]
    rows = []
    for index, (group, lines) in enumerate(headings(one.lines)):
        if group:
            rule = [r"\addlinespace"] if index else []
            wide = rf"\multicolumn{{{len(heading)}}}{{l}}{{\itshape {escape(group)}}} \\"
            rows += [*rule, wide]
        rows += [_row(one, line) for line in lines]
    notes = " ".join(escape(note) for note in one.legend())
    return "\n".join(
        [
            r"\begin{table*}[tp]",
            r"\centering",
            rf"\caption{{{escape(f'{one.title}: {title}.')} \footnotesize {notes}}}",
            rf"\label{{tab:{one.name}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{ll{'r' * (len(heading) - 2)}}}",
            r"\toprule",
            " & ".join(heading) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            r"\end{table*}",
        ]
    )


def escape(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(_SPECIAL.get(c, c) for c in " ".join(text.split()))


def _row(one: Table, line: Line) -> str:
    n = "" if line.n is None else str(line.n[0])
    pairs = zip(line.cells, one.columns, strict=True)
    cells = [_cell(cell, column, not one.versus) for cell, column in pairs]
    return " & ".join([escape(line.label), escape(line.setting), n, *cells]) + r" \\"


def _cell(cell: Cell | None, column: Column, interval: bool) -> str:
    if cell is None:
        return ""
    value, change = escape(value_text(cell, column, interval)), escape(change_text(cell, column))
    if cell.unscored:
        value += rf"\,{{\scriptsize({cell.unscored} unscored)}}"
    if not change:
        return value
    if not value:
        return change
    return rf"\shortstack[r]{{{value}\\{{\scriptsize {change}}}}}"
