"""docs/cli.md says what the commands say, and every command says how it is used."""

import subprocess
import sys

import pytest
from docs.cli_reference import reference
from tests.helpers.paths import REPOSITORY
from typer.main import get_command

from odesteer.cli.app import app

PAGE = REPOSITORY / "docs" / "cli.md"
ROOT = get_command(app)


def commands() -> dict[str, object]:
    """Every command that does something, by what is typed."""
    found = {}
    for name, command in ROOT.commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", {})
        found |= {f"{name} {each}": one for each, one in below.items()} or {name: command}
    return found


def test_the_page_is_what_the_commands_say_now() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "docs/cli.md is stale; renew it: make cli-reference"
    )


@pytest.mark.parametrize("columns", ["40", "400"])
def test_the_page_is_the_same_at_any_width(columns: str) -> None:
    made = subprocess.run(
        [sys.executable, str(REPOSITORY / "docs" / "cli_reference.py")],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={"COLUMNS": columns, "PYTHONPATH": ":".join(sys.path), "PYTHONIOENCODING": "utf-8"},
    )
    assert made.stdout == reference(), made.stderr


@pytest.mark.parametrize("name", commands())
def test_every_command_has_an_example_that_its_options_allow(name: str) -> None:
    import shlex

    command = commands()[name]
    section = reference().split(f" odesteer {name}\n")[1].split("\n#")[0]
    examples = section.split("```sh\n")[1].split("```")[0].splitlines()
    for example in examples:
        words = shlex.split(example.partition("  #")[0])
        words = words[: words.index("--")] if "--" in words else words
        assert words[: 1 + len(name.split())] == ["odesteer", *name.split()], example
        # Parsed, not run: an option that is none, or an argument too few, is a usage error.
        context = command.make_context(name, words[1 + len(name.split()) :])  # type: ignore[attr-defined]
        assert context.params


@pytest.mark.parametrize("name", commands())
def test_every_option_is_explained(name: str) -> None:
    for parameter in commands()[name].params:  # type: ignore[attr-defined]
        assert parameter.help, f"{name} {parameter.name}"


def test_the_commands_are_grouped_by_what_they_are_for() -> None:
    panels = {command.rich_help_panel for command in ROOT.commands.values()}  # type: ignore[attr-defined]
    assert all(isinstance(panel, str) for panel in panels) and len(panels) == 4
