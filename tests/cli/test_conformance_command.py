"""Output and exit code of `odesteer conformance`."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from odesteer.cli.app import app


def _command(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["conformance", *arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.stdout, result.stderr


ON_LLAMA = ("--architecture", "llama", "--check", "moved")


def test_the_command_exits_with_1_where_a_library_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "out" / "table.md"
    code, out, _ = _command(
        "--adapter", "tests.helpers.faulty_adapters:AddsTwice", *ON_LLAMA, "--out", str(file)
    )
    assert code == 1
    assert "moved on llama: output of the steered block: not equal" in out
    assert "| 0 / 1 |" in file.read_text(encoding="utf-8")


def test_the_command_exits_with_0_where_none_is() -> None:
    code, out, _ = _command("--adapter", "tests.helpers.faulty_adapters:Hooked", *ON_LLAMA)
    assert code == 0
    assert "1 / 1" in out


def test_the_command_asks_odesteer_unless_told_otherwise_and_speaks_json() -> None:
    code, out, _ = _command(*ON_LLAMA, "--json")
    assert code == 0
    results = json.loads(out)
    assert len(results) == 2
    for name, (result,) in results.items():
        assert name.startswith("odesteer")
        assert (result["check"], result["outcome"]) == ("moved", "pass")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--check", "cach"), ("Unknown check 'cach'", "Did you mean 'cache'?")),
        (("--architecture", "lama"), ("Unknown architecture 'lama'", "'llama'")),
        (("--adapter", "nowhere:Mine"), ("No adapter at 'nowhere:Mine'", "package.module:Class")),
    ],
)
def test_the_command_explains_a_wrong_name_in_one_line(
    arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    code, out, err = _command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert all(word in err for word in words)
