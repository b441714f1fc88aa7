"""Middleware of the API server: the steering of a request, whatever its route.

vLLM has many routes, and some of them drop the model's name or `vllm_xargs` on the way to the
engine. So both are read here, from the body, before any route; `WANTED` keeps them for the engine's
door (`odesteer.backends.vllm.request_validation.admits`), which all routes pass. What no route
could do is refused here.
"""

import json
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

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
# Keys and values of the whole body: parsing 400,000 keeps the server from all else for a second.
MOST_STRINGS = 50_000

App = Callable[..., Awaitable[None]]
Message = MutableMapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """The steerings that a request names, and its route."""

    asks: tuple[SteeringRequest, ...]
    route: str


WANTED: ContextVar[Wanted | None] = ContextVar("odesteer_wanted", default=None)


class NotServed(ValueError):
    """The model's name is not one of this server's: status 404."""


class SteeringMiddleware:
    """ASGI middleware that reads which steering a request names; see https://asgi.readthedocs.io."""

    def __init__(self, app: App):
        self._app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Read the body, refuse or remember, and hand on all that was read."""
        catalogue = catalogue_of(scope)
        if catalogue is None or scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._app(scope, _watched(scope, catalogue, receive, send), send)
        else:
            await self._handle(scope, catalogue, receive, send)

    async def _handle(
        self, scope: Message, catalogue: SteeringRegistry, receive: Any, send: Any
    ) -> None:
        messages = [await _body(receive)] if scope["method"] in ("POST", "PUT", "PATCH") else []
        try:
            asks = wanted(messages[0]["body"] if messages else b"", scope, catalogue)
        except NotServed as reason:
            await _answer(send, 404, {"error": _error(reason, "NotFoundError", 404)})
            return
        except ValueError as reason:
            await _answer(send, 400, {"error": _error(reason, "BadRequestError", 400)})
            return

        async def again() -> Any:
            return messages.pop() if messages else await receive()

        token = WANTED.set(Wanted(asks, _path(scope)))
        try:
            await self._app(scope, again, send)
        finally:
            WANTED.reset(token)


class KeyMiddleware:
    """ASGI middleware that asks for the server's key on all routes but `OPEN`.

    vLLM's own guards /v1, /v2, /inference and /cohere, not /invocations or /generative_scoring.

    Args:
        app: what is guarded, where it steers.
        verify: whether the headers, as pairs of bytes, hold the key.
    """

    def __init__(self, app: App, verify: Callable[[Any], bool]):
        self._app, self._verify = app, verify

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer 401 without the key."""
        if self._lets_in(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "Unauthorized"})
        else:
            await _answer(send, 401, {"error": "Unauthorized"})

    def _lets_in(self, scope: Message) -> bool:
        if scope["type"] not in ("http", "websocket") or scope.get("method") == "OPTIONS":
            return True  # browsers ask without a key what they may ask
        if _path(scope).rstrip("/") in OPEN or catalogue_of(scope) is None:
            return True
        return self._verify(scope["headers"])


def catalogue_of(scope: Message) -> SteeringRegistry | None:
    """The steerings of the server that is asked; None before it is ready, or where it has none."""
    state = getattr(scope.get("app"), "state", None)
    config = getattr(state, "vllm_config", None)
    return SteeringRegistry.of(getattr(config, "additional_config", None))


def wanted(body: bytes, scope: Message, catalogue: SteeringRegistry) -> tuple[SteeringRequest, ...]:
    """Return what a request asks for, in `vllm_xargs` or by its model's name.

    Raises:
        NotServed: for a model's name with a steering that the server does not have.
        ValueError: for a steering that is asked for where vLLM does not look, in two ways, or
            wrongly; one line for the client.
    """
    served = _served(scope)
    fields = _object(body)
    if fields is None:
        _refuse_opaque(body, served, catalogue.steerings)
        fields = {}
    given = _given(fields)
    for ask in given:
        catalogue.check_ask(ask)
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    models = [fields.get("model"), *query.get("model", ())]
    if _path(scope) == INVOCATIONS:
        models += [value.decode("latin-1") for key, value in scope["headers"] if key == ADAPTER]
    for model in models:
        name = steering_of(model, served, catalogue.steerings)
        if name is not None:
            given = agreed(given, (SteeringRequest(name),))
    return given


def steering_of(model: Any, served: Collection[str], steerings: Collection[str]) -> str | None:
    """Return the steering that a model's name names; None for a model without one.

    Raises:
        NotServed: for `MODEL:STEERING` of which only one half is known.
        ValueError: for what is no name.
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
        return None  # not ours: vLLM knows it or says that it does not exist
    try:
        lookup(dict.fromkeys(served), model, "model")
    except ValueError as error:
        raise NotServed(str(error)) from None
    return name if base in served else None


def agreed(
    given: tuple[SteeringRequest, ...], named: tuple[SteeringRequest, ...]
) -> tuple[SteeringRequest, ...]:
    """Return what is asked for in two ways, of which either may be empty.

    Raises:
        ValueError: if the two are not the same.
    """
    if given and named and given != named:
        raise ValueError(
            f"The model's name asks for the steering {_names(named)} and {XARGS} for "
            f"{_names(given)} or another dose: name the model without a steering, or leave "
            f"{KEY} out."
        )
    return given or named


def _names(asks: Iterable[SteeringRequest]) -> str:
    return " and ".join(f"'{brief(ask.name, 60)}'" for ask in asks)


def _object(body: bytes) -> dict[str, Any] | None:
    """Return the fields of a JSON object, or None for another body.

    Raises:
        ValueError: where it is nested too deeply, has too many fields, or names what steers twice.
    """
    # Counted, not parsed: two quotes a string, and those inside of one are escaped.
    if body.count(b'"') - body.count(b'\\"') > 2 * MOST_STRINGS:
        raise ValueError(f"The body has more than {MOST_STRINGS:,} keys and strings.")
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
        # Objects as tuples of pairs: slower, and keeps what is given twice.
        pairs = json.loads(body, object_pairs_hook=tuple)
        _check_once(pairs, ("model", XARGS))
        _check_once(dict(pairs).get(XARGS), (KEY,))
    return value


def _check_size(fields: Mapping[str, Any], what: str) -> None:
    if len(fields) > MOST_FIELDS:
        raise ValueError(f"{what} has {len(fields):,} fields; {MOST_FIELDS:,} are enough.")


def _check_once(pairs: Any, keys: Iterable[str]) -> None:
    """ValueError where an object, if it is one, has one of `keys` twice."""
    for key in keys:
        if isinstance(pairs, tuple) and sum(each == key for each, _ in pairs) > 1:
            raise ValueError(f"'{key}' is given twice.")


def _given(fields: Mapping[str, Any]) -> tuple[SteeringRequest, ...]:
    """Return what `vllm_xargs` asks for; ValueError where a steering is asked for elsewhere."""
    xargs = fields.get(XARGS)
    if xargs is None:
        xargs = {}
    if not isinstance(xargs, dict):
        raise ValueError(f"{XARGS} is an object; got {type(xargs).__name__}.")
    _check_size(xargs, XARGS)
    for name, inside in (("", fields), *fields.items()):
        if not isinstance(inside, dict) or len(inside) > MOST_FIELDS:
            continue
        wrong = misspelt(inside)
        if wrong is None and KEY in inside and name != XARGS:
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
    """ValueError where something that is no JSON, such as a form, names a steering."""
    names = {f"{model}{SEPARATOR}{steering}" for model in served for steering in steerings}
    for name in sorted(names & set(served)):
        if name.encode() in body:
            raise ValueError(f"'{name}' is steered in requests of JSON alone, not in forms.")


def _served(scope: Message) -> dict[str, None]:
    """The names that vLLM knows: of the model, and of LoRA adapters."""
    models = getattr(scope["app"].state, "openai_serving_models", None)
    if models is None:
        return {}
    names = [model.name for model in models.base_model_paths]
    return dict.fromkeys([*names, *models.lora_requests])


def _path(scope: Message) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _watched(scope: Message, catalogue: SteeringRegistry, receive: Any, send: Any) -> Any:
    """The `receive` of a socket, which remembers the steering that a message names."""

    async def watched() -> Any:
        message = await receive()
        text = message.get("text") or message.get("bytes") or b""
        try:
            asks = wanted(text.encode() if isinstance(text, str) else text, scope, catalogue)
        except ValueError as reason:
            closed = {"code": 1008, "reason": brief(reason, 100)}
            await send({"type": "websocket.close", **closed})
            return {"type": "websocket.disconnect", **closed}
        if asks:
            WANTED.set(Wanted(asks, _path(scope)))
        return message

    return watched


async def _body(receive: Any) -> Message:
    """Read all of a request; the message that says it at once, or that nobody waits any more."""
    chunks = []
    while True:
        message: Message = await receive()
        if message["type"] != "http.request":
            return {**message, "body": b""}
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return {"type": "http.request", "body": b"".join(chunks), "more_body": False}


def _error(reason: ValueError, kind: str, code: int) -> dict[str, Any]:
    """An error in the form of vLLM's."""
    return {"message": str(reason), "type": kind, "param": None, "code": code}


async def _answer(send: Any, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
