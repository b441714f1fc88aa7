"""The steering of a request on every route, and the key in front of it; without vLLM."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from odesteer import Angle, Steering
from odesteer.backends.vllm import ask
from odesteer.backends.vllm.middleware import OPEN, ROUTED, KeyMiddleware, SteeringMiddleware
from odesteer.backends.vllm.registry import configuration
from odesteer.backends.vllm.request import KEY, SteeringRequest, parse
from odesteer.backends.vllm.request_validation import (
    STEERED,
    check_params,
    wrap_add_request,
    wrap_init_middleware,
    wrap_to_beam_search_params,
)
from odesteer.ode import GradientField, LinearBarrier


class Application:
    """An application whose every route generates: vLLM's, as far as the middleware knows it."""

    def __init__(self, config: dict[str, Any]):
        models = SimpleNamespace(
            base_model_paths=[
                SimpleNamespace(name=name) for name in ("m", "m:kind", "m:calm", "plain:name")
            ],
            lora_requests={"adapter": None},
        )
        self.state = SimpleNamespace(
            vllm_config=SimpleNamespace(additional_config=config), openai_serving_models=models
        )
        self.seen: list[Any] = []
        self.params: Any = Sampling()

    async def route(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        if scope["type"] == "websocket" and message["type"] == "websocket.disconnect":
            return
        self.body = message.get("body")
        try:
            self.seen.append(await client_add_request(None, "id", {}, self.params))
        except Refused as error:
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": str(error).encode()})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def post(self, path: str, body: Any, headers: Any = (), **scope: Any) -> tuple[int, str]:
        """Status and text of the answer to a request."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        incoming = [
            {"type": "http.request", "body": raw[:3], "more_body": True},
            {"type": "http.request", "body": raw[3:], "more_body": False},
        ]
        scope = {
            "type": "http", "method": "POST", "path": path, "app": self, "headers": headers, **scope
        }  # fmt: skip
        return run(SteeringMiddleware(self.route), scope, incoming)

    def requests(self, path: str, body: Any, **scope: Any) -> tuple[SteeringRequest, ...]:
        """What the engine is asked for."""
        self.seen.clear()
        status, text = self.post(path, body, **scope)
        assert status == 200, text
        [params] = self.seen
        return parse(params.extra_args[KEY]) if KEY in (params.extra_args or {}) else ()

    def refused(self, path: str, body: Any, status: int = 400, **scope: Any) -> str:
        """The line that a client is told."""
        self.seen.clear()
        answer, text = self.post(path, body, **scope)
        assert answer == status and not self.seen, text
        assert "\n" not in text and len(text) < 500
        return text


class Sampling:
    def __init__(self, extra_args: Any = None):
        self.extra_args = extra_args

    def clone(self) -> "Sampling":
        return Sampling(self.extra_args)


class Refused(Exception):
    """Stands for vLLM's error that becomes a 400."""


async def _engine(self: Any, request_id: str, prompt: Any, params: Any) -> Any:
    return params


client_add_request = wrap_add_request(_engine, Refused)


def run(app: Any, scope: Any, incoming: list[Any]) -> tuple[int, str]:
    sent: list[Any] = []

    async def receive() -> Any:
        return incoming.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    if scope["type"] == "websocket":
        return (sent[0]["code"], sent[0]["reason"]) if sent else (0, "")
    return sent[0]["status"], sent[1]["body"].decode()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("steerings")
    field = GradientField(LinearBarrier(torch.ones(8), 0.0))
    kind = Steering(field, strength=Angle(0.2), layer=1)
    return configuration({name: kind.save_pretrained(folder / name) for name in ("kind", "calm")})


@pytest.fixture
def app(config: dict[str, Any]) -> Application:
    return Application(config)


@pytest.mark.parametrize("path", sorted(STEERED))
def test_finding_2_every_known_route_steers_as_the_name_says(app: Any, path: str) -> None:
    """Whatever the route makes of the request: this one drops the model and all the rest."""
    assert app.requests(path, {"model": "m:kind", "prompt": "x"}) == (SteeringRequest("kind"),)
    assert json.loads(app.body) == {"model": "m:kind", "prompt": "x"}  # handed on whole
    assert app.requests(path, {"vllm_xargs": ask("calm", angle=0.1)}) == (
        SteeringRequest("calm", Angle(0.1)),
    )
    for model in ("m", "plain:name", "adapter", "another", None, ""):
        assert app.requests(path, {"model": model}) == ()
    assert ROUTED.get() is None


def test_finding_2_a_route_that_is_not_known_refuses_a_steered_name(app: Any) -> None:
    for path in (
        "/v1/new",
        "/v1/embeddings",
        "/score",
        "/v1/audio/transcriptions",
        "/v1/systemone",
    ):
        assert app.requests(path, {"model": "m"}) == ()
        assert "not steered" in app.refused(path, {"model": "m:kind"})
        assert "not steered" in app.refused(path, {"vllm_xargs": ask("kind")})


def test_finding_2_what_is_pooled_is_refused_on_any_route(app: Any) -> None:
    app.params = SimpleNamespace(task="embed")
    assert "pooling" in app.refused("/invocations", {"model": "m:kind"})
    assert app.post("/invocations", {"model": "m"})[0] == 200


def test_a_model_in_the_address_is_a_models_name(app: Any) -> None:
    address = {"query_string": b"x=1&model=m%3Akind"}
    assert app.requests("/v1/completions", {"prompt": "x"}, **address) == (SteeringRequest("kind"),)
    assert app.requests("/v1/completions", b"", method="GET", **address) == (
        SteeringRequest("kind"),
    )
    assert "not steered" in app.refused("/v1/new", b"", method="GET", **address)
    app.refused("/v1/completions", {"model": "m:calm"}, **address)


def test_sagemakers_header_is_a_models_name(app: Any) -> None:
    header = (b"x-amzn-sagemaker-adapter-identifier", b"m:kind")
    assert app.requests("/invocations", {"prompt": "x"}, headers=[header]) == (
        SteeringRequest("kind"),
    )
    app.refused("/invocations", {"model": "m:calm"}, headers=[header])
    assert app.requests("/v1/completions", {"model": "m"}, headers=[header]) == ()


def test_parameters_that_ask_for_something_else_are_refused(app: Any) -> None:
    app.params = Sampling(ask("calm"))
    assert app.requests("/inference/v1/generate", {"model": "m"}) == (SteeringRequest("calm"),)
    assert app.requests("/inference/v1/generate", {"model": "m:calm"}) == (SteeringRequest("calm"),)
    app.refused("/inference/v1/generate", {"model": "m:kind"})
    assert app.params.extra_args == ask("calm")  # the caller's own stay as they are


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"model": "m:kind", "vllm_xargs": ask("calm")}, "leave odesteer out"),
        ({"model": "m:kind", "vllm_xargs": ask("kind", angle=0.3)}, "another dose"),
        ({"odesteer": '{"name": "kind"}'}, "got 'odesteer'"),
        ({"OdeSteer": {"name": "kind"}}, "got 'OdeSteer'"),
        ({"vllm_xargs": {"Odesteer": '{"name": "kind"}'}}, "got 'vllm_xargs.Odesteer'"),
        ({"vllm_xargs": {"ode_steer": '{"name": "kind"}'}}, "got 'vllm_xargs.ode_steer'"),
        ({"vllm_xargs": {"odester": '{"name": "kind"}'}}, "got 'vllm_xargs.odester'"),
        ({"extra_body": {"odesteer": "{}"}}, "got 'extra_body.odesteer'"),
        ({"vllm_xargs": {"odesteer": {"name": "kind"}}}, "a JSON object in a string"),
        ({"vllm_xargs": {"odesteer": [{"name": "kind"}]}}, "a JSON object in a string"),
        ({"vllm_xargs": {"odesteer": [list(range(10**5))]}}, "got a list"),
        ({"model": list(range(10**5))}, "model is a name, a string; got list"),
        ({"vllm_xargs": '{"odesteer": 1}'}, "vllm_xargs is an object; got str"),
        ({"vllm_xargs": {"odesteer": '{"name":"kind","name":"calm"}'}}, "'name' twice"),
        ({"vllm_xargs": ask("nobody")}, "Unknown steering 'nobody'"),
        (b'{"model": "m", "model": "m:kind"}', "'model' is given twice"),
        (b'{"vllm_xargs": {}, "vllm_xargs": {}}', "'vllm_xargs' is given twice"),
        (b'{"vllm_xargs": {"odesteer": "1", "odesteer": "2"}}', "'odesteer' is given twice"),
        ({"model": ["m:kind"]}, "model is a name"),
        ({"model": 3}, "model is a name"),
        (b"[" * 20_000, "nested too deeply"),
        (b'--x\r\nname="model"\r\n\r\nm:kind\r\n--x--', "not in forms"),
        ({str(i): 0 for i in range(1001)}, "The body has 1,001 fields"),
        ({"vllm_xargs": {str(i): 0 for i in range(1001)}}, "vllm_xargs has 1,001 fields"),
        ({"a": {str(i): 0 for i in range(20_001)}}, "The body has more than 20,000 keys"),
        ({"a": [[]] * 20_001}, "The body has more than 20,000 lists"),
        (b"[" * 200_000, "The body has more than 20,000 lists"),
        (b'{"a": "\\\\", "b": [' + b"{}, " * 20_001 + b'"]"]}', "The body has more than 20,000 l"),
        ({"prompt": [0] * 100_001}, "The body has more than 100,000 values"),
        (b'{"max_tokens": 1' + b"0" * 400 + b"}", "more than 400 digits in a number"),
        (json.dumps({"a": [[]] * 20_001}).encode("utf-16"), "more than 20,000 lists"),
    ],
)
def test_finding_12_what_would_have_been_ignored_is_refused(app: Any, body: Any, word: str) -> None:
    for path in ("/v1/completions", "/invocations"):
        assert word in app.refused(path, body)


@pytest.mark.parametrize("model", ["m:nobody", "adapter:kind", "other:kind", ":kind"])
def test_half_of_a_name_is_a_model_that_does_not_exist(app: Any, model: str) -> None:
    for path in ("/v1/completions", "/invocations"):
        assert f"Unknown model '{model}'" in app.refused(path, {"model": model}, 404)


def test_a_name_and_the_same_words_agree(app: Any) -> None:
    body = {"model": "m:kind", "vllm_xargs": {"odesteer": '"kind"', "top": 1}}
    assert app.requests("/v1/completions", body) == (SteeringRequest("kind"),)


def test_other_bodies_are_handed_on(app: Any) -> None:
    for body in (b"", b"[1]", b"no json", b"\xff", b'{"m": {"a": [{"b": 1}]}}', b'"m:kind"'[:3]):
        assert app.requests("/v1/completions", body) == ()
        assert app.body == body
    incoming = [{"type": "http.disconnect"}]
    scope = {"type": "http", "method": "POST", "path": "/x", "app": app, "headers": []}
    run(SteeringMiddleware(app.route), scope, incoming)
    assert not incoming


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32-be"])
def test_what_is_counted_is_not_in_strings(app: Any, encoding: str) -> None:
    """A long text has more commas, brackets, digits and quotes than a body may have values."""
    text = '[{\\, "1\u0122' * 100_000 + "," * 100_001 + "\\"
    body = json.dumps({"model": "m:kind", "prompt": [text, text]}, ensure_ascii=False)
    assert app.requests("/v1/completions", body.encode(encoding)) == (SteeringRequest("kind"),)
    tokens = json.dumps({"prompt": [list(range(1_000))] * 90, "logit_bias": {"1": 1e300}})
    assert app.requests("/v1/completions", tokens.encode(encoding)) == ()
    assert "100,000 values" in app.refused(
        "/v1/completions", json.dumps({"a": [text, *[0] * 100_000]}).encode(encoding)
    )


def test_a_long_context_may_be_filled_with_tokens(app: Any) -> None:
    app.state.vllm_config.model_config = SimpleNamespace(max_model_len=150_000)
    assert app.requests("/v1/completions", {"model": "m:kind", "prompt": [1] * 150_000})
    assert "300,000 values" in app.refused("/v1/completions", {"prompt": [1] * 300_001})


def test_a_server_without_steerings_reads_no_body() -> None:
    app = Application({})
    assert app.requests("/v1/completions", {"model": "m:kind"}) == ()
    assert app.body == b'{"m'  # the first piece, as it came


@pytest.mark.parametrize("field", ["model", "vllm_xargs", "blanks", "keys"])
def test_finding_7_megabytes_are_refused_before_they_are_compared(app: Any, field: str) -> None:
    long = "x" * 4_000_000
    body = {
        "model": {"model": f"m:{long}"},
        "vllm_xargs": {"vllm_xargs": {"odesteer": json.dumps({"name": long})}},
        "blanks": {"vllm_xargs": {"odesteer": '{"name": "kind"' + " " * 4_000_000 + "}"}},
        "keys": {"vllm_xargs": {long: 1, "odesteer": '"nobody"'}},
    }[field]
    assert len(app.refused("/v1/completions", body)) < 300


def test_a_socket_that_names_a_steering_gets_nothing_unsteered(app: Any) -> None:
    scope = {"type": "websocket", "path": "/v1/realtime", "app": app, "headers": []}

    def sent(text: str) -> tuple[int, str]:
        return run(
            SteeringMiddleware(app.route), scope, [{"type": "websocket.receive", "text": text}]
        )

    assert sent('{"model": "m:nobody"}')[0] == 1008 and not app.seen
    with pytest.raises(KeyError):  # refused by the engine: this route would have answered 400
        sent('{"model": "m:kind"}')
    assert not app.seen


def test_a_mistyped_key_is_refused_at_the_engine_too(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="got 'Odesteer'"):
        check_params(Sampling({"Odesteer": "{}"}), config)
    check_params(Sampling({"steering": 1, "kv_transfer_params": {}}), config)


def test_finding_2_beam_search_is_refused_where_the_route_has_dropped_the_name() -> None:
    request = SimpleNamespace(model=None, vllm_xargs=None)
    search = wrap_to_beam_search_params(lambda self: "beams", Refused)
    assert search(request) == "beams"
    token = ROUTED.set(SimpleNamespace(requests=(SteeringRequest("kind"),)))  # type: ignore[arg-type]
    try:
        with pytest.raises(Refused, match="beam search is not steered"):
            search(request)
    finally:
        ROUTED.reset(token)


# ---- the key


@pytest.mark.parametrize("config_of", ["steers", "does not"])
def test_finding_7_a_key_guards_all_but_a_few_routes(config: Any, config_of: str) -> None:
    steers = config_of == "steers"
    app = Application(config if steers else {})
    guarded = KeyMiddleware(app.route, lambda headers: (b"key", b"secret") in headers)

    def status(path: str, **scope: Any) -> int:
        given = {"type": "http", "method": "POST", "path": path, "app": app, "headers": []}
        return run(guarded, {**given, **scope}, [{"type": "http.request", "body": b""}])[0]

    for path in (*STEERED, "/tokenize", "/collective_rpc", "/new", "/health/../x", "//metrics"):
        assert status(path) == (401 if steers else 200)
        assert status(path, headers=[(b"key", b"secret")]) == 200
        assert status(path, method="OPTIONS") == 200
    for path in (*OPEN, "/metrics/"):
        assert status(path) == 200
    assert status("/proxied/health", root_path="/proxied") == 200
    if steers:
        assert status("/v1/realtime", type="websocket") == 1008


def test_the_key_is_asked_for_before_a_body_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "odesteer.backends.vllm.request_validation._key_verifier",
        lambda app, args: args.api_key and bool,
    )
    for key, expected in ("secret", [SteeringMiddleware, "vLLM's", KeyMiddleware]), (None, [
        SteeringMiddleware, "vLLM's"
    ]):  # fmt: skip
        added: list[Any] = []
        fake = SimpleNamespace(add_middleware=lambda kind, added=added, **_: added.append(kind))
        wrap_init_middleware(lambda args, app: app.add_middleware("vLLM's"))(
            SimpleNamespace(api_key=key), fake
        )
        assert added == expected  # the last one is asked first
