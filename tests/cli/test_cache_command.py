"""`odesteer cache` lists and removes what commands have kept; `--no-cache` keeps nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import models as tiny
from typer.testing import CliRunner

from odesteer.cli.app import app


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    return tiny.saved(folder, chat=False)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.csv"
    rows = [
        f"{a} {b},is good good,is bad bad"
        for a in ("the cat", "a dog", "the bird")
        for b in ("sat", "ran", "flew", "was")
    ]
    path.write_text("question,chosen,rejected\n" + "\n".join(rows))
    return path


COLUMNS = ["--columns", "prompt=question,positive=chosen,negative=rejected"]
FIT = ["--method", "caa", "--layer", "1", "--no-check"]


def run(home: Path, *arguments: str | Path, **environment: str) -> Any:
    settings = {
        "COLUMNS": "200",
        "ODESTEER_CACHE": str(home),
        "ODESTEER_CACHE_ACTIVATIONS": "1",
        **environment,
    }
    return CliRunner().invoke(app, list(map(str, arguments)), env=settings)


def listed(home: Path) -> dict[str, Any]:
    done = run(home, "cache", "ls", "--json")
    assert done.exit_code == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def fit(home: Path, model: Path, pairs: Path, *more: str, **environment: str) -> Any:
    out = ["--out", home.parent / "out"]
    done = run(home, "fit", model, pairs, *COLUMNS, *FIT, *out, *more, **environment)
    assert done.exit_code == 0, done.stderr
    return done


def test_commands_keep_what_they_compute_and_it_is_listed(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    home = tmp_path / "cache"
    assert listed(home)["models"] == []
    fit(home, model, pairs)
    (one,) = listed(home)["models"]
    assert (one["name"], one["layers"], one["rows"]) == ("tiny-llama", {"residual-last": [1]}, 24)
    assert one["size"] == listed(home)["size"] > 24 * tiny.WIDTH * 4
    settings = ["--method", "mimic", "--layer", "0,1", "--contrast", pairs, "--max-new-tokens", "2"]
    done = run(home, "generate", model, "the cat", *settings, *COLUMNS)
    assert done.exit_code == 0, done.stderr
    assert listed(home)["models"][0]["layers"] == {"residual-last": [0, 1]}
    out = ["--out", tmp_path / "tuned", "--method", "caa", "--layers", "1", "--angles", "0.1"]
    out += ["--no-check"]
    done = run(home, "tune", model, pairs, *COLUMNS, *out)
    assert done.exit_code == 0, done.stderr
    (one,) = listed(home)["models"]
    assert one["layers"] == {"residual-last": [0, 1, 3]}
    table = run(home, "cache", "ls").stdout
    assert "tiny-llama" in table
    assert "residual-last: 0-1, 3" in table
    assert str(home / "activations") in table


@pytest.mark.parametrize("how", ["--no-cache", "ODESTEER_CACHE_ACTIVATIONS"])
def test_without_a_cache_nothing_is_written(
    how: str, model: Path, pairs: Path, tmp_path: Path
) -> None:
    home = tmp_path / "cache"
    if how.startswith("--"):
        fit(home, model, pairs, how)
    else:
        fit(home, model, pairs, ODESTEER_CACHE_ACTIVATIONS="0")
    assert not home.exists()


def test_tokens_and_their_limit_reach_the_receipts(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match="24 of 24 texts are longer than 4 tokens"):
        fit(tmp_path / "cache", model, pairs, "--tokens", "response", "--max-tokens", "4")
    config = json.loads((tmp_path / "out" / "steering_config.json").read_text())
    assert config["receipts"]["tokens"] == "response"
    assert config["receipts"]["truncated"] == 24
    done = run(tmp_path, "fit", model, pairs, "--tokens", "first", "--out", tmp_path / "no")
    assert done.exit_code == 2
    assert "tokens must be 'last', 'mean', 'response' or 'prompt'; got 'first'" in done.stderr


def test_removal_says_what_it_removed(model: Path, pairs: Path, tmp_path: Path) -> None:
    home = tmp_path / "cache"
    fit(home, model, pairs)
    size = listed(home)["size"]
    done = run(home, "cache", "rm", "--older-than", "1")
    assert done.exit_code == 0
    assert "Removed 0 files (0 B)" in done.stdout
    done = run(home, "cache", "rm", "--model", "other")
    assert "There is nothing of 'other'; kept: tiny-llama." in done.stdout
    assert listed(home)["size"] == size
    done = run(home, "cache", "rm", "--model", "tiny-llama", "--json")
    assert json.loads(done.stdout) == {
        "folder": str(home / "activations"),
        "files": 1,
        "size": size,
    }
    assert listed(home)["models"] == []
    fit(home, model, pairs)
    assert "Removed 1 file (" in run(home, "cache", "rm", "--all").stdout
    assert listed(home) == {**listed(home), "size": 0, "models": []}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Say what to remove: --model NAME, --older-than DAYS, or --all."),
        (["--all", "--model", "x"], "--all removes everything"),
    ],
)
def test_removal_has_to_be_told_what(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = run(tmp_path, "cache", "rm", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr


@pytest.mark.parametrize("columns", ["positive", "positive=", "=chosen", ""])
def test_columns_are_pairs(columns: str, model: Path, pairs: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "fit", model, pairs, "--columns", columns, "--out", tmp_path / "no")
    assert done.exit_code == 2
    assert f"such as positive=chosen,negative=rejected; got '{columns}'" in done.stderr


def test_listing_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys\nfrom odesteer.cli.app import app\n"
    code += "try: app(['cache', 'ls'])\nexcept SystemExit: pass\nsys.exit('torch' in sys.modules)"
    environment = {**os.environ, "ODESTEER_CACHE": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
