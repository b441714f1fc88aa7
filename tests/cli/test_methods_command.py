"""`odesteer methods` says of every method what its class says."""

import inspect
import json
from dataclasses import fields

import pytest
from typer.testing import CliRunner

import odesteer as ods
from odesteer.cli import console
from odesteer.cli.app import app
from odesteer.cli.methods import argument_meanings
from odesteer.methods.base import MethodInfo


def output(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["methods", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("name", ods.METHODS)
def test_every_method_states_its_facts(name: str) -> None:
    facts = ods.METHODS[name].facts
    assert isinstance(facts, MethodInfo)
    words = (facts.field, facts.barrier, facts.exact, facts.strength, facts.source)
    assert all(word and word == word.strip() for word in words)


@pytest.mark.parametrize("name", ods.METHODS)
def test_every_hyperparameter_is_explained(name: str) -> None:
    method = ods.METHODS[name]
    meanings = argument_meanings(method)
    unexplained = {field.name for field in fields(method)} - set(meanings)
    assert not unexplained, f"{name}: add {unexplained} to Args of its docstring"


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_names_every_method_in_order_and_fits(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.out, "width", width)
    lines = output().splitlines()
    assert all(len(line) <= width for line in lines)
    starts = [line.split()[0] for line in lines if line[:1].strip()]
    assert [start for start in starts if start in ods.METHODS] == list(ods.METHODS)


@pytest.mark.parametrize("name", ods.METHODS)
def test_one_method_is_shown_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 80)
    method, shown = ods.METHODS[name], output(name)
    assert all(len(line) <= 80 for line in shown.splitlines())
    together = " ".join(shown.split())
    assert method.facts.source.split(",")[0] in together
    assert f"{method().solver}, {method().steps} step" in together
    own = {field.name for field in fields(method)} - {"steps", "solver"}
    assert all(name in together for name in own)


def test_the_default_is_marked_and_is_that_of_fit() -> None:
    (default,) = (row["name"] for row in json.loads(output("--json")) if row["default"])
    assert default == inspect.signature(ods.fit).parameters["method"].default
    assert f"\n{default} (default) " in output()


def test_json_holds_the_defaults_of_the_class() -> None:
    rows = {row["name"]: row for row in json.loads(output("--json"))}
    assert list(rows) == list(ods.METHODS)
    for name, method in ods.METHODS.items():
        default = method()
        assert rows[name]["field"] == method.facts.field
        assert (rows[name]["steps"], rows[name]["solver"]) == (default.steps, default.solver)
        assert rows[name]["needs_pairs"] == method.needs_pairs
    assert rows["odesteer"]["hyperparameters"]["gammas"] == list(ods.ODESteer().gammas)
    assert rows["odesteer"]["default_strength"] == "angle 0.3"
    assert json.loads(output("odesteer", "--json")) == rows["odesteer"]
