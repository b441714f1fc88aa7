"""The command line, run in this process: a fresh one takes seconds to import torch."""

from typing import Any

from typer.testing import CliRunner

from odesteer.cli.app import app


def run(*arguments: object, **environment: str) -> Any:
    """Run `odesteer` with arguments, on lines wide enough for any message."""
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200", **environment})
