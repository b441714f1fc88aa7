"""What a person does gives what they see; errors are one line, and nobody sees another's."""

import json

import pytest
from tests.playground import small

import odesteer as ods
from odesteer.playground.controller import Controller, runs_in
from odesteer.playground.session import Session

GOOD, BAD = "\n".join(small.GOOD), "\n".join(small.BAD)


@pytest.fixture(scope="module")
def shared():
    shared = small.shared()
    return shared, small.library(shared)


@pytest.fixture
def controller(shared, tmp_path):
    return Controller(*shared, tmp_path / "kept", {})


def send(controller, session, prompt="the cat", chat=False, **changes):
    return list(controller.send(session, prompt, "", chat, small.controls(**changes)))


def test_a_text_grows_and_ends_with_figures_and_python(controller):
    shown = send(controller, Session())
    assert all(s.texts and not s.error for s in shown)
    assert [bool(s.figures) for s in shown] == [False] * (len(shown) - 1) + [True]
    end = shown[-1]
    assert end.texts.count('class="tok"') == 12 and "pg-caret" not in end.texts
    assert "perplexity" in end.facts and "tokens moved" in end.facts
    assert end.figures.count('data-way="5"') == 2
    compile(end.python, "<page>", "exec")


def test_what_was_typed_is_escaped(controller):
    end = send(controller, Session(), prompt="<script>alert(1)</script>", chat=True)[-1]
    session = Session()
    send(controller, session, prompt="<b>first</b>", chat=True)
    end = send(controller, session, prompt="<b>second</b>", chat=True)[-1]
    assert "&lt;b&gt;first" in end.texts and "<b>" not in end.texts


def test_a_chat_goes_on_with_each_sides_own_answers(controller, shared):
    session = Session()
    send(controller, session, "the cat", chat=True, dose="strength", amount=30.0)
    first = [text.text for text in session.pair]
    send(controller, session, "the dog", chat=True)
    asked = [session.messages(shared[0].tokenizer, "good", side) for side in (0, 1)]
    assert first[0] != first[1]
    for side in (0, 1):
        assert [m["role"] for m in asked[side]] == ["system", "user", "assistant", "user"]
        assert asked[side][2]["content"] == first[side].strip()
    send(controller, session, "the bird", chat=False)
    assert session.turns == []


def test_a_control_that_moves_writes_the_same_prompt_anew(controller):
    session = Session()
    assert list(controller.again(session, "", small.controls())) == []
    before = send(controller, session, dose="strength", amount=0.0)[-1]
    *_, after = controller.again(session, "", small.controls(dose="strength", amount=30.0))
    assert before.texts != after.texts and session.prompt == "the cat" and not session.turns


def test_a_newer_generation_ends_the_older_one(controller):
    session = Session()
    older = controller.send(session, "the cat", "", False, small.controls(max_new_tokens=50))
    next(older)
    newer = list(controller.again(session, "", small.controls()))
    assert list(older) == [] and newer[-1].figures


def test_what_was_asked_for_later_wins_whichever_begins_first(controller):
    session = Session()
    assert send(controller, session)
    newer = list(controller.again(session, "", small.controls(), requested_at=20.0))
    older = list(controller.again(session, "", small.controls(), requested_at=10.0))
    assert newer[-1].figures and older == []


def test_errors_are_one_line_and_leave_what_stood_there(controller):
    for shown in (
        send(controller, Session(), prompt="  "),
        send(controller, Session(), expression="nobody"),
        send(controller, Session(), expression="good |"),
    ):
        assert len(shown) == 1 and shown[0].error.startswith('<p class="pg-error" role="alert">')
        assert shown[0].texts is None and "\n" not in shown[0].error


def test_a_prompt_beyond_the_context_is_told_of_in_one_line(controller):
    shown = send(controller, Session(), prompt="the cat " * 200)
    assert len(shown) == 1 and shown[0].texts is None
    assert "tokens, and tiny reads 128 with the 6 new ones: shorten it" in shown[0].error
    assert send(controller, Session(), prompt="the cat " * 50)[-1].figures


EVIL = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>')


@pytest.mark.parametrize("evil", EVIL)
def test_markup_in_names_methods_and_expressions_is_shown_as_text(controller, evil):
    session = Session()
    said = [
        controller.fit(session, evil, "odesteer", GOOD, BAD, None)[0],
        controller.fit(session, "mine", evil, GOOD, BAD, None)[0],
        controller.save(session, evil, small.controls()),
        controller.report(evil),
        send(controller, session, expression=evil)[0].error,
    ]
    for words in said:
        assert words.count("<") == 2 and "pg-error" in words, words


def test_what_one_person_fits_is_nobody_elses(controller):
    one, other = Session(), Session()
    words, best = controller.fit(one, "mine", "odesteer", GOOD, BAD, None)
    assert "held-out AUC" in words and "Calibration" in words and best in (0, 1)
    assert send(controller, one, expression="mine & good")[-1].figures
    assert "Unknown steering" in send(controller, other, expression="mine")[0].error
    assert "mine" not in controller.library


def test_a_file_is_fitted_and_a_bad_one_is_told_of(controller, tmp_path):
    rows = [{"positive": g, "negative": b} for g, b in zip(small.GOOD, small.BAD, strict=True)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    calls = []
    words, best = controller.fit(
        Session(), "mine", "caa", "", "", str(file), lambda *done: calls.append(done)
    )
    assert best is not None and "18 positive and 18 negative" in words and calls
    for name, content in (
        ("bad.jsonl", b'{"positive": 1'),
        ("bad.csv", b"\xff\xfe\x00"),
        ("picture.png", b"\x89PNG"),
        ("empty.jsonl", b""),
    ):
        bad = tmp_path / name
        bad.write_bytes(content)
        words, best = controller.fit(Session(), "mine", "caa", "", "", str(bad))
        assert best is None and "pg-error" in words and "/tmp" not in words, words


@pytest.mark.parametrize(
    ("name", "positive", "words"),
    [
        ("a b", GOOD, "letters, digits"),
        ("../up", GOOD, "letters, digits"),
        ("good", GOOD, "choose another name"),
        ("mine", "one", "at least two positive examples"),
        ("mine", "\n".join(GOOD.splitlines()[:2]), "got 2 positive and"),
    ],
)
def test_a_fit_that_cannot_be_is_refused_in_words(controller, name, positive, words):
    said, best = controller.fit(Session(), name, "odesteer", positive, BAD, None)
    assert words in said and best is None


def test_a_setting_is_saved_as_a_steering_and_chosen_again(controller):
    session = Session()
    assert "Saved in" in controller.save(session, "both", small.controls("good & ~curved"))
    saved = ods.load(controller.keep / "both")
    assert saved.dose == ods.Angle(0.2) and saved.layer == 1
    assert send(controller, session, expression="both")[-1].figures
    assert "There is a" in controller.save(session, "both", small.controls())
    assert "pg-error" in controller.save(session, "../x", small.controls())
    assert sorted(p.name for p in controller.keep.parent.iterdir()) == ["kept"]


def test_runs_are_found_and_their_reports_are_framed(shared, tmp_path):
    from tests.evaluation.report import synthetic

    synthetic.toxicity_run(tmp_path / "one")
    runs = runs_in(tmp_path)
    controller = Controller(*shared, tmp_path, runs)
    assert list(runs) == ["one"] and runs_in(tmp_path / "one").keys() == {"one"}
    assert controller.report("one").startswith('<iframe class="pg-report" sandbox')
    assert "Unknown run" in controller.report("two") and "Choose a run" in controller.report(None)
