"""Does the server that people start serve many clients at once, and refuse in words?"""

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

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from tests.serving.mixed import ENDS, SHARED, SHORT, requests
from tests.serving.served import COMPOSED, language_model, tokens

from odesteer.backends.vllm import ask

NEW = 8


class Server:
    """`odesteer serve` as somebody would start it, on a port that is free."""

    def __init__(self, steerings: dict[str, Any]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        given = [f"--steering={name}={path}" for name, path in steerings.items()]
        given += [f"--compose={name}={text}" for name, text in COMPOSED.items()]
        engine = "--dtype float32 --enforce-eager --max-model-len 512 --block-size 32"
        engine += " --generation-config vllm --enable-prefix-caching"
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

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}") as answer:
            return str(answer.read().decode())

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
        found = list(pool.map(lambda one: complete(client, *one), requests()))
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

    def one(i: int) -> str:
        if i % 2:
            return complete(client, SHORT[0], ask("flow"))
        extra, word = MALFORMED[i // 2 % len(MALFORMED)]
        with pytest.raises(BadRequestError) as caught:
            complete(client, SHORT[0], extra)
        assert word in str(caught.value) and "Traceback" not in str(caught.value)
        return "refused"

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(one, range(2 * len(MALFORMED))))
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
    # What is said explicitly counts.
    assert complete(client, SHORT[1], ask("vector"), model="smollm2:flow") == expected(
        SHORT[1], ask("vector")
    )


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
    assert [one["name"] for one in listed][-1] == "both"
    flow = next(one for one in listed if one["name"] == "flow")
    assert flow["method"] == "odesteer" and flow["layers"] == [14] and flow["has_barrier"]
    assert "/" not in json.dumps([{**one, "sha256": ""} for one in listed])


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

    def one(request: tuple[str, Any, bool]) -> bool:
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
        assert all(pool.map(one, some))
    assert server.process.poll() is None and server.get("/health") == ""


def test_a_server_with_a_steering_of_another_model_does_not_start(steerings: Any) -> None:
    """Refused by the command, before an engine is loaded."""
    result = subprocess.run(
        [sys.executable, "-m", "odesteer", "serve", "smollm2", "--steering=x=nowhere/at/all"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2 and "nowhere/at/all" in result.stderr


def test_the_example_of_the_docs_runs(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "serving.md"
    (example,) = [
        block.partition("```")[0]
        for block in page.read_text(encoding="utf-8").split("```py\n")
        if block.startswith("from openai")
    ]
    # This server's steerings have other names.
    for theirs, ours in {
        "8000": str(server.port),
        "melancholy": "flow",
        "cheerful": "vector",
    }.items():
        example = example.replace(theirs, ours)
    exec(compile(example, "<docs>", "exec"), {})
    models, *answers = capsys.readouterr().out.strip().split("\n", 4)
    assert "smollm2:flow" in models and len({one.partition(":")[2] for one in answers}) >= 3
