"""`odesteer extract` fills a directory of shards, goes on with one, and refuses another's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import models as tiny
from typer.testing import CliRunner

import odesteer as ods
from odesteer.cli.app import app
from odesteer.models.loading import load_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return tiny.saved(folder, chat=False)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"{a} {b}", "positive": "is good", "negative": "was bad on the mat"}
        for a in ("the", "a")
        for b in ("cat", "dog", "bird")
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def extract(model: Path, pairs: Path, *more: object) -> Any:
    arguments = ["extract", str(model), str(pairs), *map(str, more)]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})


def test_it_extracts_and_goes_on(model: Path, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = ["--layer", "1,2", "--tokens", "mean", "--rows-per-shard", "4", "--out", out]
    done = extract(model, pairs, *asked)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"Wrote {out}: 3 shards, 6 + 6 texts, layer 1, 2\n"
    assert extract(model, pairs, *asked).stdout.endswith("layer 1, 2 (it was complete)\n")
    (out / "shards" / "00001.safetensors").unlink()
    again = extract(model, pairs, *asked, "--json")
    assert json.loads(again.stdout) == {
        "path": str(out),
        "shards": 3,
        "computed": 1,
        "layers": [1, 2],
        "tokens": "mean",
        "positive": 6,
        "negative": 6,
        "truncated": 0,
    }
    expected = ods.activations(
        *load_model(str(model)), ods.Contrast.from_file(pairs), 2, tokens="mean"
    )
    for found, rows in zip(ods.Shards.open(out).load(2), expected, strict=True):
        assert torch.allclose(found, rows, atol=1e-5)


def test_what_cannot_be_is_one_line_and_exit_code_2(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert extract(model, pairs, "--layer", "1", "--out", out).exit_code == 0
    for more, said in (
        (["--layer", "2"], "differs in layers (there [1], here [2])"),
        (["--layer", "1", "--tokens", "mean"], "differs in tokens (there 'last', here 'mean')"),
        (["--layer", "auto"], "not auto"),
        (["--layer", "1", "--tokens", "first"], "tokens must be 'last'"),
        (["--layer", "1", "--engine", "rya"], "Did you mean 'ray'"),
        (["--layer", "1", "--workers", "2"], "Start the command several times"),
    ):
        refused = extract(model, pairs, *more, "--out", out)
        assert refused.exit_code == 2
        assert refused.stdout == "" and said in " ".join(refused.stderr.split()), refused.stderr


def test_texts_that_were_cut_are_told(model: Path, pairs: Path, tmp_path: Path) -> None:
    done = extract(model, pairs, "--layer", "1", "--max-tokens", "6", "--out", tmp_path / "out")
    assert done.exit_code == 0
    assert "warning: 6 of 12 texts were too long" in done.stderr


def test_stopped_by_hand_it_says_how_to_go_on(
    model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("odesteer.extraction.extract_shards.extract", stop)
    stopped = extract(model, pairs, "--layer", "1", "--out", tmp_path / "out")
    assert stopped.exit_code == 130
    assert "the same command goes on from there" in " ".join(stopped.stderr.split())
    assert not list((tmp_path / "out" / "claims").iterdir())
