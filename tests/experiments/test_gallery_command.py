"""`python -m experiments.gallery` writes three files and prints a table that fits a terminal."""

import json
from pathlib import Path

import pytest
from experiments.gallery.__main__ import app
from typer.testing import CliRunner

from odesteer.cli import console


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 80)


@pytest.mark.usefixtures("narrow")
def test_it_writes_its_files_and_prints_every_cell(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    arguments = ["--methods", "caa, mimic", "--points", "60", "--out", str(folder)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert {file.name for file in folder.iterdir()} == {"gallery.json", "gallery.md", "gallery.png"}
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    table = (folder / "gallery.md").read_text().splitlines()
    assert [row.split("`")[1] for row in table[2:-1]] == ["none", "caa", "mimic"]
    outcomes = json.loads((folder / "gallery.json").read_text())["outcomes"]
    for method in ("none", "caa", "mimic"):
        shares = [o["share"]["mean"] for o in outcomes if o["method"] == method]
        cells = lines[method].split()[1:]
        assert [cell.split("±")[0] for cell in cells] == [f"{100 * s:.0f}" for s in shares]
    assert "60 held-out negatives" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())


def test_json_is_the_file(tmp_path: Path) -> None:
    arguments = ["--methods", "caa", "--points", "60", "--out", str(tmp_path), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((tmp_path / "gallery.json").read_text())


def test_an_unknown_method_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    arguments = ["--methods", "caa,itti", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("error: Unknown method 'itti'") and "Did you mean 'iti'?" in line
    assert not (tmp_path / "out").exists()


def test_a_directory_that_cannot_be_written_is_named_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "file")], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    for words in ("error: Cannot write to", str(tmp_path / "file"), "--out"):
        assert words in line
