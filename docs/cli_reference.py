"""Markdown reference of all commands.

    make cli-reference

It is made from the commands themselves, and a test compares it with docs/cli.md.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from odesteer.cli.app import app

_TOP = """# Command line

<!-- Generated: make cli-reference -->
"""

_KINDS = {
    "int": "INTEGER",
    "integer": "INTEGER",
    "float": "NUMBER",
    "Path": "PATH",
    "path": "PATH",
}


def reference() -> str:
    """Return the page."""
    root = get_command(app)
    groups: dict[str, list[tuple[str, Any]]] = {}
    for name, command in root.commands.items():  # type: ignore[attr-defined]
        panel = command.rich_help_panel
        panel = panel if isinstance(panel, str) else "Commands"
        groups.setdefault(panel, []).append((name, command))
    lines = [_TOP, *_prose(root.help), "| for | commands |", "|---|---|"]
    for panel, commands in groups.items():
        links = ", ".join(f"[`{name}`](#odesteer-{name})" for name, _ in commands)
        lines.append(f"| {panel} | {links} |")
    lines += ["", "## odesteer", "", *_table(root)]
    for panel, commands in groups.items():
        lines += [f"## {panel}", ""]
        for name, command in commands:
            lines += _command(f"odesteer {name}", command)
    return "\n".join(lines).rstrip() + "\n"


def _command(path: str, command: Any, level: int = 3) -> Iterator[str]:
    yield from (f"{'#' * level} {path}", "")
    below = getattr(command, "commands", None)
    if below is None:
        takes = [_metavar(p) for p in command.params if p.param_type_name == "argument"]
        yield from ("```text", " ".join([path, *takes, "[OPTIONS]"]), "```", "")
    yield from _prose(command.help)
    if below is None:
        yield from _table(command)
    for name, each in (below or {}).items():
        yield from _command(f"{path} {name}", each, level + 1)


def _prose(text: str | None) -> Iterator[str]:
    """Yield paragraphs, with the examples among them as code."""
    examples: list[str] = []
    listing = False
    for paragraph in inspect.cleandoc(text or "").split("\n\n"):
        example = re.match(r"Examples?:\s*(.*)", paragraph, re.S)
        indented = paragraph.startswith("    ")
        if example or (listing and indented):
            listing = True
            text = example[1] if example else paragraph
            examples += [" ".join(text.split())] if text.strip() else []
            continue
        listing = False
        yield from _code(examples)
        examples = []
        yield from (" ".join(paragraph.split()), "")
    yield from _code(examples)


def _code(lines: list[str]) -> Iterator[str]:
    if lines:
        yield from ("```sh", *lines, "```", "")


def _table(command: Any) -> Iterator[str]:
    rows = [row for parameter in command.params if (row := _row(parameter)) is not None]
    if rows:
        yield from ("| | default | |", "|---|---|---|", *rows, "")


def _row(parameter: Any) -> str | None:
    if getattr(parameter, "hidden", False) or "--help" in parameter.opts:
        return None
    if parameter.param_type_name == "argument":
        name = f"`{_metavar(parameter)}`"
    else:
        both = [*parameter.opts, *parameter.secondary_opts]
        value = "" if parameter.is_flag else f" {_metavar(parameter)}"
        name = ", ".join(f"`{each}`" for each in both[:-1]) + (", " if both[1:] else "")
        name += f"`{both[-1]}{value}`"
    meaning = (parameter.help or "").strip()
    if getattr(parameter, "multiple", False) and "repeat" not in meaning:
        meaning += " May be given several times."
    variable = getattr(parameter, "envvar", None)
    if variable:
        meaning += f" (`{variable}`)"
    return f"| {_cell(name)} | {_cell(_default(parameter))} | {_cell(meaning.strip())} |"


def _metavar(parameter: Any) -> str:
    if parameter.metavar:
        return str(parameter.metavar)
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    # typer 0.2x keeps the annotation, earlier ones a type of click's.
    described = getattr(parameter, "type_descriptor", None)
    kind = described.annotation.__name__ if described else parameter.type.name
    return _KINDS.get(str(kind), "TEXT")


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "required"
    if callable(value) or value is None or value in ((), [], ""):
        return ""
    if isinstance(value, bool):
        if not parameter.secondary_opts:
            return ""
        return f"`{(parameter.opts if value else parameter.secondary_opts)[-1]}`"
    return f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
