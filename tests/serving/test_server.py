"""The server serves many clients at once, and refuses in words."""

import json
import os
import random
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from openai import AuthenticationError, BadRequestError, NotFoundError, OpenAI
from tests.helpers.paths import REPOSITORY
from tests.serving import routes
from tests.serving.mixed import ENDS, SHARED, SHORT, requests
from tests.serving.served import COMPOSED, language_model, steered, tokens

import odesteer as ods
from odesteer.backends.vllm import ask
from odesteer.backends.vllm.request_validation import STEERED
from odesteer.data.pairs import write_pairs

NEW = 8
TOKEN = "correct-horse"


class Server:
    """`odesteer serve` as somebody would start it, on a port that is free."""

    def __init__(self, steerings: dict[str, Any]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        given = [f"--steering={name}={path}" for name, path in steerings.items()]
        given += [f"--compose={name}={text}" for name, text in COMPOSED.items()]
        engine = "--dtype float32 --enforce-eager --max-model-len 512 --block-size 32"
        engine += " --generation-config vllm --enable-prefix-caching --enable-scale-out"
        engine += f" --api-key {TOKEN} --middleware {routes.__name__}.Listing"
        command = [sys.executable, "-m", "odesteer", "serve", "smollm2", *given]
        command += [f"--port={self.port}", "--", *engine.split()]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "VLLM_LOGGING_LEVEL": "INFO"},
        )
        self.lines: list[str] = []
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        self._ready.wait()
        assert self.process.poll() is None, "".join(self.lines[-40:])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if "Application startup complete" in line:
                self._ready.set()
        self._ready.set()  # it ended

    def client(self, key: str = TOKEN) -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0)

    def send(self, path: str, body: Any, method: str = "POST", key: str = TOKEN) -> tuple[int, str]:
        """Status and text of the answer."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", raw, headers, method=method
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def processed(self) -> float:
        """The tokens that the engine has read and written."""
        names = ("vllm:prompt_tokens_total{", "vllm:generation_tokens_total{")
        lines = self.get("/metrics").splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(names))

    def get(self, path: str) -> str:
        status, text = self.send(path, b"", "GET")
        assert status == 200, text
        return text

    def memory(self) -> int:
        """Resident bytes of the server's processes."""
        whole = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in [whole, *whole.children(recursive=True)])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@pytest.fixture(scope="module")
def server(steerings: dict[str, Any]) -> Iterator[Server]:
    running = Server(steerings)
    yield running
    running.stop()


def complete(client: OpenAI, prompt: str, extra: Any, **more: Any) -> str:
    """What the server writes, greedily."""
    body = {"ignore_eos": True, **({"vllm_xargs": extra} if extra else {})}
    options = {"model": "smollm2", "max_tokens": NEW, "temperature": 0, **more}
    answer = client.completions.create(prompt=prompt, extra_body=body, **options)
    return str(answer.choices[0].text)


@pytest.fixture(scope="module")
def expected(reference: Any) -> Any:
    def text(prompt: str, extra: Any, new: int = NEW) -> str:
        _, tokenizer = language_model()
        ids = reference(tokens(prompt), extra, new)
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    return text


def test_sixteen_clients_get_what_transformers_writes(server: Server, expected: Any) -> None:
    client = server.client()
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda request: complete(client, *request), requests()))
    for (prompt, extra), text in zip(requests(), found, strict=True):
        assert text == expected(prompt, extra), extra


MALFORMED = [
    ({"odesteer": "{"}, "no JSON"),
    ({"odesteer": '{"name": "nobody"}'}, "Unknown steering 'nobody'"),
    ({"odesteer": '{"name": "flw"}'}, "Did you mean 'flow'"),
    ({"odesteer": '{"name": "flow", "strength": 1e300}'}, "strength is a number"),
    ({"odesteer": '{"name": "flow", "path": "/etc/passwd"}'}, "no field 'path'"),
    ({"odesteer": '{"name": "../flow"}'}, "Unknown steering"),
    ({"odesteer": '{"name": "prompted", "target": 0.9}'}, "no barrier"),
    ({"odesteer": '{"name": "prompted", "start": "all"}'}, "last_prompt or generated"),
    ({"odesteer": 3}, "JSON object"),
    ({"odesteer": ["flow"]}, "an object with a name"),
]


def test_malformed_requests_get_400_with_words_and_harm_nobody(
    server: Server, expected: Any
) -> None:
    client = server.client()

    def alternate(i: int) -> str:
        if i % 2:
            return complete(client, SHORT[0], ask("flow"))
        extra, word = MALFORMED[i // 2 % len(MALFORMED)]
        with pytest.raises(BadRequestError) as caught:
            complete(client, SHORT[0], extra)
        assert word in str(caught.value) and "Traceback" not in str(caught.value)
        return "refused"

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(alternate, range(2 * len(MALFORMED))))
    assert found.count("refused") == len(MALFORMED)
    assert set(found) == {"refused", expected(SHORT[0], ask("flow"))}
    assert server.get("/health") == ""


def test_beam_search_is_refused_and_not_served_unsteered(server: Server) -> None:
    body = {"use_beam_search": True, "vllm_xargs": ask("flow")}
    with pytest.raises(BadRequestError, match="beam search is not steered"):
        server.client().completions.create(
            model="smollm2", prompt="The", n=2, extra_body=body, max_tokens=4
        )


def test_a_model_named_with_a_steering_is_steered(server: Server, expected: Any) -> None:
    client = server.client()
    names = [model.id for model in client.models.list()]
    assert names[0] == "smollm2" and "smollm2:flow" in names and "smollm2:both" in names
    assert complete(client, SHORT[1], None, model="smollm2:flow") == expected(SHORT[1], ask("flow"))
    with pytest.raises(NotFoundError):
        complete(client, SHORT[1], None, model="smollm2:nobody")
    assert complete(client, SHORT[1], ask("flow"), model="smollm2:flow") == expected(
        SHORT[1], ask("flow")
    )
    with pytest.raises(BadRequestError, match="'flow' and vllm_xargs for 'vector'"):
        complete(client, SHORT[1], ask("vector"), model="smollm2:flow")


GREEDY = {"temperature": 0, "max_tokens": NEW, "ignore_eos": True}
CHAT = [{"role": "user", "content": "How was the trip?"}]
ITEMS = [" dark", " bright"]
LABELS = [5, 6]


def bodies() -> dict[str, list[tuple[dict[str, Any], Any]]]:
    """For every route that steers: requests, and how to find what was written in an answer."""
    text: tuple[Any, Any] = (
        {"prompt": SHORT[1], **GREEDY},
        lambda answer: [each["text"] for each in answer["choices"]],
    )

    def contents(answer: Any) -> list[str]:
        return [each["message"]["content"] for each in answer["choices"]]

    chat: tuple[Any, Any] = ({"messages": CHAT, **GREEDY}, contents)
    return {
        "/v1/completions": [text],
        "/v1/chat/completions": [chat],
        "/v1/chat/completions/batch": [({"messages": [CHAT, CHAT], **GREEDY}, contents)],
        "/v1/responses": [
            (
                {"input": CHAT[0]["content"], "max_output_tokens": NEW, **GREEDY},
                lambda answer: [answer["output"][0]["content"][0]["text"]],
            )
        ],
        "/v1/messages": [
            ({"messages": CHAT, **GREEDY}, lambda answer: [answer["content"][0]["text"]])
        ],
        "/invocations": [text, chat],
        "/generative_scoring": [
            (
                {"query": SHORT[0], "items": ITEMS, "label_token_ids": LABELS},
                lambda answer: [each["score"] for each in answer["data"]],
            )
        ],
        "/inference/v1/generate": [
            (
                {"token_ids": tokens(SHORT[1]), "sampling_params": GREEDY},
                lambda answer: [answer["choices"][0]["token_ids"]],
            )
        ],
    }


@pytest.fixture(scope="module")
def predicted(reference: Any, named: dict[str, Any]) -> Any:
    """What transformers makes of the requests above."""
    model, tokenizer = language_model()
    chat = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)

    def score(item: str, extra: Any) -> float:
        ids = tokens(SHORT[0]) + tokens(item)
        with steered(model, named, extra, len(ids), len(ids)), torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        return float(logits[LABELS].softmax(dim=-1)[0])

    def of(body: dict[str, Any], extra: Any) -> Any:
        if "query" in body:
            return pytest.approx([score(item, extra) for item in ITEMS], abs=1e-3)
        if "token_ids" in body:
            return [reference(body["token_ids"], extra, NEW)]
        ids = tokens(body["prompt"]) if "prompt" in body else chat
        text = tokenizer.decode(reference(ids, extra, NEW), skip_special_tokens=True)
        return [text] * (2 if isinstance(body.get("messages", [0])[0], list) else 1)

    return of


def test_finding_2_every_route_that_steers_does_so_as_the_model_is_named(
    server: Server, predicted: Any
) -> None:
    assert bodies().keys() == STEERED
    for path, some in bodies().items():
        for body, read in some:
            for model, extra in (("smollm2", None), ("smollm2:flow", ask("flow"))):
                status, text = server.send(path, {"model": model, **body})
                assert status == 200, (path, text)
                assert read(json.loads(text)) == predicted(body, extra), (path, model)
            request = {"model": "smollm2", **body, "vllm_xargs": ask("flow")}
            answer = read(json.loads(server.send(path, request)[1]))
            assert answer == predicted(body, ask("flow")), path
            assert answer != predicted(body, None), path


# Enough for any route to begin with.
EVERYTHING = {
    "prompt": "The", "messages": CHAT, "input": "The", "query": "The", "items": ITEMS,
    "label_token_ids": LABELS, "text_1": "The", "text_2": "An", "documents": ["The"], "data": "The",
    "texts": ["The"], "token_ids": [504], "tokens": [504], "max_tokens": 2, "sampling_params": {},
    "state": "The", "questions": {"q": {"type": "yes_no", "instructions": "Is it?"}},
}  # fmt: skip


def test_finding_2_no_other_route_reaches_the_engine_with_a_steering(server: Server) -> None:
    """The routes are those of the application, so one that a new vLLM has is among them."""
    listed = json.loads(server.get(routes.PATH))
    posts = {path for path, methods in listed if {"POST", "PUT", "PATCH"} & set(methods)}
    assert posts >= STEERED and len(posts) > len(STEERED)
    before = server.processed()
    for path in sorted(posts - STEERED):
        for asked in ({"model": "smollm2:flow"}, {"vllm_xargs": ask("flow")}):
            body = {"model": "smollm2", **EVERYTHING, **asked}
            status, text = server.send(path.replace("{response_id}", "x"), body)
            assert server.processed() == before, (path, status, text)
    body = {"model": "smollm2", "prompt": "The", "max_tokens": 2, "ignore_eos": True}
    server.send("/v1/completions", body)
    assert server.processed() == before + 3  # so this would have been seen


@pytest.mark.parametrize("path", ["/v1/completions", "/invocations"])
def test_finding_12_what_would_have_been_ignored_is_refused_by_the_server(
    server: Server, path: str
) -> None:
    body = {"model": "smollm2", "prompt": "The", "max_tokens": 1}
    for wrong in (
        {"model": "smollm2:nobody"},
        {"model": "smollm2:flow", "use_beam_search": True, "n": 2},
        {"odesteer": '{"name": "flow"}'},
        {"vllm_xargs": {"Odesteer": '{"name": "flow"}'}},
        {"vllm_xargs": {"odesteer": '{"name": "flow", "name": "vector"}'}},
        {"stream": True, "vllm_xargs": ask("nobody")},
    ):
        status, text = server.send(path, {**body, **wrong})
        assert status in (400, 404) and len(text) < 400, text


def test_finding_7_the_key_guards_what_steers(server: Server) -> None:
    listed = json.loads(server.get(routes.PATH))
    free = {"/health", "/ping", "/metrics", "/version", "/load", "/docs", "/redoc", "/openapi.json"}
    for path, methods in listed:
        for method in set(methods) - {"HEAD"} or {"GET"}:
            status, _ = server.send(path.replace("{response_id}", "x"), b"", method, key="wrong")
            open_ = path in {*free, "/docs/oauth2-redirect"}
            assert (status == 401) != open_, (path, method, status)
    with pytest.raises(AuthenticationError):
        server.client(key="none").models.list()
    assert 'steering="flow"' in server.send("/metrics", b"", "GET", key="none")[1]  # as docs say


def test_finding_7_hostile_requests_do_not_stay_in_memory(server: Server) -> None:
    """100 texts of 1 MB: kept, as they were, they would be 100 MB in each of three processes."""

    def answer(i: int) -> int:
        blanks = '{"name": "flow"' + " " * (1_000_000 + i) + "}"
        body = {"model": "smollm2", "prompt": "The", "max_tokens": 1}
        status, _ = server.send("/v1/completions", {**body, "vllm_xargs": {"odesteer": blanks}})
        return status

    answer(0)
    before = server.memory()
    assert {answer(i) for i in range(1, 101)} == {400}
    assert server.memory() - before < 100 * 2**20
    assert server.get("/health") == ""


def test_samples_of_one_request_are_steered_each(server: Server) -> None:
    def sampled(model: str, extra: Any = None) -> list[str]:
        body = {"ignore_eos": True, **({"vllm_xargs": extra} if extra else {})}
        answer = server.client().completions.create(
            model=model, prompt=SHORT[0], n=4, seed=1, temperature=0.9, max_tokens=NEW,
            extra_body=body,
        )  # fmt: skip
        return [each.text for each in answer.choices]

    texts = sampled("smollm2:flow")
    assert texts == sampled("smollm2", ask("flow")) and len(set(texts)) > 1
    assert set(texts).isdisjoint(sampled("smollm2"))


def test_a_chat_streams_steered(server: Server, reference: Any) -> None:
    _, tokenizer = language_model()
    messages = [{"role": "user", "content": "How was the trip?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    for model, extra in (("smollm2", None), ("smollm2:flow", ask("flow"))):
        stream = server.client().chat.completions.create(
            model=model, messages=messages, max_tokens=NEW, temperature=0, stream=True,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        text = "".join(part.choices[0].delta.content or "" for part in stream if part.choices)
        assert text == tokenizer.decode(reference(prompt, extra, NEW), skip_special_tokens=True)


def test_the_steerings_are_listed_without_their_places(server: Server) -> None:
    listed = json.loads(server.get("/v1/steerings"))["data"]
    assert [steering["name"] for steering in listed][-1] == "both"
    flow = next(each for each in listed if each["name"] == "flow")
    assert flow["method"] == "odesteer" and flow["layers"] == [14] and flow["has_barrier"]
    assert "/" not in json.dumps([{**each, "sha256": ""} for each in listed])


def test_the_metrics_count_what_was_steered(server: Server) -> None:
    def counted(name: str) -> float:
        lines = [
            line
            for line in server.get("/metrics").splitlines()
            if line.startswith(f"odesteer_{name}_total") and 'steering="vector"' in line
        ]
        (line,) = lines
        return float(line.rpartition(" ")[2])

    before = counted("steered_tokens"), counted("displacement")
    complete(server.client(), SHORT[2], ask("vector", start="generated"))
    assert counted("steered_tokens") - before[0] == NEW - 1
    assert counted("displacement") > before[1]


def test_two_hundred_requests_in_random_order_with_cancellations(
    server: Server, expected: Any
) -> None:
    rng = random.Random(0)
    prompts = [*SHORT, *(SHARED + end for end in ENDS)]
    asks = [None, ask("vector"), ask("flow"), ask("flow", start="all"), ask("layers"), ask("turn")]
    some = [(rng.choice(prompts), rng.choice(asks), rng.random() < 0.3) for _ in range(200)]
    client = server.client()

    def ask_or_cancel(request: tuple[str, Any, bool]) -> bool:
        prompt, extra, cancelled = request
        if not cancelled:
            return complete(client, prompt, extra, max_tokens=4) == expected(prompt, extra, 4)
        body = {"vllm_xargs": extra} if extra else {}
        stream = client.completions.create(
            model="smollm2", prompt=prompt, max_tokens=200, stream=True, extra_body=body
        )
        next(iter(stream))
        stream.close()
        return True

    for prompt, extra, _ in some:
        expected(prompt, extra, 4)  # beforehand: transformers is not for many threads
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask_or_cancel, some))
    assert server.process.poll() is None and server.get("/health") == ""


def test_a_change_of_a_default_under_load_is_one_of_whole_requests(
    server: Server, expected: Any
) -> None:
    prompt, client = SHORT[0], server.client()
    defaults = ({}, {"enabled": False}, {"angle": 0.3})
    texts = [expected(prompt, extra) for extra in (ask("vector"), None, ask("vector", angle=0.3))]
    assert len(set(texts)) == 3
    try:
        with ThreadPoolExecutor(8) as pool:
            found = [
                pool.submit(complete, client, prompt, None, model="smollm2:vector")
                for _ in range(200)
            ]
            for i in range(30):
                status, text = server.send("/v1/steerings/vector", defaults[i % 3])
                assert status == 200, text
                found[6 * i].result()
        assert {each.result() for each in found} == set(texts)
        server.send("/v1/steerings/vector", {"enabled": False})
        assert complete(client, prompt, ask("vector", angle=0.3)) == texts[1]
        assert 'odesteer_enabled{steering="vector"} 0.0' in server.get("/metrics")
    finally:
        server.send("/v1/steerings/vector", {})
    assert complete(client, prompt, None, model="smollm2:vector") == texts[0]


def test_a_server_with_a_steering_of_another_model_does_not_start(steerings: Any) -> None:
    """Refused by the command, before an engine is loaded."""
    result = subprocess.run(
        [sys.executable, "-m", "odesteer", "serve", "smollm2", "--steering=x=nowhere/at/all"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "nowhere/at/all" in result.stderr


def test_the_example_of_the_docs_runs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    page = REPOSITORY / "docs" / "serving.md"
    (example,) = [
        block.partition("```")[0]
        for block in page.read_text(encoding="utf-8").split("```py\n")
        if block.startswith("from openai")
    ]
    # This server's steerings have other names.
    for theirs, ours in {
        "8000": str(server.port),
        '"none"': f'"{TOKEN}"',
        "melancholy": "flow",
        "cheerful": "vector",
    }.items():
        example = example.replace(theirs, ours)
    exec(compile(example, "<docs>", "exec"), {})
    models, *answers = capsys.readouterr().out.strip().split("\n", 4)
    assert "smollm2:flow" in models and len({line.partition(":")[2] for line in answers}) >= 3


def test_it_writes_pairs(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", TOKEN)
    address = f"http://127.0.0.1:{server.port}/v1"
    file = tmp_path / "pairs.jsonl"
    options = {"n": 4, "max_new_tokens": 24, "length_ratio": 10.0}
    written = write_pairs("speaks like a sea captain", address, file, **options)
    assert written.model == "smollm2" and 1 <= len(written.contrast.positive) <= 4
    assert written.contrast == ods.Contrast.from_file(file)
    before = server.processed()
    assert write_pairs("speaks like a sea captain", address, file, **options) == written
    assert server.processed() == before  # nothing is asked twice
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(ValueError, match="status 401"):
        write_pairs("speaks like a sea captain", address, tmp_path / "other.jsonl")
