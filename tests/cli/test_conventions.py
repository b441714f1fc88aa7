"""What holds for every command: its exit codes, its JSON, its colours, Python's defaults."""

import inspect
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.command_line import run
from tests.helpers.paths import REPOSITORY
from typer.main import get_command

import odesteer as ods
from odesteer.cli.app import app

ROOT: Any = get_command(app)
# A conversation, a page, and another program's server.
NO_RESULTS = {"chat", "playground", "serve"}
COMMANDS = {name: one for name, one in ROOT.commands.items() if not hasattr(one, "commands")}


@pytest.mark.parametrize("name", sorted({*COMMANDS} - NO_RESULTS))
def test_every_command_with_results_prints_them_for_scripts(name: str) -> None:
    assert any("--json" in parameter.opts for parameter in COMMANDS[name].params)


@pytest.mark.parametrize("name", [*COMMANDS, "cache ls", "cache rm"])
def test_every_command_has_help_with_an_example(name: str) -> None:
    shown = run(*name.split(), "--help")
    assert shown.exit_code == 0 and "Example" in shown.stdout and f"odesteer {name}" in shown.stdout


def test_the_exit_codes_are_what_help_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = " ".join(run("--help").stdout.split())
    for part in ("0 done", "1 failed", "2 bad input", "130 stopped by Ctrl-C"):
        assert part in words
    assert run("methods").exit_code == 0
    assert run("methods", "cca").exit_code == 2  # our own error
    assert run("methods", "--nonsense").exit_code == 2  # a usage error

    def wrong(*_: object) -> list[Any]:
        from odesteer.testing import Result

        return [Result("check", "llama", "fail", "it moved")]

    monkeypatch.setattr("odesteer.testing.run", wrong)
    assert run("conformance", "--architecture", "llama").exit_code == 1


def test_what_a_run_would_do_and_what_it_did_are_json_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from odesteer.evaluation.experiment.run import RunSummary

    file = REPOSITORY / "experiments" / "smollm2-sentiment.toml"
    planned = json.loads(run("run", file, "--dry-run", "--json").stdout)
    assert planned["experiment"].startswith("smollm2-sentiment") and planned["notes"] == []
    done = RunSummary(tmp_path / "results.jsonl", True, 3)
    monkeypatch.setattr("odesteer.evaluation.experiment.run.run", lambda *_: done)
    assert json.loads(run("run", file, "--out", tmp_path, "--json").stdout) == {
        "results": str(tmp_path / "results.jsonl"),
        "complete": True,
        "computed": 3,
    }


def test_colours_are_for_terminals_only() -> None:
    command = [sys.executable, "-m", "odesteer"]
    for more in (["--help"], ["cache", "ls"], ["cache", "rm"]):
        made = subprocess.run(
            [*command, *more],
            capture_output=True,
            text=True,
            env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
        )
        assert made.stdout + made.stderr and "\x1b" not in made.stdout + made.stderr


def defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


@pytest.mark.parametrize(
    ("command", "python"),
    [
        ("fit", defaults(ods.fit)),
        ("tune", defaults(ods.tune)),
        ("score", defaults(ods.score)),
        ("generate", {f.name: f.default for f in fields(ods.Sampling)}),
        ("extract", defaults(ods.extract_shards)),
    ],
)
def test_what_has_a_name_in_python_has_the_same_default_here(
    command: str, python: dict[str, Any]
) -> None:
    # Keeping activations is a matter of the machine; "auto" is a word for Python's None.
    apart = {"cache", "layers", "tokens", "rows_per_shard"}
    ours = {one.name: one.default for one in COMMANDS[command].params}
    shared = (ours.keys() & python.keys()) - apart
    assert shared
    assert {key: ours[key] for key in shared} == {key: python[key] for key in shared}
