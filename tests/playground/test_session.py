"""The controls mean what they say, and the Python that is shown does the same."""

from urllib.parse import parse_qsl

import pytest
from tests.helpers import models as tiny
from tests.playground import small

import odesteer as ods
from odesteer.ode import SOLVERS
from odesteer.playground.controller import Controller, python
from odesteer.playground.library import SavedSteering
from odesteer.playground.session import Session, State

PROMPT = "the dog ran"


@pytest.fixture(scope="module")
def shared():
    return small.shared()


@pytest.fixture(scope="module")
def library():
    return small.library()


def test_the_controls_become_the_steering(shared, library):
    chosen = small.controls(method="caa", layer=2, dose="target", amount=0.4, probability=0.8)
    steering = chosen.steerings(shared, library)[0]
    assert (steering.method, steering.layer) == ("caa", 2)
    assert steering.dose == ods.Target(0.8, ods.Angle(0.4))
    assert (
        small.controls(dose="strength", amount=-3.0).steerings(shared, library)[0].dose.size == -3.0
    )
    other = small.controls(solver="rk4", steps=7).steerings(shared, library)[0]
    assert (other.solver, other.steps) == ("rk4", 7)


def test_a_method_is_learnt_once(shared, library):
    first, second = (small.controls(method="caa").steerings(shared, library)[0] for _ in range(2))
    assert first.field is second.field


# These train for seconds, and to the page they are methods like the others.
TRAINED = ("hpr", "re-control", "truthflow")


@pytest.mark.parametrize(
    "method",
    [n for n, m in ods.METHODS.items() if m.site == "residual" and n not in TRAINED],
)
def test_every_method_of_the_page_can_be_learnt_and_written_with(shared, library, method):
    session = Session()
    controller = Controller(shared, library, None, {})
    *_, shown = controller.send(session, PROMPT, "", False, small.controls(method=method))
    assert not shown.error and shown.texts and shown.details


def test_composing_with_a_saved_steering_happens_at_its_layer(shared, library):
    steering = small.controls("good & ~curved", layer=2).steerings(shared, library)[0]
    assert steering.layer == 1 and steering.method == "(odesteer & ~custom)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"expression": "god"}, "Did you mean 'good'"),
        ({"expression": ""}, "Choose a steering; there is good, curved"),
        ({"expression": "good &"}, "ends where a steering should be"),
        ({"expression": "good + curved"}, "is no expression"),
        ({"solver": "rk5"}, "Unknown solver"),
        ({"positions": "some"}, "positions='some'"),
        ({"dose": "target", "amount": -0.1}, "budget must be a positive"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(shared, library, changes, words):
    with pytest.raises(ValueError, match=words):
        small.controls(**changes).steerings(shared, library)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "caa", "layer": 2, "dose": "strength", "amount": 4.0},
        {"expression": "good & ~curved", "solver": "midpoint", "steps": 6},
        {"dose": "target", "amount": 0.8, "probability": 0.7, "positions": "all"},
        {"expression": "~curved"},
        {"dose": "as learnt", "amount": 0.7, "layer": None},
        {"also": "curved", "also_amount": 1.5, "layer": 2, "repetition_penalty": 1.3},
        {"expression": "curved", "also": "good & ~curved", "temperature": 1e-4},
    ],
)
def test_the_python_writes_the_text_of_the_page(shared, library, changes, monkeypatch, capsys):
    chosen = small.controls(**changes)
    session = Session()
    session.send(PROMPT, chat=False)
    sides = [(), chosen.steerings(shared, library)]
    for _ in session.write(shared, chosen, sides, "the", session.claim()):
        pass
    monkeypatch.setattr(
        "odesteer.models.loading.load_model", lambda name: (shared.model, shared.tokenizer)
    )
    monkeypatch.setattr(ods, "load", lambda path: {"kept/it": tiny.quadratic()}[path])
    asked = session.messages(shared.tokenizer, "the", 1)
    exec(python(chosen, library, "tiny", asked), {"contrast": small.contrast})
    assert capsys.readouterr().out.strip() == session.texts[1].text.strip()


def test_python_names_that_python_does_not_allow_are_others(shared):
    library = {
        "a-b": SavedSteering(tiny.quadratic(), "x"),
        "a.b": SavedSteering(tiny.quadratic(), "y"),
    }
    code = python(small.controls("a-b & a.b"), library, "tiny", "the")
    assert "a_b = ods.load('x')" in code and "a_b_ = ods.load('y')" in code
    assert "steering = (a_b & a_b_).with_strength(ods.Angle(0.2))" in code


def test_solvers_of_the_page_are_those_of_the_library(shared, library):
    for solver in SOLVERS:
        assert small.controls(solver=solver).steerings(shared, library)[0].solver == solver


def test_a_multiple_of_the_learnt_dose_is_asked_for(shared, library):
    learnt = library["good"].get(shared, "odesteer", 1)
    twice = small.controls(dose="as learnt", amount=2.0).steerings(shared, library)[0]
    assert twice.dose == (2.0 * learnt).dose
    assert learnt.receipts["kl"]["asked"] == 0.6 and learnt.receipts["tokens"] == "response"


def test_two_aims_have_a_layer_and_a_dose_each(shared, library):
    both = small.controls("curved", also="good", also_amount=0.5).steerings(shared, library)
    assert [each.layer for each in both] == [1, library["good"].best]
    assert both[1].dose == (0.5 * library["good"].get(shared, "odesteer", None)).dose


def test_a_link_restores_what_it_was_made_from():
    state = State(
        expression="good & ~curved", method="caa", layer=2, dose="target", amount=0.4, also="x",
        temperature=0.5, max_new_tokens=40, prompt="What & why?\n<b>", system="Be brief.",
    )  # fmt: skip
    assert State.parse(dict(parse_qsl(state.query()))) == state
    assert State.parse({"__theme": "dark"}) is None and State.parse({}) is None


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ({"amount": "nan"}, "amount"),
        ({"amount": "1e9"}, "amount"),
        ({"max_new_tokens": "100000"}, "max_new_tokens"),
        ({"layer": "-1"}, "layer"),
        ({"layer": "../x"}, "layer"),
        ({"prompt": "x" * 3000}, "prompt"),
        ({"file": "/etc/passwd"}, "file"),
        ({"x" * 500: "1"}, "x" * 40),
    ],
)
def test_a_wrong_link_is_refused_in_one_line(query, name):
    with pytest.raises(ValueError, match=f"^'{name}' cannot be used: [^\n]{{1,150}}$"):
        State.parse(query)
