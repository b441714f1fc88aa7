"""Markdown, CSV and LaTeX hold the numbers of the tables, and text stays text in each."""

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.report.synthetic import (
    angle,
    case,
    condition,
    lines,
    sweep_run,
    toxicity_run,
    write,
)

from odesteer.evaluation.report import FORMATS, Report, build, read_run, writers
from odesteer.evaluation.report import write as write_report

NASTY = "=cmd|' /C calc'!A0 & 50% _a_ <b>$x$</b> {\\input} #1 ~^"


@pytest.fixture(scope="module")
def toxic(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build(read_run(toxicity_run(tmp_path_factory.mktemp("toxic"), prompts=12)), drawn=False)


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Report:
    conditions = [condition("none"), condition("x", "caa", angle(0.1), label=NASTY)]
    cases: list[dict[str, Any]] = [
        case(one["id"], i, {"truth-tfidf": None if i == 0 else 1.0}, reasons={"truth-tfidf": NASTY})
        for one in conditions
        for i in range(3)
    ]
    content = lines(conditions, cases, model=NASTY)
    return build(read_run(write(tmp_path_factory.mktemp("nasty"), content)), drawn=False)


def rows(report: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(writers.csv_table([report]))))


def test_csv_has_a_row_for_every_cell_with_all_its_digits(toxic: Report) -> None:
    cells = [cell for t in toxic.tables for line in t.lines for cell in line.cells if cell]
    found = rows(toxic)
    assert len(found) == len(cells)
    for row, cell in zip(found, cells, strict=True):
        if cell.value is not None:
            assert float(row["value"]) == cell.value.mean
        if cell.difference is not None:
            assert float(row["difference"]) == cell.difference.interval.mean
            assert row["pairs"] == str(cell.difference.interval.n)


def test_csv_leaves_empty_what_is_not_known(nasty: Report) -> None:
    first = rows(nasty)[0]
    assert first["difference"] == first["p"] == ""
    assert (first["n"], first["unscored"]) == ("2", "1")


def test_csv_holds_no_formula(nasty: Report) -> None:
    labels = {row["condition"] for row in rows(nasty) if row["table"] == "main"}
    assert labels == {"Unsteered", f"'{NASTY}"}


def test_markdown_tables_are_whole(toxic: Report, nasty: Report) -> None:
    for report in (toxic, nasty):
        for block in re.findall(r"(?:^\|.*\n?)+", writers.markdown([report]), re.MULTILINE):
            # A bar in a text is escaped, so every line has as many cells.
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(counts) == 1, block


def test_markdown_says_what_is_unscored_and_who_judged(toxic: Report, nasty: Report) -> None:
    assert "1 unscored" in writers.markdown([nasty])
    assert "AUC 0.931 against Perspective" in writers.markdown([toxic])
    assert "<b>" not in writers.markdown([nasty])


def test_latex_is_balanced_and_every_row_has_its_cells(toxic: Report, nasty: Report) -> None:
    for report in (toxic, nasty):
        text = writers.latex([report])
        bare = re.sub(r"\\[\\{}%$&#_]", "", text)
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        for name in ("table*", "tabular"):
            assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") > 0
        for columns, body in re.findall(
            r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.DOTALL
        ):
            for line in body.splitlines():
                if line.endswith(r"\\") and "multicolumn" not in line:
                    assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1, line


def test_latex_runs_nothing_of_a_name(nasty: Report) -> None:
    text = writers.latex([nasty])
    assert r"\textbackslash{}input" in text
    assert r"50\%" in text and r"\_a\_" in text and r"\$x\$" in text
    assert r"\input" not in "\n".join(text.splitlines()[1:]).replace(r"\textbackslash{}input", "")


def test_every_format_is_written_with_the_figures_it_needs(tmp_path: Path) -> None:
    report = build(read_run(sweep_run(tmp_path / "sweep", questions=12)))
    out = tmp_path / "out"
    written = write_report([report], out, list(FORMATS))
    assert [path.name for path in written] == list(FORMATS.values())
    figures = sorted(path.name for path in (out / "figures").iterdir())
    names = sorted(f"sweep-{drawing.name}" for drawing in report.figures)
    assert figures == sorted([f"{n}.pdf" for n in names] + [f"{n}.png" for n in names])
    text = (out / "report.md").read_text(encoding="utf-8")
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (out / target).is_file()


def test_the_same_run_gives_the_same_files(tmp_path: Path) -> None:
    read = read_run(sweep_run(tmp_path / "sweep", questions=8))
    for name in ("a", "b"):
        write_report([build(read)], tmp_path / name, list(FORMATS))
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
