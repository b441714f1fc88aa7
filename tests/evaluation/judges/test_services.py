"""Remote judges retry, send each request once, and never show the key.

A server on this machine plays their part.
"""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from odesteer.evaluation.case import Case
from odesteer.evaluation.judges import ChatGrade, Perspective, Score
from odesteer.evaluation.judges.chat_grade import ResponseCache, Service

KEY = "a-secret-that-nobody-should-see"
CASE = Case("Say something.")


class Server(ThreadingHTTPServer):
    """Answers with what `respond(body)` returns: (status, body) or (status, body, headers)."""

    def __init__(self, respond):
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond = respond
        self.requests = []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append((self.path, dict(self.headers.items()), body))
        status, answer, *more = self.server.respond(body)
        payload = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (more[0] if more else {}).items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


@contextmanager
def serving(respond):
    server = Server(respond)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Time:
    """A clock that only sleep moves."""

    def __init__(self):
        self.now = 0.0
        self.pauses = []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


def toxicity(body):
    """Twenty characters are as toxic as it gets."""
    value = min(1.0, len(body["comment"]["text"]) / 20)
    return 200, {"attributeScores": {"TOXICITY": {"summaryScore": {"value": value}}}}


def refusal(kind, status=400):
    detail = {"@type": "x", "errorType": kind}
    return status, {"error": {"code": status, "message": f"no {KEY}", "details": [detail]}}


@pytest.fixture
def perspective(monkeypatch, tmp_path):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", KEY)
    time = Time()

    def make(server, **more):
        judge = Perspective(
            url=server.address,
            memory=tmp_path / "kept" / "scores.jsonl",
            clock=time.clock,
            sleep=time.sleep,
            **more,
        )
        return judge, time

    return make


def test_without_a_key_it_fails_loudly(monkeypatch):
    monkeypatch.delenv("PERSPECTIVE_API_KEY", raising=False)
    with pytest.raises(ValueError, match="PERSPECTIVE_API_KEY"):
        Perspective().score([CASE], ["Hello."])


def test_texts_are_scored_at_the_pace_of_the_quota(perspective):
    with serving(toxicity) as server:
        judge, time = perspective(server, per_second=2.0)
        texts = ["1234567890", "", "12345678901234567890"]
        scores = judge.score([CASE] * 3, texts)
    assert [score.value for score in scores] == [0.5, None, 1.0]
    assert time.pauses == [0.5]  # the empty text was not asked about
    path, headers, body = server.requests[0]
    assert headers["x-goog-api-key".title()] == KEY or KEY in headers.values()
    assert KEY not in path
    assert body["languages"] == ["en"] and body["doNotStore"] is True


def test_a_busy_service_is_asked_again_after_longer_and_longer_pauses(perspective):
    answers = iter([(429, {}), (503, b"<html>"), (429, {}, {"Retry-After": "30"})])
    with serving(lambda body: next(answers, None) or toxicity(body)) as server:
        judge, time = perspective(server, per_second=1000.0)
        (score,) = judge.score([CASE], ["1234567890"])
    assert score == Score(0.5)
    assert [pause for pause in time.pauses if pause >= 1] == [1.0, 2.0, 30.0]


def test_a_service_that_stays_busy_leaves_a_text_unscored_but_not_for_good(perspective):
    status = [503]
    with serving(lambda body: (status[0], {}) if status[0] != 200 else toxicity(body)) as server:
        judge, _ = perspective(server)
        assert judge.score([CASE], ["1234567890"]) == [Score(None, "Perspective: status 503")]
        status[0] = 200
        assert judge.score([CASE], ["1234567890"]) == [Score(0.5)]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE", "language not supported by attribute"),
        ("COMMENT_TOO_LONG", "comment too long"),
    ],
)
def test_what_it_cannot_judge_is_unscored_with_the_reason(perspective, kind, reason):
    with serving(lambda body: refusal(kind)) as server:
        judge, _ = perspective(server, language=None)
        expected = [Score(None, f"Perspective: {reason}")]
        assert judge.score([CASE], ["Bonjour"]) == expected
        assert judge.score([CASE], ["Bonjour"]) == expected
    assert len(server.requests) == 1  # it would say the same again
    assert "languages" not in server.requests[0][2]


@pytest.mark.parametrize(
    "answer",
    [
        (403, {"error": {"message": f"denied {KEY}"}}),
        (400, {"error": {"message": f"bad {KEY}", "details": [{"reason": "API_KEY_INVALID"}]}}),
    ],
)
def test_a_refused_key_is_an_error_that_does_not_show_it(perspective, answer, capsys):
    with serving(lambda body: answer) as server:
        judge, _ = perspective(server)
        with pytest.raises(ValueError, match="refuses the key in PERSPECTIVE_API_KEY") as caught:
            judge.score([CASE], ["Hello."])
    printed = capsys.readouterr()
    assert KEY not in f"{caught.value}{judge!r}{printed.out}{printed.err}"


def test_a_killed_run_does_not_ask_again(perspective, tmp_path):
    texts = ["a", "ab", "abc", "abcd"]
    with serving(toxicity) as server:
        judge, _ = perspective(server)
        first = judge.score([CASE] * 3, texts[:3])
        file = tmp_path / "kept" / "scores.jsonl"
        # killed in the middle of writing the third
        file.write_bytes(file.read_bytes()[:-30])
        assert judge.score([CASE] * 4, texts)[:3] == first
        assert len(server.requests) == 3 + 2
        judge.score([CASE] * 4, texts)
        assert len(server.requests) == 3 + 2
        assert not any(text in file.read_text() for text in ("comment", KEY))


def test_another_question_is_not_answered_from_memory(perspective):
    with serving(toxicity) as server:
        judge, _ = perspective(server)
        judge.score([CASE], ["same text"])
        other, _ = perspective(server, language="de")
        other.score([CASE], ["same text"])
    assert len(server.requests) == 2


def test_two_writers_share_a_memory(tmp_path):
    one, other = ResponseCache(tmp_path / "m"), ResponseCache(tmp_path / "m")
    one.add("a", Score(0.25))
    other.add("b", Score(None, "why"))
    again = ResponseCache(tmp_path / "m")
    assert again.get("a") == Score(0.25) and again.get("b") == Score(None, "why")
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


def says(reply):
    return lambda body: (200, {"choices": [{"message": {"content": reply}}]})


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
    assert headers["Authorization"] == f"Bearer {KEY}"


def test_a_grade_is_asked_for_once(tmp_path):
    with serving(says('{"score": 5}')) as server:
        grade(server, tmp_path)
        grade(server, tmp_path)
        assert len(server.requests) == 1
        grade(server, tmp_path, text="Something else.")
        assert len(server.requests) == 2


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
