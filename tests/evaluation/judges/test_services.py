"""Remote judges retry, send each request once, and never show the key.

A server on this machine plays its part.
"""

import pytest
from tests.helpers.scripted_server import Time, says, serving

from odesteer.common.chat_completions import ResponseCache, Service
from odesteer.evaluation.case import Case
from odesteer.evaluation.judges import ChatGrade, Score

KEY = "a-secret-that-nobody-should-see"
CASE = Case("Say something.")


def post(server, **more):
    """A service with a clock of its own; its time."""
    time = Time()
    service = Service(server.address, {"x-key": KEY}, clock=time.clock, sleep=time.sleep, **more)
    return service, time


def test_requests_keep_the_pace_of_the_quota():
    with serving(lambda body: (200, body)) as server:
        service, time = post(server, per_second=2.0)
        bodies = [service.post({"n": n}).json() for n in range(2)]
    assert bodies == [{"n": 0}, {"n": 1}]
    assert time.pauses == [0.5]
    path, headers, _ = server.requests[0]
    assert KEY in headers.values() and KEY not in path


def test_a_busy_service_is_asked_again_after_longer_and_longer_pauses():
    answers = iter([(429, {}), (503, b"<html>"), (429, {}, {"Retry-After": "30"})])
    with serving(lambda body: next(answers, (200, {}))) as server:
        service, time = post(server, per_second=1000.0)
        assert service.post({}).status_code == 200
    assert [pause for pause in time.pauses if pause >= 1] == [1.0, 2.0, 30.0]


def test_half_a_surrogate_pair_is_posted_as_it_is():
    with serving(lambda body: (200, body)) as server:
        assert post(server)[0].post({"text": "\ud83d"}).json() == {"text": "\ud83d"}


def test_two_writers_share_a_memory(tmp_path):
    one, other = ResponseCache(tmp_path / "m"), ResponseCache(tmp_path / "m")
    one.add("a", value=0.25, reason=None)
    other.add("b", value=None, reason="why")
    again = ResponseCache(tmp_path / "m")
    assert again.get("a") == {"value": 0.25, "reason": None}
    assert again.get("b") == {"value": None, "reason": "why"}
    assert again.get("c") is None


def test_a_redirection_does_not_get_the_key():
    with serving(lambda body: (200, {})) as elsewhere:
        there = {"Location": elsewhere.address}
        with serving(lambda body: (302, {}, there)) as server:
            service = Service(server.address, {"x-key": KEY}, tries=1)
            with pytest.raises(ConnectionError, match="redirects") as caught:
                service.post({})
    assert not elsewhere.requests
    assert KEY not in f"{caught.value}{service!r}"


def test_nobody_there_is_an_error_after_all_tries():
    with serving(lambda body: (200, {})) as server:
        address = server.address
    time = Time()
    service = Service(address, {}, tries=3, clock=time.clock, sleep=time.sleep)
    with pytest.raises(ConnectionError, match="after 3 tries"):
        service.post({})
    assert time.pauses == [1.0, 2.0]


# ---- a chat model as judge


def grade(server, tmp_path, case=CASE, text="Something.", **more):
    judge = ChatGrade(
        url=f"{server.address}/v1", memory=tmp_path / "grades.jsonl", sleep=Time().sleep, **more
    )
    return judge.score([case], [text])[0]


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('{"score": 7}', 7.0),
        ('```json\n{"reason": "short", "score": 3.5}\n```', 3.5),
        ("Clear and correct.\n**Score: 9**/10", 9.0),
        ('At first {"score": 2}, but on reflection {"score": 4}', 4.0),
        (" 10 ", 10.0),
        ("{score: 6}", 6.0),
    ],
)
def test_a_grade_is_read_from_the_reply(reply, value, tmp_path):
    with serving(says(reply)) as server:
        assert grade(server, tmp_path) == Score(value)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("I cannot grade this.", "no grade in the reply"),
        ("", "no grade in the reply"),
        ('{"score": 11}', "the grade 11 is not from 1 to 10"),
        ('{"score": null}', "no grade in the reply"),
        ("There are 3 errors in 5 lines.", "no grade in the reply"),
    ],
)
def test_a_reply_without_a_grade_is_unscored(reply, reason, tmp_path):
    with serving(says(reply)) as server:
        score = grade(server, tmp_path)
    assert score.value is None and reason in score.reason


def test_texts_stay_as_they_are_in_the_question(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    case = Case("What is {generation}?", references=("A field.",), distractors=("A sheep.",))
    with serving(says('{"score": 5}')) as server:
        grade(server, tmp_path, case, "It is {prompt}.", criterion="is it true", model="mine")
    path, headers, body = server.requests[0]
    asked = body["messages"][0]["content"]
    assert "What is {generation}?" in asked and "It is {prompt}." in asked
    assert "A field." in asked and "A sheep." in asked and "is it true" in asked
    assert '{"score": n}' in asked and "from 1 (worst) to 10 (best)" in asked
    assert (path, body["model"], body["temperature"]) == ("/v1/chat/completions", "mine", 0)
    assert headers["authorization"] == f"Bearer {KEY}"


def test_a_grade_is_asked_for_once(tmp_path):
    with serving(says('{"score": 5}')) as server:
        grade(server, tmp_path)
        grade(server, tmp_path)
        assert len(server.requests) == 1
        grade(server, tmp_path, text="Something else.")
        assert len(server.requests) == 2


def test_a_server_that_stays_busy_leaves_a_text_unscored_but_not_for_good(tmp_path):
    status = [503]
    reply = says('{"score": 5}')
    with serving(lambda body: (status[0], {}) if status[0] != 200 else reply(body)) as server:
        assert grade(server, tmp_path, model="mine") == Score(None, "mine: status 503")
        status[0] = 200
        assert grade(server, tmp_path, model="mine") == Score(5.0)


def test_a_refused_key_is_an_error_that_does_not_show_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with (
        serving(lambda body: (403, {"error": {"message": f"denied {KEY}"}})) as server,
        pytest.raises(ValueError, match="refuses requests: status 403") as caught,
    ):
        grade(server, tmp_path)
    printed = capsys.readouterr()
    assert KEY not in f"{caught.value}{printed.out}{printed.err}"


def test_a_killed_run_does_not_ask_again(tmp_path):
    texts = ["a", "ab", "abc", "abcd"]
    with serving(says('{"score": 5}')) as server:
        first = [grade(server, tmp_path, text=text) for text in texts[:3]]
        file = tmp_path / "grades.jsonl"
        # killed in the middle of writing the third
        file.write_bytes(file.read_bytes()[:-30])
        assert [grade(server, tmp_path, text=text) for text in texts][:3] == first
        assert len(server.requests) == 3 + 2
        [grade(server, tmp_path, text=text) for text in texts]
        assert len(server.requests) == 3 + 2
        assert not any(text in file.read_text() for text in ("messages", KEY))


def test_a_wrong_model_or_key_is_an_error(tmp_path, monkeypatch):
    with (
        serving(lambda body: (404, {"error": "no such model"})) as server,
        pytest.raises(ValueError, match="status 404"),
    ):
        grade(server, tmp_path)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="needs a key in OPENAI_API_KEY"):
        ChatGrade().score([CASE], ["Hello."])
