"""`odesteer playground` says in words what is missing or wrong, before it loads a model."""

import importlib.util

import pytest
from typer.testing import CliRunner

from odesteer.cli.app import app


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["playground", "nowhere", *arguments])
    assert result.exit_code == 2 and "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.fixture
def gradio(monkeypatch):
    """Whether Gradio is there, as the command sees it."""
    find = importlib.util.find_spec

    def pretend(there):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda n, *a: there if n == "gradio" else find(n, *a)
        )

    return pretend


def test_without_gradio_it_says_what_to_install(gradio):
    gradio(None)
    assert "pip install 'odesteer[playground]'" in run()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["truthful"], "takes NAME=DIR"),
        (["truthful="], "takes NAME=DIR"),
        (["a=x", "a=y"], "names 'a' twice"),
        (["a b=x"], "letters, digits"),
    ],
)
def test_steerings_are_named_in_one_form(gradio, given, words):
    gradio(True)
    assert words in run(*[part for each in given for part in ("-s", each)])
