"""A shell that asks is told commands, options, methods, solvers and models, and quickly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import odesteer as ods
from odesteer.cli import library
from odesteer.cli.app import app
from odesteer.cli.options import among, models
from odesteer.common import catalogue
from odesteer.data.formats import FORMATS
from odesteer.extraction.tokenize import TOKENS
from odesteer.models.hooks.positions import PositionRule
from odesteer.models.loading import load_model

MAIN = "import sys; sys.argv[0] = 'odesteer'; from odesteer.cli import main; main()"


def completed(line: str) -> list[str]:
    """What bash would offer at the end of a line."""
    asked = {
        "_ODESTEER_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    made = CliRunner().invoke(app, [], prog_name="odesteer", env=asked)
    assert made.stderr == ""
    return made.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("odesteer ge", ["generate"]),
        ("odesteer fit smo", ["smollm2"]),
        ("odesteer fit smollm2 pairs.jsonl --method mi", ["mimic"]),
        ("odesteer chat smollm2 -m odesteer-g", ["odesteer-gaussian"]),
        ("odesteer generate smollm2 Hi --solver rk", ["rk4", "rk4-38"]),
        ("odesteer generate smollm2 Hi --positions g", ["generated"]),
        ("odesteer fit smollm2 pairs.jsonl --tokens r", ["response"]),
        ("odesteer fit smollm2 pairs.jsonl --sol", ["--solver"]),
        ("odesteer methods odesteer-p", ["odesteer-paper"]),
    ],
)
def test_words_are_completed(line: str, words: list[str]) -> None:
    assert completed(line) == words


def test_asking_imports_no_torch() -> None:
    code = f"import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); {MAIN}"
    asked = {"_ODESTEER_COMPLETE": "complete_bash", "COMP_CWORD": "5"}
    asked |= {"COMP_WORDS": "odesteer fit smollm2 x --method "}
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked}
    )
    assert made.stdout.endswith("False\n") and "caa" in made.stdout, made.stderr


def test_the_script_for_a_shell_is_shown() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", MAIN],
        capture_output=True,
        text=True,
        env={**os.environ, "_ODESTEER_COMPLETE": "source_bash"},
    )
    assert "complete -o default -F _odesteer_completion odesteer" in shown.stdout


def test_the_words_are_those_of_the_library() -> None:
    assert tuple(catalogue.METHODS) == tuple(ods.METHODS)
    assert catalogue.SOLVERS == tuple(ods.SOLVERS)
    assert catalogue.TOKENS == TOKENS
    assert catalogue.FORMATS == tuple(FORMATS)
    assert [str(PositionRule.parse(word)) for word in catalogue.POSITIONS] == [*catalogue.POSITIONS]


def test_every_name_that_commands_use_is_there() -> None:
    assert library.load_model is load_model
    for name in library._HOME:
        if name not in ("serve", "lm_eval"):  # Gradio and lm_eval are extras
            assert getattr(library, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        getattr(library, "nonsense")  # noqa: B009


def test_models_are_the_packaged_one_those_of_the_hub_and_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hub" / "models--me--tiny-llama").mkdir(parents=True)
    (tmp_path / "smart").mkdir()
    (tmp_path / ".hidden").mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    assert models("sm") == ["smollm2", "smart"]
    assert models("me/") == ["me/tiny-llama"]
    assert models(f"{tmp_path}/sm") == [f"{tmp_path}/smart"]
    assert models("") == ["smollm2", "me/tiny-llama", "hub", "smart"]
    assert models("nowhere/at/all") == []
    assert among(["a", "ab"])("ab") == ["ab"]
