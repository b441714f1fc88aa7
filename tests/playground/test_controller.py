"""What a person does gives what they see; errors are one line, and nobody sees another's."""

import json

import pytest
from tests.playground import small

import odesteer as ods
from odesteer.evaluation.assessment import Assessment, Assessor
from odesteer.evaluation.statistics import Interval
from odesteer.playground import html as markup
from odesteer.playground import library
from odesteer.playground.controller import Controller, runs_in
from odesteer.playground.html import WORDS
from odesteer.playground.session import Session

GOOD, BAD = "\n".join(small.GOOD), "\n".join(small.BAD)


@pytest.fixture(scope="module")
def shared():
    shared, library = small.shared(), small.library()
    library["good"].get(shared, "odesteer", 1)
    return shared, library


@pytest.fixture
def controller(shared, tmp_path):
    return Controller(*shared, tmp_path / "kept", {})


def send(controller, session, prompt="the cat", chat=False, **changes):
    return list(controller.send(session, prompt, "", chat, small.controls(**changes)))


def test_a_text_grows_and_ends_with_figures_and_python(controller):
    shown = send(controller, Session())
    assert all(s.texts and not s.error for s in shown)
    assert [bool(s.details) for s in shown] == [False] * (len(shown) - 1) + [True]
    end = shown[-1]
    assert end.texts.count('class="tok"') == 12 and "pg-caret" not in end.texts
    assert end.texts.count("perplexity") == 2 and "tokens moved" in end.details
    assert end.details.count('data-way="5"') == 2
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
    first = [text.text for text in session.texts]
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
    assert list(older) == [] and newer[-1].details


def test_what_was_asked_for_later_wins_whichever_begins_first(controller):
    session = Session()
    assert send(controller, session)
    newer = list(controller.again(session, "", small.controls(), requested_at=20.0))
    older = list(controller.again(session, "", small.controls(), requested_at=10.0))
    assert newer[-1].details and older == []


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
    assert send(controller, Session(), prompt="the cat " * 50)[-1].details


EVIL = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>')


@pytest.mark.parametrize("evil", EVIL)
def test_markup_in_names_methods_and_expressions_is_shown_as_text(controller, evil):
    session = Session()
    said = [
        controller.fit(session, evil, "odesteer", ("", GOOD, BAD))[0],
        controller.fit(session, "mine", evil, ("", GOOD, BAD))[0],
        controller.save(session, evil, small.controls()),
        controller.report(evil),
        send(controller, session, expression=evil)[0].error,
    ]
    for words in said:
        assert words.count("<") == 2 and "pg-error" in words, words


def test_what_one_person_fits_is_nobody_elses(controller):
    one, other = Session(), Session()
    words, amount = controller.fit(one, "mine", "odesteer", ("", GOOD, BAD))
    assert "<b>mine " in words and "95 % interval" in words and 0.25 <= amount <= 1.5
    assert send(controller, one, expression="mine & good")[-1].details
    assert "Unknown steering" in send(controller, other, expression="mine")[0].error
    assert "mine" not in controller.library


def test_a_file_is_fitted_and_a_bad_one_is_told_of(controller, tmp_path):
    rows = [{"positive": g, "negative": b} for g, b in zip(small.GOOD, small.BAD, strict=True)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    calls = []
    words, amount = controller.fit(
        Session(),
        "mine",
        "caa",
        file=str(file),
        progress=lambda words: lambda *done: calls.append((words, *done)),
    )
    assert amount is not None and {words for words, *_ in calls} == {
        "Reading the examples",
        "Writing before and after",
    }
    assert "18 positive and 18 negative" in words
    for name, content in (
        ("bad.jsonl", b'{"positive": 1'),
        ("bad.csv", b"\xff\xfe\x00"),
        ("picture.png", b"\x89PNG"),
        ("empty.jsonl", b""),
    ):
        bad = tmp_path / name
        bad.write_bytes(content)
        words, amount = controller.fit(Session(), "mine", "caa", file=str(bad))
        assert amount is None and "pg-error" in words and "/tmp" not in words, words


@pytest.mark.parametrize(
    ("name", "positive", "words"),
    [
        ("a b", GOOD, "letters, digits"),
        ("../up", GOOD, "letters, digits"),
        ("good", GOOD, "choose another name"),
        ("mine", "one", "at least two positive examples"),
        ("mine", "\n".join(GOOD.splitlines()[:2]), "got 2 positive, 18 negative lines"),
    ],
)
def test_a_fit_that_cannot_be_is_refused_in_words(controller, name, positive, words):
    said, amount = controller.fit(Session(), name, "odesteer", ("", positive, BAD))
    assert words in said and amount is None


def test_a_setting_is_saved_as_a_steering_and_chosen_again(controller):
    session = Session()
    assert "Saved in" in controller.save(session, "both", small.controls("good & ~curved"))
    saved = ods.load(controller.keep / "both")
    assert saved.dose == ods.Angle(0.2) and saved.layer == 1
    assert send(controller, session, expression="both")[-1].details
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


def test_a_fit_chooses_the_dose_as_the_command_line_does(shared):
    at, library = shared[0], small.library()
    controller = Controller(at, library, None, {})
    words, amount = controller.fit(Session(), "good", "odesteer")
    learnt = ods.fit(at.model, at.tokenizer, small.contrast())  # with every default
    assessor = Assessor(at.model, at.tokenizer, small.contrast())
    chosen, assessment = assessor.with_fluent_dose(learnt)
    assert f'data-verdict="{assessment.verdict}"' in words
    assert library["good"].get(at, "odesteer", None).dose == learnt.dose
    assert amount == round(chosen.dose.size / learnt.dose.size, 2) == library["good"].amount


@pytest.mark.parametrize("verdict", WORDS)
def test_each_verdict_is_told_in_plain_words_with_its_warnings(verdict):
    assessment = Assessment(verdict, Interval(0.5, 0.1, 0.9, 12), 1.3, 0.0, (), 0.2, 0.9, ("<b>",))
    words = markup.verdict("mine", small.contrast(), assessment)
    assert f"<b>mine {WORDS[verdict][0]}.</b> In 12 answers" in words and "+50%" in words
    assert "+10% to +90%" in words and "1.3 times as surprising" in words
    assert "<li>&lt;b&gt;</li>" in words


def test_what_nobody_fitted_waits_until_a_person_asks(shared):
    controller = Controller(shared[0], small.library(), None, {})
    session = Session()
    assert send(controller, session, expression="curved")[-1].details
    (waiting,) = controller.again(session, "", small.controls("good"))
    assert "Nobody has used good here yet" in waiting.error
    first, *_, shown = send(controller, session, expression="good")
    assert "Learning" in first.error and shown.details
    assert len(list(controller.again(session, "", small.controls("good")))) > 1


def test_two_methods_stand_beside_the_unsteered_text_and_what_they_say_stays_apart(controller):
    session = Session()
    end = send(controller, session, rival="caa", chat=True)[-1]
    assert end.texts.count("<h3>") == 3 and end.texts.count("perplexity") == 3
    assert "Steered (odesteer)" in end.texts and "Steered (caa)" in end.texts
    send(controller, session, prompt="the dog", rival="", chat=True)
    assert len(session.turns[0].texts) == 3 and len(session.texts) == 2
    assert "Unknown method" in send(controller, session, rival="cab")[-1].error


def test_two_aims_are_in_the_title_the_python_and_the_link(controller):
    end = send(controller, Session(), also="curved", also_amount=0.5)[-1]
    assert "good, angle 0.2 and curved × 0.5" in end.texts
    assert "with steering.attach(model" in end.python and "second = 0.5 * curved" in end.python
    assert "also=curved" in end.link and "prompt=the+cat" in end.link


def test_a_preset_shows_its_examples_and_what_was_fitted_from_lines_does_too(controller):
    presets = Controller(controller.shared, library.presets(), None, {})
    examples = presets.examples(Session(), "formal")
    assert examples == ods.behaviours.load("formal")
    assert presets.examples(Session(), "nothing") is None
    session = Session()
    lines = ("\n".join(f"q {i}" for i in range(18)), GOOD, BAD)
    controller.fit(session, "mine", "caa", lines)
    assert controller.examples(session, "mine").positive[3].prompt == "q 3"
    assert controller.examples(session, "curved") is None


def test_a_link_is_restored_or_refused_and_computes_nothing(controller):
    state, words = controller.restore({"expression": "good", "amount": "0.5", "__theme": "dark"})
    assert state.amount == 0.5 and "press Generate" in words
    assert controller.restore({}) == (None, "")
    state, words = controller.restore({"amount": "<script>"})
    assert state is None and words.count("<") == 2 and "The link is wrong" in words
