"""HTML tables."""

from html import escape

from odesteer.evaluation.report.table import (
    Cell,
    Column,
    Line,
    Table,
    change_text,
    effect,
    headings,
)
from odesteer.evaluation.report.table import value_text as value


def table(one: Table) -> str:
    """With its title, row groups, and what a reader has to know of the numbers."""
    heads = "".join(
        f'<th scope="col" class="n" title="{escape(column.note, quote=True)}">'
        f"{escape(column.label)}{_arrow(column)}</th>"
        for column in one.columns
    )
    groups = "".join(_group(one, group, lines) for group, lines in headings(one.lines))
    notes = "".join(f"<li>{escape(note)}</li>" for note in one.legend())
    body = (
        f"<table><caption>{escape(one.title)}</caption><thead><tr>"
        f'<th scope="col">condition</th>'
        f'<th scope="col" class="n">n (groups)</th>{heads}</tr></thead>{groups}</table>'
    )
    return f'{scrolled(body, one.title)}<ul class="notes">{notes}</ul>'


def scrolled(inside: str, name: str) -> str:
    """What may be wider than a screen: a region that can be scrolled, also with keys."""
    label = escape(name, quote=True)
    return f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">{inside}</div>'


def _arrow(column: Column) -> str:
    if not column.arrow:
        return ""
    return f' <span aria-label="{column.better} is better">{column.arrow}</span>'


def _group(one: Table, group: str, lines: list[Line]) -> str:
    title = (
        f'<tr><th scope="rowgroup" colspan="{2 + len(one.columns)}">'
        f"<span>{escape(group)}</span></th></tr>"
        if group
        else ""
    )
    return f"<tbody>{title}{''.join(_row(one, line) for line in lines)}</tbody>"


def _row(one: Table, line: Line) -> str:
    paper = line.source == "paper"
    tag = ' <span class="tag">paper</span>' if paper else ""
    where = f"<small>{escape(line.setting)}</small>" if line.setting else ""
    n = "" if line.n is None else f"{line.n[0]:,} ({line.n[1]:,})"
    cells = "".join(
        _cell(cell, column, not one.versus)
        for cell, column in zip(line.cells, one.columns, strict=True)
    )
    return (
        f"<tr{' class=paper' if paper else ''}>"
        f'<th scope="row">{escape(line.label)}{tag}{where}</th>'
        f'<td class="n">{n}</td>{cells}</tr>'
    )


def _cell(cell: Cell | None, column: Column, interval: bool) -> str:
    if cell is None:
        return '<td class="n"></td>'
    change = change_text(cell, column)
    told = value(cell, column, interval)
    if change and not told:
        told = f"<small class=change>{change}</small>"
    elif change:
        told += f"<small class=change>{change}</small>"
    if cell.unscored:
        told += f"<small>{cell.unscored:,} unscored</small>"
    return f'<td class="n {effect(cell, column)}">{told}</td>'
