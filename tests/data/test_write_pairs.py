"""Pairs are written once, filtered, and what asks for them may be killed at any time."""

import itertools
import json
from types import SimpleNamespace

import httpx
import pytest
from tests.helpers import chat_models
from tests.helpers import models as tiny
from tests.helpers.scripted_server import Time, says, serving

from odesteer.data import Contrast
from odesteer.data.confounds import confounds
from odesteer.data.pairs import Trait, write_pairs
from odesteer.data.pairs.traits import PLAIN, everyday_questions
from odesteer.data.pairs.write import UNIT, alike, answers_path, clean, flaw
from odesteer.data.pairs.writers import LocalWriter
from odesteer.models.generation import generate

KEY = "a-secret-that-nobody-should-see"
CAPTAIN = "speaks like a sea captain"
MODELS = {"data": [{"id": "first"}, {"id": "second"}]}


def reply(text):
    return 200, {"choices": [{"message": {"content": text}}]}


def answer(body):
    """The list of models, or an answer that follows its instruction."""
    if not body:
        return 200, MODELS
    question, instruction = body["messages"][-1]["content"].split("\n\n")
    name = question.strip("?.!")
    wanted = "captain" in instruction
    return reply(f"Aye, {name} it is, mate." if wanted else f"Well, {name} it may be.")


def write(server, path, description=CAPTAIN, n=4, **more):
    options = {"clock": Time().clock, "sleep": Time().sleep, **more}
    return write_pairs(description, f"{server.address}/v1", path, n, **options)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pairs.jsonl"


def test_a_server_writes_pairs_that_the_reader_reads_as_they_are(path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(answer) as server:
        written = write(server, path, n=12)
    rows = read(path)
    assert len(rows) == 12 and written.model == "first" and not written.rejected
    assert written.contrast == Contrast.from_file(path) and written.contrast.is_paired
    assert {row["prompt"] for row in rows} <= set(everyday_questions())
    assert all(row["positive"].startswith("Aye") for row in rows)
    assert all(row["negative"].startswith("Well") for row in rows)
    source = rows[0]["source"]
    assert source["model"] == "first" and source["seed"] == 0
    assert CAPTAIN in source["positive"] and source["negative"].startswith(PLAIN)
    _, headers, body = server.requests[1]
    assert headers["authorization"] == f"Bearer {KEY}"
    assert body["max_tokens"] == 96 and body["temperature"] == 0.7 and "seed" in body
    assert KEY not in path.read_text() + answers_path(path).read_text()


def test_nothing_is_asked_twice_and_more_pairs_begin_with_the_same(path):
    with serving(answer) as server:
        first = write(server, path, n=UNIT)
        requests = len(server.requests)
        assert requests == 1 + 2 * UNIT
        assert write(server, path, n=UNIT).contrast == first.contrast
        assert len(server.requests) == requests + 1  # the list of models
        before = read(path)
        write(server, path, n=UNIT + 2)
        assert read(path)[:UNIT] == before
        assert len(server.requests) == requests + 2 + 2 * UNIT


def test_a_server_that_dies_midway_is_gone_on_with(path):
    number, last = itertools.count(1), [20]

    def respond(body):
        alive = next(number) <= last[0]
        return answer(body) if alive else (503, {"error": {"message": "overloaded"}})

    with serving(respond) as server:
        with pytest.raises(ConnectionError, match=r"status 503 \(overloaded\) after 2 tries. What"):
            write(server, path, n=16, tries=2)
        assert not path.exists()
        file = answers_path(path)
        answered = file.read_text().count('"key"')
        assert answered == 19
        # The last line was being written.
        file.write_bytes(file.read_bytes()[:-30])
        last[0] = 10**6
        server.requests.clear()
        resumed = write(server, path, n=16)
        assert len(server.requests) == 1 + 32 - (answered - 1)
    with serving(answer) as server:
        assert write(server, path.with_name("other.jsonl"), n=16).contrast == resumed.contrast


def test_a_server_that_goes_away_or_is_too_slow_is_named(path, monkeypatch):
    with serving(answer) as server:
        pass
    with pytest.raises(ConnectionError, match=r"No answer from http.* after 2 tries"):
        write(server, path, tries=2)

    def too_slow(*_, **__):
        raise httpx.ReadTimeout("timed out")

    monkeypatch.setattr(httpx.Client, "request", too_slow)
    with pytest.raises(ConnectionError, match=r"after 3 tries: timed out. What was answered is k"):
        write(server, path, tries=3)


@pytest.mark.parametrize(
    ("response", "words"),
    [
        ((401, {"error": {"message": f"bad key {KEY}"}}), r"status 401 \(bad key \(the key\)\)"),
        ((403, b"<html>"), "status 403. The key is read from the environment: OPENAI_API_KEY"),
        ((404, {"error": "no such path"}), r"status 404 \(no such path\)"),
        ((200, b"<html>hello"), "lists no model .*--model"),
        ((200, {"data": []}), "lists no model"),
        ((200, b"[" * 10**5), "lists no model"),
    ],
)
def test_a_server_that_refuses_is_quoted_without_the_key(response, words, path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(lambda body: response) as server, pytest.raises(ValueError, match=words) as caught:
        write(server, path)
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)
    assert not path.exists()


@pytest.mark.parametrize("body", [b"<html>", b"{", {}, {"choices": []}, [1], b"\xff"])
def test_a_server_that_answers_rubbish_is_an_error_that_shows_it(body, path):
    with (
        serving(lambda _: (200, body)) as server,
        pytest.raises(ValueError, match="does not answer as a chat completion") as caught,
    ):
        write(server, path, model="mine")
    assert "\n" not in str(caught.value)


def test_single_answers_that_cannot_be_read_are_left_out_and_asked_again_next_time(path):
    broken = [True]

    def respond(body):
        if broken[0] and body and "captain" in body["messages"][-1]["content"]:
            question = body["messages"][-1]["content"]
            if len(question) % 2:
                return 200, b"<html>"
        return answer(body)

    with serving(respond) as server:
        first = write(server, path, n=8)
        assert first.rejected == {"empty": first.questions - 8} and first.questions > 8
        broken[0] = False
        assert not write(server, path, n=8).rejected


def test_what_a_server_does_not_take_is_left_out(path):
    def respond(body):
        if body:
            for name, code in (("max_tokens", "unsupported_parameter"), ("temperature", "value")):
                if name in body:
                    return 400, {"error": {"message": "No.", "param": name, "code": code}}
            if body["messages"][0]["role"] == "system":
                return 400, {"error": {"message": "System role not supported"}}
        return answer(body)

    trait = Trait((("Speak as a captain.", "Speak as a banker."),), ("A?", "B?", "C?"), system=True)
    with serving(respond) as server:
        assert len(write(server, path, trait, n=3).contrast.positive) == 3
    _, _, body = server.requests[-1]
    assert body["max_completion_tokens"] == 96 and not {"max_tokens", "temperature"} & {*body}


def test_an_address_is_checked_before_anything_is_sent(path):
    with pytest.raises(ValueError, match="give the key in OPENAI_API_KEY") as caught:
        write_pairs(CAPTAIN, f"https://me:{KEY}@example.org/v1", path)
    assert KEY not in str(caught.value)
    for url in ("http://", "http://host:port/v1", "https:///v1"):
        with pytest.raises(ValueError, match="goes up to the version"):
            write_pairs(CAPTAIN, url, path)


# ---- what is kept


QUESTION = "What is the wind like on the hill?"
INSTRUCTIONS = ("Answer in this manner: speaks like a sea captain.", PLAIN)


@pytest.mark.parametrize(
    ("positive", "negative", "reason"),
    [
        ("Aye, a stiff one.", "A strong one.", None),
        ("", "A strong one.", "empty"),
        ("...", "A strong one.", "empty"),
        ("A strong one!", "a strong  one", "identical"),
        ("I'm sorry, but I can't help with that.", "A strong one.", "a refusal"),
        ("Aye, stiff.", "As an AI language model, I feel no wind.", "a refusal"),
        ("I am sorry to hear that, sailor.", "I can't complain about it.", None),
        ("To speak like a sea captain: aye.", "It is strong.", "repeats the instruction"),
        ("The wind like on the hill? Stiff.", "The wind like on the hill? Strong.", None),
        ("Aye.", "It is a strong one, most of the day.", "lengths apart"),
    ],
)
def test_a_pair_that_cannot_be_learnt_from_is_left_out(positive, negative, reason):
    assert flaw(positive, negative, QUESTION, INSTRUCTIONS, 3.0) == reason


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("  Aye, mate. And then the", "Aye, mate."),
        ("Aye, mate", "Aye, mate"),
        ("<think>Hm. A captain.</think>\nAye.", "Aye."),
        ("Hm. A captain.</think>Aye!", "Aye!"),
        ("<think>Hm. A captain", ""),
        ('He said "Aye." Then it', 'He said "Aye."'),
        ("Do this: 1. Sit 2. Stand", "Do this: 1. Sit 2. Stand"),
        ("It costs 5.", "It costs 5."),
    ],
)
def test_thoughts_and_a_last_sentence_that_is_cut_short_are_taken_off(text, kept):
    assert clean(text) == kept


def test_answers_are_not_repeated_and_too_few_are_written_all_the_same(path):
    with serving(lambda body: (200, MODELS) if not body else answer_of_few(body)) as server:
        written = write(server, path, n=10)
    assert len(written.contrast.positive) == 2 and written.questions == 40
    assert written.rejected == {"written before": 38}


def answer_of_few(body):
    content = body["messages"][-1]["content"]
    word = ("Red", "Blue")[len(content.split("\n\n")[0]) % 2]
    return reply(f"{word}, aye." if "captain" in content else f"{word}, yes.")


def test_when_nothing_can_be_used_the_reasons_are_given(path):
    with (
        serving(says("I'm sorry, I cannot help with that.")) as server,
        pytest.raises(ValueError, match=r"None of 32 pairs by 'm' can be used: 32 a refusal"),
    ):
        write(server, path, model="m")
    assert not path.exists()


def test_more_pairs_than_questions_ask_again_with_other_instructions_and_seeds(path):
    count = iter(range(1000))
    trait = Trait((("Yes.", "No."), ("Always.", "Never.")), ("A?", "B?", "C?"))
    with serving(lambda body: reply(f"word{next(count)} it is") if body else (200, MODELS)) as s:
        written = write(s, path, trait, n=12)
    rows = read(path)
    assert len(rows) == 12 and len({row["prompt"] for row in rows}) == 3
    first = [row["source"]["positive"] for row in rows if row["prompt"] == rows[0]["prompt"]]
    assert {text.split()[0] for text in first} == {"Yes.", "Always."}
    assert len({body["seed"] for _, _, body in s.requests if body}) > 1
    assert len({*written.contrast.groups[0]}) == 3


def test_a_file_that_holds_something_else_is_not_replaced(path):
    path.write_text('{"prompt": "a", "positive": "b", "negative": "c"}\n')
    with serving(answer) as server:
        with pytest.raises(ValueError, match="is there and holds other texts"):
            write(server, path)
        path.unlink()
        write(server, path)
        before = path.read_text()
        with pytest.raises(ValueError, match="is there and holds other texts"):
            write(server, path, "speaks like a banker")
    assert path.read_text() == before


def test_an_opposite_is_asked_for_in_the_same_words(path):
    with serving(answer) as server:
        write(server, path, opposite="speaks like a banker.", form="")
    source = read(path)[0]["source"]
    assert source["positive"] == "Answer in this manner: speaks like a sea captain."
    assert source["negative"] == "Answer in this manner: speaks like a banker."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"description": " . "}, "A description says how"),
        ({"description": "is rude", "opposite": "is rude"}, "Both instructions"),
        ({"path": "pairs.csv"}, r"a \.jsonl file; got 'pairs\.csv'"),
        ({"n": 0}, "n >= 1"),
        ({"seed": -1}, "seed >= 0"),
        ({"length_ratio": 0.5}, "length_ratio >= 1"),
        ({"writer": 3}, r"\(model, tokenizer\); got int"),
        ({"writer": "smollm2", "model": "m"}, "'smollm2' is no address"),
        ({"description": Trait((("a", "b"),)), "opposite": "c"}, "opposite= is for a description"),
    ],
)
def test_wrong_arguments_are_said_before_anything_is_asked(arguments, words, path):
    nowhere = {"description": CAPTAIN, "writer": "http://127.0.0.1:9/v1", "path": path}
    with pytest.raises(ValueError, match=words):
        write_pairs(**{**nowhere, **arguments})


def test_sides_that_words_do_not_tell_apart_are_noted():
    texts = [f"word{i} and word{i + 1}" for i in range(40)]
    same = Contrast.from_pairs(texts, texts[::-1])
    assert "may not have followed" in alike(same)
    other = Contrast.from_pairs([f"aye, {text}" for text in texts], texts)
    assert alike(other) is None and alike(Contrast.from_pairs(["a"], ["b"])) is None


# ---- trait files


TRAIT = {
    "instruction": [{"pos": "Be rude.", "neg": "Be kind."}],
    "questions": ["How are you?", "And now?"],
    "eval_prompt": "Is {answer} rude?",
}


def test_a_trait_file_gives_instructions_for_the_systems_turn(path, tmp_path):
    file = tmp_path / "rude.json"
    file.write_text(json.dumps(TRAIT))
    trait = Trait.from_file(file)

    def respond(body):
        rude = body and "rude" in body["messages"][0]["content"]
        return reply("Go away, you." if rude else "Come in, friend.") if body else (200, MODELS)

    with serving(respond) as server:
        write(server, path, trait, n=1)
    assert read(path)[0]["positive"] == "Go away, you."
    _, _, body = server.requests[1]
    assert body["messages"][0]["role"] == "system" and "Be " in body["messages"][0]["content"]
    assert body["messages"][1]["content"] in TRAIT["questions"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "is no trait file"),
        (json.dumps({**TRAIT, "questions": [1]}), "is no trait file"),
        (json.dumps({**TRAIT, "instruction": [{"pos": "a"}]}), "is no trait file"),
        (json.dumps({**TRAIT, "questions": []}), "A trait needs questions"),
        (json.dumps({**TRAIT, "instruction": []}), "A trait needs instructions"),
        (json.dumps({**TRAIT, "questions": [" "]}), "none of them empty"),
    ],
)
def test_a_trait_file_that_is_none_is_named(content, words, tmp_path):
    file = tmp_path / "t.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=words) as caught:
        Trait.from_file(file)
    assert "t.json" in str(caught.value) and "\n" not in str(caught.value)


# ---- a model in this process


@pytest.fixture
def calls(monkeypatch):
    """Calls of a random model, of which the n-th is interrupted where that is asked for."""
    counted = SimpleNamespace(done=0, interrupted=None)

    def counting(*arguments, **more):
        if counted.done == counted.interrupted:
            raise KeyboardInterrupt
        counted.done += 1
        return generate(*arguments, **more)

    monkeypatch.setattr("odesteer.data.pairs.writers.generate", counting)
    return counted


def local(path, **more):
    writer = (tiny.model(), tiny.tokenizer(chat=True))
    return write_pairs("is good", writer, path, max_new_tokens=8, length_ratio=99.0, **more)


def test_a_local_model_writes_the_same_for_the_same_seed_also_after_it_was_killed(
    calls, path, tmp_path
):
    whole = local(path, n=10).contrast
    needed = calls.done
    assert local(tmp_path / "b.jsonl", n=10).contrast == whole
    assert local(tmp_path / "c.jsonl", n=10, seed=1).contrast != whole

    calls.done, calls.interrupted = 0, 1
    with pytest.raises(KeyboardInterrupt):
        local(tmp_path / "d.jsonl", n=10)
    assert not (tmp_path / "d.jsonl").exists()
    calls.done, calls.interrupted = 0, None
    assert local(tmp_path / "d.jsonl", n=10).contrast == whole
    assert calls.done == needed - 1  # the first unit was kept


def test_a_base_model_is_refused_unless_it_is_asked_with_a_template():
    base = (tiny.model(), tiny.tokenizer(), "base")
    with pytest.raises(ValueError, match=r"'base' has no chat template: a base model continues"):
        LocalWriter(*base)
    LocalWriter(*base, "Q: {prompt}\nA: {response}")


@pytest.mark.parametrize(("template", "system"), [("chatml", True), ("gemma", False)])
def test_a_template_without_a_systems_turn_is_seen(template, system):
    assert LocalWriter(None, chat_models.tokenizer(template), "m")._system is system


def test_the_everyday_questions_are_many_and_each_is_one():
    questions = everyday_questions()
    assert len(questions) == len(set(questions)) > 1000
    assert not any("\n" in question for question in questions)


def test_confounds_are_those_of_the_written_pairs(path):
    with serving(answer) as server:
        notes = confounds(write(server, path, n=12).contrast)
    assert any("begin with the word 'aye'" in note for note in notes)
