"""`odesteer tune` writes a steering, its figure and its reasons."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import models as tiny
from typer.testing import CliRunner

import odesteer as ods
from odesteer.cli.app import app


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A directory with a model, and a contrast file."""
    folder = tmp_path_factory.mktemp("tune")
    tiny.model().save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    pairs = folder / "pairs.jsonl"
    rows = [
        {"prompt": f"{a} {b}", "positive": "is good good", "negative": "is bad bad"}
        for a in ("the cat", "a dog", "the bird")
        for b in ("sat", "ran", "flew", "was")
    ]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    return folder / "model", pairs


def run(*arguments: str | Path) -> Any:
    # In this process: a fresh one takes seconds to import torch.
    return CliRunner().invoke(app, ["tune", *map(str, arguments)], env={"COLUMNS": "200"})


def test_it_prints_the_front_and_the_reason_and_writes_the_figure_beside_the_steering(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = ["--method", "caa", "--layers", "0,1", "--angles", "0.1,0.3", "--max-kl", "0.05"]
    done = run(*files, "--out", tmp_path / "out", *settings)
    assert done.exit_code == 0, done.stderr
    assert "KL p95" in done.stdout.splitlines()[0]
    assert sum(line.startswith(">") for line in done.stdout.splitlines()) == 1
    assert "within the budget (KL p95 <= 0.05" in done.stdout
    assert (tmp_path / "out" / "tune.png").read_bytes().startswith(b"\x89PNG")
    steering = ods.Steering.from_pretrained(tmp_path / "out")
    assert steering.receipts["tune"]["chosen"]["layer"] == steering.layer
    assert steering.receipts["tune"]["chosen"]["kl_95"] <= 0.05


def test_json_for_scripts_says_when_the_target_was_not_met(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = ["--method", "caa", "--layers", "1", "--angles", "0.01", "--json"]
    done = run(*files, "--out", tmp_path / "out", *settings, "--target-probability", "0.999")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["met"], report["target"]) == (False, 0.999)
    assert "the closest is" in report["reason"]
    assert [trial["layer"] for trial in report["trials"]] == [None, 1]
