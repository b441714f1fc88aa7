"""`odesteer report` writes whole files, prints the main table, and teaches in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.report.synthetic import case, condition, lines, sweep_run, toxicity_run, write
from typer.testing import CliRunner

from odesteer.cli import console
from odesteer.cli.app import app


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 80)


@pytest.mark.usefixtures("narrow")
def test_it_writes_beside_the_run_and_prints_what_fits_a_terminal(tmp_path: Path) -> None:
    folder = toxicity_run(tmp_path / "toxic", prompts=6)
    done = run(folder)
    assert done.exit_code == 0, done.output
    written = {path.name for path in (folder / "report").iterdir()}
    assert written == {"report.md", "results.csv", "tables.tex", "report.html", "figures"}
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    for label in ("Unsteered", "Random direction", "ODESteer", "Toxicity"):
        assert label in done.stdout
    assert "Wrote report.md" in done.stderr


def test_formats_and_folder_can_be_chosen(tmp_path: Path) -> None:
    folders = [toxicity_run(tmp_path / "a", prompts=4), sweep_run(tmp_path / "b", questions=4)]
    out = tmp_path / "new" / "out"
    done = run(*folders, "--out", out, "--format", "csv, md")
    assert done.exit_code == 0, done.output
    assert {path.name for path in out.iterdir()} == {"results.csv", "report.md", "figures"}
    assert {line.split(",")[0] for line in (out / "results.csv").read_text().splitlines()[1:]} == {
        "a",
        "b",
    }


def test_everything_is_told_to_scripts(tmp_path: Path) -> None:
    folder = toxicity_run(tmp_path / "toxic", prompts=6)
    done = run(folder, "--format", "csv", "--json")
    found = json.loads(done.stdout)
    assert found["files"] == [str(folder / "report" / "results.csv")]
    assert list(found["runs"]) == ["toxic"] and found["runs"]["toxic"]
    rows = (folder / "report" / "results.csv").read_text().splitlines()
    assert len(found["cells"]) == len(rows) - 1
    assert any(isinstance(cell["value"], float) for cell in found["cells"])


def test_an_unfinished_run_is_reported_with_a_warning(tmp_path: Path) -> None:
    cases = [case("none", i, {"truth-tfidf": 1.0}) for i in range(2)]
    folder = write(tmp_path / "run", lines([condition("none")], cases)[:-1])
    done = run(folder, "--format", "csv")
    assert done.exit_code == 0, done.output
    assert done.stderr.count("not finished") == 1


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (None, [], "There is no run '"),
        ("hello\n", [], "is no result file of odesteer"),
        ("", [], "has not started"),
        ("good", ["--format", "pdf"], "Unknown format 'pdf'"),
        ("good", ["--format", ","], "at least one of md, csv, latex, html"),
        ("good", ["--compare", "cca"], "no method 'cca'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path, content: str | None, arguments: list[str], said: str
) -> None:
    folder = tmp_path / "run"
    if content == "good":
        conditions = [condition("none"), condition("caa")]
        cases = [case(one["id"], 0, {"truth-tfidf": 1.0}) for one in conditions]
        write(folder, lines(conditions, cases))
    elif content is not None:
        folder.mkdir()
        (folder / "results.jsonl").write_text(content)
    done = run(folder, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "report").exists()


def test_a_bad_run_among_good_ones_writes_nothing(tmp_path: Path) -> None:
    good = sweep_run(tmp_path / "good", questions=4)
    done = run(good, tmp_path / "missing", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_help_has_examples() -> None:
    done = run("--help")
    assert done.exit_code == 0
    assert "odesteer report runs/toxicity" in done.stdout
