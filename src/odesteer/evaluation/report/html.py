"""Self-contained HTML report.

Style and figures are inline, there is no script, and a policy in the page forbids requests. All
text of a model, a judge or a run's file is escaped. Offensive texts are closed until a reader
opens them.
"""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from odesteer.evaluation.report.build import Provenance, Report
from odesteer.evaluation.report.table import (
    Cell,
    Column,
    Line,
    Table,
    change_text,
    effect,
    headings,
    number,
)
from odesteer.evaluation.report.table import value_text as value
from odesteer.evaluation.report.tables import Beside, Pair


def table(one: Table) -> str:
    """Write a table with its title, row groups and legend."""
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
    """Wrap a wide element in a region that scrolls, also with keys."""
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
    where = f"<small>{escape(line.setting)}</small>" if line.setting else ""
    n = "" if line.n is None else f"{line.n[0]:,} ({line.n[1]:,})"
    cells = "".join(
        _cell(cell, column, not one.versus)
        for cell, column in zip(line.cells, one.columns, strict=True)
    )
    return f'<tr><th scope="row">{escape(line.label)}{where}</th><td class="n">{n}</td>{cells}</tr>'


def _cell(cell: Cell | None, column: Column, interval: bool) -> str:
    if cell is None:
        return '<td class="n"></td>'
    change = change_text(cell, column)
    content = value(cell, column, interval)
    if change:
        content += f"<small class=change>{change}</small>"
    if cell.unscored:
        content += f"<small>{cell.unscored:,} unscored</small>"
    return f'<td class="n {effect(cell, column)}">{content}</td>'


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def document(reports: Sequence[Report]) -> str:
    """Write the whole page."""
    title = reports[0].run.title if len(reports) == 1 else f"{len(reports)} runs"
    several = len(reports) > 1
    links = [
        (f"{_id(number)}{anchor}", f"{report.run.title}: {name}" if several else name)
        for number, report in enumerate(reports)
        for anchor, name in _sections(report)
        if not several or not anchor
    ]
    contents = "".join(f'<li><a href="#{to}">{escape(name)}</a></li>' for to, name in links)
    body = "".join(_report(report, _id(number)) for number, report in enumerate(reports))
    version = escape(reports[0].run.version)
    css = files("odesteer.evaluation.report").joinpath("report.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}: odesteer report</title><style>{css}</style></head><body>
<a class="skip" href="#content">To the content</a>
<header><h1>{escape(title)}</h1>
<nav aria-label="Contents"><ul>{contents}</ul></nav></header>
<main id="content">{body}</main>
<footer><p>Written by <code>odesteer report</code>; run by odesteer {version}.</p></footer>
</body></html>
"""


def _id(number: int) -> str:
    return f"run-{number + 1}"


def _sections(report: Report) -> list[tuple[str, str]]:
    """Return (suffix of the id, name) of each section that a report has."""
    has = {
        "": ("Summary", True),
        "-figures": ("Figures", bool(report.figures)),
        "-tables": ("Tables", True),
        "-texts": ("Side by side", bool(report.texts)),
        "-facts": ("Choices, judges, data", bool(report.facts)),
        "-config": ("Configuration", True),
    }
    return [(suffix, name) for suffix, (name, present) in has.items() if present]


def _report(report: Report, run_id: str) -> str:
    run = report.run
    warnings = "".join(f'<p class="warning">{escape(remark)}</p>' for remark in run.remarks)
    notes = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    parts = {
        "": f"{warnings}<ul>{''.join(f'<li>{escape(s)}</li>' for s in report.sentences)}</ul>"
        + (f'<div class="notes">Notes:<ul>{notes}</ul></div>' if notes else ""),
        "-tables": "".join(table(one) for one in report.tables),
        "-figures": f'<div class="figures">{_figures(report, run_id)}</div>',
        "-texts": _texts(report),
        "-facts": "".join(_facts(facts) for facts in report.facts),
        "-config": _config(report),
    }
    title = f"<h2>{escape(run.title)}</h2>" if run_id != "run-1" else ""
    return title + "".join(
        f'<section id="{run_id}{suffix}" aria-labelledby="{run_id}{suffix}-title">'
        f'<h2 id="{run_id}{suffix}-title">{name}</h2>{parts[suffix]}</section>'
        for suffix, name in _sections(report)
    )


def _figures(report: Report, run_id: str) -> str:
    return "".join(
        f"<figure>{drawing.inline(run_id)}<figcaption><b>{escape(drawing.title)}.</b> "
        f"{escape(drawing.caption)}</figcaption></figure>"
        for drawing in report.figures
    )


def _texts(report: Report) -> str:
    warning = (
        '<p class="warning">These texts may be offensive. Each is closed until you open it.</p>'
        if report.offensive
        else ""
    )
    blocks = "".join(
        _beside(texts, report.offensive, is_open=number == 0 and not report.offensive)
        for number, texts in enumerate(report.texts)
    )
    return f"{warning}{blocks}"


def _beside(texts: Beside, offensive: bool, is_open: bool) -> str:
    where = f", {escape(texts.setting)}" if texts.setting else ""
    pairs = "".join(_pair(pair, texts, offensive) for pair in texts.pairs)
    return (
        f"<details{' open' if is_open else ''}><summary>{escape(texts.label)}{where}: the "
        f"{len(texts.pairs)} largest changes of {escape(texts.score)} of {texts.of}</summary>"
        f"<div>{pairs}</div></details>"
    )


def _pair(pair: Pair, texts: Beside, offensive: bool) -> str:
    change = "unscored" if pair.change is None else number(pair.change, 3, sign=True)
    why = f' <span class="dim">({escape(pair.why)})</span>' if pair.why else ""
    sides = "".join(
        f'<div><h4>{title} <span class="tag">{escape(texts.score)} {_score(score)}</span></h4>'
        f'<div class="text">{escape(text) or "<i>empty</i>"}</div></div>'
        for title, text, score in (
            ("Unsteered", pair.left, pair.before),
            ("Steered", pair.right, pair.after),
        )
    )
    prompt = f'<p class="text"><b>{escape(pair.prompt)}</b></p>'
    scores = f"{_score(pair.before)} → {_score(pair.after)}"
    changed = f"{escape(texts.score)} {scores} ({change})"
    if offensive:
        return (
            f'<div class="pair"><details><summary>Show the text: {changed}{why}</summary>'
            f'<div>{prompt}<div class="two">{sides}</div></div></details></div>'
        )
    return f'<div class="pair">{prompt}<p>{changed}{why}</p><div class="two">{sides}</div></div>'


def _score(score: float | None) -> str:
    return "unscored" if score is None else number(score, 3)


def _facts(facts: Provenance) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in facts.heading)
    mono = facts.title == "Data"
    rows = "".join(
        "<tr>"
        + "".join(f"<td{' class=mono' if mono else ''}>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in facts.rows
    )
    body = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    inside = scrolled(body, facts.title)
    if len(facts.rows) > 8:  # long ones are closed, so that the page keeps its shape
        return (
            f"<details><summary>{escape(facts.title)} ({len(facts.rows)})</summary>"
            f"<div>{inside}</div></details>"
        )
    return f"<h3>{escape(facts.title)}</h3>{inside}"


def _config(report: Report) -> str:
    run = report.run
    settings = {"model": dict(run.model), "config": dict(run.config)}
    text = json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True)
    return (
        f"<details><summary>All that the run was asked to do</summary><div>"
        f'<pre tabindex="0">{escape(text)}</pre></div></details>'
    )
