"""Middleware of the API server: steering on any route, and routes of its own.

vLLM has many routes, and some of them drop the model's name or `vllm_xargs` on the way to the
engine. So both are read here, from the body, before any route; `ROUTED` keeps them for the
engine's client (`odesteer.backends.vllm.request_validation.wrap_add_request`), which all routes
call. What no route could do is refused here.

    GET /v1/steerings          the steerings, and what a client may know of them
    POST /v1/steerings/NAME    another default dose, see `odesteer.backends.vllm.live_defaults`
    GET /metrics               vLLM's own, with odesteer_* beside them

The counters are kept by the workers, on their devices, and fetched for each GET /metrics.
"""

import json
from argparse import Namespace
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from odesteer.backends.vllm.live_defaults import LiveDefaults, check_one_process
from odesteer.backends.vllm.registry import SteeringRegistry
from odesteer.backends.vllm.request import KEY, SteeringRequest, misspelt, parse
from odesteer.common.limits import brief
from odesteer.common.registry import lookup

SEPARATOR = ":"
XARGS = "vllm_xargs"
# SageMaker's name for the model of an /invocations request; vLLM drops the body's.
INVOCATIONS, ADAPTER = "/invocations", b"x-amzn-sagemaker-adapter-identifier"
# Routes that answer without a key, where one is set: they neither generate nor change anything.
OPEN = frozenset(
    {"/health", "/ping", "/metrics", "/version", "/load", "/docs", "/docs/oauth2-redirect"}
    | {"/redoc", "/openapi.json"}
)
LONGEST_MODEL = 512
MOST_FIELDS = 1000  # a chat request of vLLM has about 100
# Of the whole body, since parsing keeps the server from all else, and vLLM parses once more: 4 MB
# of `[],` take 1 s, of keys .5 s, of `0,` .2 s, and a second more if they are the prompt.
MOST_STRINGS = MOST_OBJECTS = 20_000
MOST_VALUES = 100_000  # or twice the tokens that the model can read
LONGEST_NUMBER = 400  # digits; those of the largest float are 309, and 4 MB of 4,299 take .2 s
_DIGITS = bytes.maketrans(b"123456789", b"000000000")

App = Callable[..., Awaitable[None]]
Message = MutableMapping[str, Any]


@dataclass(frozen=True)
class RoutedSteering:
    """Steerings that the body of a request names, its route, and the defaults of that moment."""

    requests: tuple[SteeringRequest, ...]
    route: str
    defaults: Mapping[str, SteeringRequest | None] = field(default_factory=dict)


ROUTED: ContextVar[RoutedSteering | None] = ContextVar("odesteer_routed", default=None)


class UnknownModel(ValueError):
    """A model that this server does not have: status 404."""


class SteeringMiddleware:
    """ASGI middleware that reads which steering a request names.

    See https://asgi.readthedocs.io.
    """

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Read the body, refuse it or remember its steerings, and pass it on."""
        registry = registry_of(scope)
        if registry is None or scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._app(scope, _watch_socket(scope, registry, receive, send), send)
        else:
            await self._handle(scope, registry, receive, send)

    async def _handle(
        self, scope: Message, registry: SteeringRegistry, receive: Any, send: Any
    ) -> None:
        messages = [await _body(receive)] if scope["method"] in ("POST", "PUT", "PATCH") else []
        try:
            body = messages[0]["body"] if messages else b""
            requests = requests_in(body, scope, registry)
        except UnknownModel as reason:
            await _answer(send, 404, {"error": _error(reason, "NotFoundError", 404)})
            return
        except ValueError as reason:
            await _answer(send, 400, {"error": _error(reason, "BadRequestError", 400)})
            return

        async def replay() -> Any:
            return messages.pop() if messages else await receive()

        token = ROUTED.set(RoutedSteering(requests, _path(scope), _defaults(scope)))
        try:
            await self._app(scope, replay, send)
        finally:
            ROUTED.reset(token)


class KeyMiddleware:
    """ASGI middleware that requires the server's key on all routes but `OPEN`.

    vLLM's own guards /v1, /v2, /inference and /cohere, not /invocations or /generative_scoring.

    Args:
        app: guarded if it steers.
        verify: returns whether the headers, as pairs of bytes, hold the key.
    """

    def __init__(self, app: App, verify: Callable[[Any], bool]):
        self._app, self._verify = app, verify

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer 401 without the key."""
        if self._allows(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "Unauthorized"})
        else:
            await _answer(send, 401, {"error": "Unauthorized"})

    def _allows(self, scope: Message) -> bool:
        if scope["type"] not in ("http", "websocket") or scope.get("method") == "OPTIONS":
            return True  # browsers send a preflight request without the key
        if _path(scope).rstrip("/") in OPEN or registry_of(scope) is None:
            return True
        return self._verify(scope["headers"])


def registry_of(scope: Message) -> SteeringRegistry | None:
    """Return the steerings of a server; None before it is ready, or if it has none."""
    state = getattr(scope.get("app"), "state", None)
    config = getattr(state, "vllm_config", None)
    return SteeringRegistry.of(getattr(config, "additional_config", None))


def requests_in(
    body: bytes, scope: Message, registry: SteeringRegistry
) -> tuple[SteeringRequest, ...]:
    """Return what a request asks for, in `vllm_xargs` or by its model's name.

    Raises:
        UnknownModel: for a model's name with a steering that the server does not have.
        ValueError: for a steering that is asked for where vLLM does not look, in two ways, or
            wrongly; one line for the client.
    """
    served = _served_models(scope)
    fields = _object(body, max(MOST_VALUES, 2 * _context(scope)))
    if fields is None:
        _refuse_opaque(body, served, registry.steerings)
        fields = {}
    requests = _requests_in_xargs(fields)
    for request in requests:
        registry.check_request(request)
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    models = [fields.get("model"), *query.get("model", ())]
    if _path(scope) == INVOCATIONS:
        models += [value.decode("latin-1") for key, value in scope["headers"] if key == ADAPTER]
    for model in models:
        name = steering_in_name(model, served, registry.steerings)
        if name is not None:
            requests = reconcile(requests, (SteeringRequest(name),))
    return requests


def steering_in_name(model: Any, served: Collection[str], steerings: Collection[str]) -> str | None:
    """Return the steering in a model's name, or None.

    Raises:
        UnknownModel: for `MODEL:STEERING` of which only one half is known.
        ValueError: for a value that is no name.
    """
    if model is None:
        return None
    if not isinstance(model, str):
        raise ValueError(f"model is a name, a string; got {type(model).__name__}.")
    if len(model) > LONGEST_MODEL:
        raise ValueError(
            f"model has {len(model):,} characters, more than the {LONGEST_MODEL} that a name may "
            f"have: {brief(model, 60)}."
        )
    base, separator, name = model.rpartition(SEPARATOR)
    if not separator or (name not in steerings and (model in served or base not in served)):
        return None  # vLLM knows it or says that it does not exist
    try:
        lookup(dict.fromkeys(served), model, "model")
    except ValueError as error:
        raise UnknownModel(str(error)) from None
    return name if base in served else None


def reconcile(
    requests: tuple[SteeringRequest, ...], named: tuple[SteeringRequest, ...]
) -> tuple[SteeringRequest, ...]:
    """Return what is asked for in `vllm_xargs` and by a model's name; either may be empty.

    Raises:
        ValueError: if the two are not the same.
    """
    if requests and named and requests != named:
        raise ValueError(
            f"The model's name asks for the steering {_names(named)} and {XARGS} for "
            f"{_names(requests)} or another dose: name the model without a steering, or leave "
            f"{KEY} out."
        )
    return requests or named


def _names(requests: Iterable[SteeringRequest]) -> str:
    return " and ".join(f"'{brief(request.name, 60)}'" for request in requests)


def _object(body: bytes, most_values: int) -> dict[str, Any] | None:
    """Return the fields of a JSON object, or None for another body.

    Raises:
        ValueError: if it is nested too deeply, has too many fields, or a key that steers twice.
    """
    encoding = json.detect_encoding(body)
    if not encoding.startswith("utf-8"):  # json.loads takes UTF-16 and UTF-32, too
        try:
            body = body.decode(encoding, "surrogatepass").encode("utf-8", "surrogatepass")
        except ValueError:
            return None
    _check_structure(body, most_values)
    try:
        value = json.loads(body)  # as Starlette reads it, so that both see the same
    except RecursionError:
        raise ValueError("The body is nested too deeply.") from None
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    _check_size(value, "The body")
    if any(body.count(b'"%s"' % key.encode()) > 1 for key in ("model", XARGS, KEY)):
        # Objects as tuples of pairs: slower, and keeps duplicate keys.
        pairs = json.loads(body, object_pairs_hook=tuple)
        _check_once(pairs, ("model", XARGS))
        _check_once(dict(pairs).get(XARGS), (KEY,))
    return value


def _check_structure(body: bytes, most_values: int) -> None:
    """Raise ValueError for a body that would take long to parse; counts without parsing."""
    if body.count(b'"') - body.count(b'\\"') > 2 * MOST_STRINGS:
        raise ValueError(f"The body has more than {MOST_STRINGS:,} keys and strings.")
    if _excess(body, most_values) is None:
        return
    # Again without strings, of which 4 MB take .02 s to leave out.
    outside = body.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2]
    excess = _excess(b'"'.join(outside), most_values)
    if excess is not None:
        raise ValueError(f"The body has more than {excess}.")


def _excess(body: bytes, most_values: int) -> str | None:
    """Return the limit that a body exceeds, its strings taken as if they were structure."""
    if body.count(b"[") + body.count(b"{") > MOST_OBJECTS:
        return f"{MOST_OBJECTS:,} lists and objects"
    if body.count(b",") >= most_values:
        return f"{most_values:,} values"
    if b"0" * LONGEST_NUMBER in body.translate(_DIGITS):
        return f"{LONGEST_NUMBER} digits in a number"
    return None


def _check_size(fields: Mapping[str, Any], what: str) -> None:
    if len(fields) > MOST_FIELDS:
        raise ValueError(f"{what} has {len(fields):,} fields; {MOST_FIELDS:,} are enough.")


def _check_once(pairs: Any, keys: Iterable[str]) -> None:
    """Raise ValueError if an object has one of `keys` twice."""
    for key in keys:
        if isinstance(pairs, tuple) and sum(each == key for each, _ in pairs) > 1:
            raise ValueError(f"'{key}' is given twice.")


def _requests_in_xargs(fields: Mapping[str, Any]) -> tuple[SteeringRequest, ...]:
    """Return what `vllm_xargs` asks for; ValueError if a steering is asked for elsewhere."""
    xargs = fields.get(XARGS)
    if xargs is None:
        xargs = {}
    if not isinstance(xargs, dict):
        raise ValueError(f"{XARGS} is an object; got {type(xargs).__name__}.")
    _check_size(xargs, XARGS)
    for name, value in (("", fields), *fields.items()):
        if not isinstance(value, dict) or len(value) > MOST_FIELDS:
            continue
        wrong = misspelt(value)
        if wrong is None and KEY in value and name != XARGS:
            wrong = KEY
        if wrong is not None:
            raise ValueError(
                f'A steering is asked for by "{XARGS}": {{"{KEY}": "..."}}, the value a JSON '
                f"object in a string; got '{brief(f'{name}.{wrong}'.lstrip('.'), 60)}'."
            )
    value = xargs.get(KEY)
    if any(isinstance(each, dict) for each in (value if isinstance(value, list) else [value])):
        raise ValueError(f"{KEY} is a JSON object in a string; got the object itself.")
    return () if value is None else parse(value)


def _refuse_opaque(body: bytes, served: Iterable[str], steerings: Iterable[str]) -> None:
    """Raise ValueError if a body that is no JSON, such as a form, names a steering."""
    names = {f"{model}{SEPARATOR}{steering}" for model in served for steering in steerings}
    for name in sorted(names & set(served)):
        if name.encode() in body:
            raise ValueError(f"'{name}' is steered in requests of JSON alone, not in forms.")


def _served_models(scope: Message) -> dict[str, None]:
    """Return the names of the model and of LoRA adapters."""
    models = getattr(scope["app"].state, "openai_serving_models", None)
    if models is None:
        return {}
    names = [model.name for model in models.base_model_paths]
    return dict.fromkeys([*names, *models.lora_requests])


def _context(scope: Message) -> int:
    """Return the number of tokens that the model can read."""
    model = getattr(scope["app"].state.vllm_config, "model_config", None)
    return int(getattr(model, "max_model_len", 0))


def _defaults(scope: Message) -> Mapping[str, SteeringRequest | None]:
    live: LiveDefaults | None = getattr(scope["app"].state, "odesteer", None)
    return {} if live is None else live.changed


def _path(scope: Message) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _watch_socket(scope: Message, registry: SteeringRegistry, receive: Any, send: Any) -> Any:
    """Return a `receive` that remembers the steerings a socket's messages name."""

    async def watch() -> Any:
        message = await receive()
        text = message.get("text") or message.get("bytes") or b""
        try:
            body = text.encode() if isinstance(text, str) else text
            requests = requests_in(body, scope, registry)
        except ValueError as reason:
            closed = {"code": 1008, "reason": brief(reason, 100)}
            await send({"type": "websocket.close", **closed})
            return {"type": "websocket.disconnect", **closed}
        if requests:
            ROUTED.set(RoutedSteering(requests, _path(scope), _defaults(scope)))
        return message

    return watch


async def _body(receive: Any) -> Message:
    """Read a whole request into one message; or the message that the client has gone."""
    chunks = []
    while True:
        message: Message = await receive()
        if message["type"] != "http.request":
            return {**message, "body": b""}
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return {"type": "http.request", "body": b"".join(chunks), "more_body": False}


def _error(reason: ValueError, kind: str, code: int) -> dict[str, Any]:
    """Error in vLLM's format."""
    return {"message": str(reason), "type": kind, "param": None, "code": code}


async def _answer(send: Any, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


PATH = "/v1/steerings"


class Endpoint:
    """Entry point `vllm.endpoint_plugins`; see `vllm.plugins.endpoint_plugins.interface`."""

    name = "odesteer"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._engine: Any = None
        self._live: LiveDefaults | None = None
        self._processes: Any = 1
        self._collector = SteeringCollector()

    def attach_router(self, app: Any) -> None:
        """Add the routes, and the middleware that refreshes the counters."""
        from fastapi import Request
        from fastapi.responses import JSONResponse

        async def change(name: str, request: Request) -> JSONResponse:
            """Change the default of a steering, from the next request on."""
            try:
                return JSONResponse(self.change(name, await request.json()))
            except ValueError as reason:
                known = self._live is not None and name in self._live.names
                status, kind = (400, "BadRequestError") if known else (404, "NotFoundError")
                return JSONResponse({"error": _error(reason, kind, status)}, status)

        app.add_api_route(PATH, self._list, methods=["GET"], tags=["odesteer"])
        app.add_api_route(PATH + "/{name}", change, methods=["POST"], tags=["odesteer"])
        app.add_middleware(RefreshMiddleware, refresh=self._refresh)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Keep the engine's client, and register the counters."""
        if engine_client is None:
            return
        self._engine = engine_client
        self._processes = getattr(args, "api_server_count", 1)
        registry = SteeringRegistry.of(engine_client.vllm_config.additional_config)
        if registry is not None:
            self._live = state.odesteer = self._collector.live = LiveDefaults(registry)
            from vllm.v1.metrics.prometheus import get_prometheus_registry

            get_prometheus_registry().register(self._collector)

    async def _list(self) -> dict[str, Any]:
        """List the steerings of this server."""
        data = [] if self._live is None else self._live.describe()
        return {"object": "list", "data": data}

    def change(self, name: str, fields: Any) -> dict[str, Any]:
        """Change the default of a steering, and return what is known of it then.

        Raises:
            ValueError: for a steering or fields that no request could name, in one line.
        """
        if self._live is None:
            raise ValueError("This server was started without steerings.")
        check_one_process(self._processes)
        self._live.set(name, fields)
        return next(entry for entry in self._live.describe() if entry["name"] == name)

    async def _refresh(self) -> None:
        if self._live is not None:
            self._collector.update(await self._engine.collective_rpc("odesteer_stats"))


class SteeringCollector:
    """Collector of a server's steering counters for `prometheus_client`."""

    def __init__(self) -> None:
        self.live: LiveDefaults | None = None
        self._latest: list[dict[str, Any]] = []

    def update(self, workers: Iterable[Iterable[dict[str, Any]]]) -> None:
        """Keep the workers' totals; ranks of a tensor-parallel group report the same."""
        latest: dict[tuple[str, int], dict[str, Any]] = {}
        for worker in workers:
            for stats in worker:
                key = (stats["steering"], stats["layer"])
                if key not in latest or stats["tokens"] > latest[key]["tokens"]:
                    latest[key] = stats
        self._latest = list(latest.values())

    def collect(self) -> Iterable[Any]:
        """Return the counters as metric families."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels = ["steering", "layer"]
        tokens = CounterMetricFamily(
            "odesteer_steered_tokens", "Tokens that a steering moved.", labels=labels
        )
        displacement = CounterMetricFamily(
            "odesteer_displacement",
            "How far it moved them in all, in activation space; over the tokens, the mean.",
            labels=labels,
        )
        for stats in self._latest:
            values = [stats["steering"], str(stats["layer"])]
            tokens.add_metric(values, stats["tokens"])
            displacement.add_metric(values, stats["displacement"])
        enabled = GaugeMetricFamily(
            "odesteer_enabled",
            "1 for a steering that is on, 0 for one that is turned off.",
            labels=labels[:1],
        )
        for entry in [] if self.live is None else self.live.describe():
            enabled.add_metric([entry["name"]], float(entry["enabled"]))
        return [tokens, displacement, enabled]


class RefreshMiddleware:
    """ASGI middleware that calls `refresh` before /metrics is answered."""

    def __init__(self, app: Callable[..., Awaitable[None]], refresh: Callable[[], Awaitable[None]]):
        self._app, self._refresh = app, refresh

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Handle a connection, see https://asgi.readthedocs.io."""
        if scope["type"] == "http" and scope["path"].rstrip("/") == "/metrics":
            await self._refresh()
        await self._app(scope, receive, send)
