"""Validation of requests in the API server.

A wrong request gets status 400 and one line; and a model named `smollm2:truthful` is the model
`smollm2` steered by `truthful`, so that a program that only lets its user pick a model can steer.
"""

import json
from collections.abc import Callable
from functools import wraps
from typing import Any

from odesteer.backends.vllm.middleware import (
    SEPARATOR,
    WANTED,
    XARGS,
    KeyMiddleware,
    SteeringMiddleware,
    agreed,
)
from odesteer.backends.vllm.registry import SteeringRegistry
from odesteer.backends.vllm.request import KEY, SteeringRequest, asks_of, misspelt, parse

# Routes on which a steering was seen to do what it says; on any other one it is refused.
STEERED = frozenset(
    {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/responses",
        "/v1/messages",
        "/invocations",
        "/generative_scoring",
        "/inference/v1/generate",
    }
)
# Of this process's engine, for what sees a request and no engine.
_names: set[str] = set()


def check(params: Any, additional_config: Any) -> None:
    """Refuse a request that the server could not do as it asks.

    Raises:
        ValueError: in one line for the client.
    """
    wrong = misspelt(getattr(params, "extra_args", None) or ())
    if wrong is not None:
        raise ValueError(f"A steering is asked for by '{KEY}' in {XARGS}; got '{wrong}'.")
    asks = asks_of(params)
    if not asks:
        return
    catalogue = SteeringRegistry.of(additional_config)
    if catalogue is None:
        raise ValueError(f"{KEY}: this server was started without steerings.")
    for ask in asks:
        catalogue.check_ask(ask)


def remember_names(additional_config: Any) -> None:
    """Remember the names of this process's steerings."""
    catalogue = SteeringRegistry.of(additional_config)
    if catalogue is not None:
        _names.update(catalogue.steerings)


def steering_from_model_name(
    model: str | None, extra: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Return the extra arguments of a request to a model's name, which may name a steering.

    Raises:
        ValueError: where they ask for another one.
    """
    base, separator, name = (model or "").rpartition(SEPARATOR)
    if not (base and separator and name in _names):
        return extra
    given = parse(extra[KEY]) if extra and KEY in extra else ()
    return _asking(extra, agreed(given, (SteeringRequest(name),)))


def admitted(prompt: Any, params: Any) -> Any:
    """Return the parameters with which the engine does what the request asks for.

    Raises:
        ValueError: where it could not: on a route that is not known, for what is not sampled, or
            where they ask for another steering.
    """
    wanted = WANTED.get()
    if wanted is None or not wanted.asks:
        return params
    # Pooling parameters have no extra arguments; a prompt may bring parameters of its own.
    sampled = hasattr(params, "extra_args") and not hasattr(prompt, "sampling_params")
    if not sampled or wanted.route not in STEERED:
        what = wanted.route if sampled else f"pooling (embeddings, scores) by {wanted.route}"
        raise ValueError(f"{what} is not steered: name the model without a steering.")
    asks = agreed(asks_of(params), wanted.asks)
    params = params.clone()
    params.extra_args = _asking(params.extra_args, asks)
    return params


def _asking(extra: dict[str, Any] | None, asks: tuple[SteeringRequest, ...]) -> dict[str, Any]:
    return {**(extra or {}), KEY: json.dumps([ask.as_value() for ask in asks])}


def admits(original: Callable[..., Any], error: type[Exception]) -> Callable[..., Any]:
    """`add_request` of the engine's client: every route that generates or scores comes here."""

    @wraps(original)
    async def add_request(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        try:
            params = admitted(prompt, params)
        except ValueError as reason:
            raise error(str(reason)) from None
        return await original(self, request_id, prompt, params, *args, **kwargs)

    return add_request


def layers(original: Callable[..., Any]) -> Callable[..., Any]:
    """`init_entrypoints_middleware`: ours reads bodies inside of the keys, which guard all."""

    @wraps(original)
    def init_entrypoints_middleware(args: Any, app: Any, *more: Any, **kwargs: Any) -> None:
        app.add_middleware(SteeringMiddleware)
        original(args, app, *more, **kwargs)
        verify = _verifier(app, args)
        if verify is not None:
            app.add_middleware(KeyMiddleware, verify=verify)

    return init_entrypoints_middleware


def _verifier(app: Any, args: Any) -> Callable[[Any], bool] | None:
    """How vLLM compares keys; None where it has none."""
    from starlette.datastructures import Headers
    from vllm import envs
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    tokens = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
    verify = AuthenticationMiddleware(app, tokens).verify_token
    return (lambda raw: bool(verify(Headers(raw=raw)))) if tokens else None


def validates(original: Callable[..., Any], error: type[Exception]) -> Callable[..., Any]:
    """`_validate_params` of the input processor; `error` is the one that becomes a 400."""

    @wraps(original)
    def _validate_params(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            check(params, self.vllm_config.additional_config)
        except ValueError as reason:
            raise error(str(reason)) from None
        return original(self, params, *args, **kwargs)

    return _validate_params


def starts(original: Callable[..., Any]) -> Callable[..., Any]:
    """`__init__` of the input processor."""

    @wraps(original)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        remember_names(vllm_config.additional_config)
        original(self, vllm_config, *args, **kwargs)

    return __init__


def samples(original: Callable[..., Any], error: type[Exception]) -> Callable[..., Any]:
    """`to_sampling_params` of a request: the model's name may name a steering."""

    @wraps(original)
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = original(self, *args, **kwargs)
        try:
            params.extra_args = steering_from_model_name(self.model, params.extra_args)
        except ValueError as reason:
            raise error(str(reason)) from None
        return params

    return to_sampling_params


def searches(original: Callable[..., Any], error: type[Exception]) -> Callable[..., Any]:
    """`to_beam_search_params`: every beam is a request anew, whose prompt grows."""

    @wraps(original)
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        wanted = WANTED.get()
        served_model_names = (self.model or "").rpartition(SEPARATOR)[2] in _names
        if (
            served_model_names
            or KEY in (self.vllm_xargs or {})
            or (wanted is not None and wanted.asks)
        ):
            raise error(f"{KEY}: beam search is not steered; sample, or be greedy.")
        return original(self, *args, **kwargs)

    return to_beam_search_params


def served_model_names(names: list[str], steerings: list[str]) -> list[str]:
    """The served model names: each by itself, then the first with each steering."""
    taken = [f"{names[0]}{SEPARATOR}{steering}" for steering in steerings]
    return [*names, *taken]
