"""Validation of requests in the API server.

A wrong request gets status 400 and one line. A model named `smollm2:truthful` is the model
`smollm2` steered by `truthful`, so that a program that only lets its user pick a model can steer.
"""

import json
from collections.abc import Callable
from functools import wraps
from typing import Any

from odesteer.backends.vllm.live_defaults import with_defaults
from odesteer.backends.vllm.middleware import (
    ROUTED,
    SEPARATOR,
    XARGS,
    KeyMiddleware,
    SteeringMiddleware,
    reconcile,
)
from odesteer.backends.vllm.registry import SteeringRegistry
from odesteer.backends.vllm.request import KEY, SteeringRequest, misspelt, parse, requests_of

# Routes on which steering is tested; on any other it is refused.
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
# Names of the steerings of this process's engine, for code that has no engine at hand.
_names: set[str] = set()


def check_params(params: Any, additional_config: Any) -> None:
    """Refuse sampling parameters that the server could not follow.

    Raises:
        ValueError: in one line for the client.
    """
    wrong = misspelt(getattr(params, "extra_args", None) or ())
    if wrong is not None:
        raise ValueError(f"A steering is asked for by '{KEY}' in {XARGS}; got '{wrong}'.")
    requests = requests_of(params)
    if not requests:
        return
    registry = SteeringRegistry.of(additional_config)
    if registry is None:
        raise ValueError(f"{KEY}: this server was started without steerings.")
    for request in requests:
        registry.check_request(request)


def remember_names(additional_config: Any) -> None:
    """Remember the names of this process's steerings."""
    registry = SteeringRegistry.of(additional_config)
    if registry is not None:
        _names.update(registry.steerings)


def steering_from_model_name(
    model: str | None, extra: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Return a request's extra arguments with the steering that the model's name names.

    Raises:
        ValueError: if the arguments ask for another one.
    """
    base, separator, name = (model or "").rpartition(SEPARATOR)
    if not (base and separator and name in _names):
        return extra
    requests = parse(extra[KEY]) if extra and KEY in extra else ()
    return _with_requests(extra, reconcile(requests, (SteeringRequest(name),)))


def steered_params(prompt: Any, params: Any) -> Any:
    """Return the parameters with the steerings that the body names, and their defaults of now.

    Raises:
        ValueError: on a route that is not known, for a pooling request, or if the parameters ask
            for another steering.
    """
    routed = ROUTED.get()
    if routed is None or not (routed.requests or (routed.defaults and requests_of(params))):
        return params
    # Pooling parameters have no extra arguments; a prompt may bring parameters of its own.
    sampled = hasattr(params, "extra_args") and not hasattr(prompt, "sampling_params")
    if not sampled or routed.route not in STEERED:
        what = routed.route if sampled else f"pooling (embeddings, scores) by {routed.route}"
        raise ValueError(f"{what} is not steered: name the model without a steering.")
    requests = reconcile(requests_of(params), routed.requests)
    requests = with_defaults(requests, routed.defaults)
    params = params.clone()
    params.extra_args = _with_requests(params.extra_args, requests)
    return params


def _with_requests(
    extra: dict[str, Any] | None, requests: tuple[SteeringRequest, ...]
) -> dict[str, Any]:
    return {**(extra or {}), KEY: json.dumps([request.as_value() for request in requests])}


def wrap_add_request(original: Callable[..., Any], error: type[Exception]) -> Callable[..., Any]:
    """Steer in `add_request` of the engine's client, which every generating route calls."""

    @wraps(original)
    async def add_request(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        try:
            params = steered_params(prompt, params)
        except ValueError as reason:
            raise error(str(reason)) from None
        return await original(self, request_id, prompt, params, *args, **kwargs)

    return add_request


def wrap_init_middleware(original: Callable[..., Any]) -> Callable[..., Any]:
    """Add our middleware in `init_entrypoints_middleware`; the key is checked before bodies are."""

    @wraps(original)
    def init_entrypoints_middleware(args: Any, app: Any, *more: Any, **kwargs: Any) -> None:
        app.add_middleware(SteeringMiddleware)
        original(args, app, *more, **kwargs)
        verify = _key_verifier(app, args)
        if verify is not None:
            app.add_middleware(KeyMiddleware, verify=verify)

    return init_entrypoints_middleware


def _key_verifier(app: Any, args: Any) -> Callable[[Any], bool] | None:
    """VLLM's own comparison of keys; None without keys."""
    from starlette.datastructures import Headers
    from vllm import envs
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    tokens = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
    verify = AuthenticationMiddleware(app, tokens).verify_token
    return (lambda raw: bool(verify(Headers(raw=raw)))) if tokens else None


def wrap_validate_params(
    original: Callable[..., Any], error: type[Exception]
) -> Callable[..., Any]:
    """Check steerings in `_validate_params`; `error` is the type that becomes status 400."""

    @wraps(original)
    def _validate_params(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            check_params(params, self.vllm_config.additional_config)
        except ValueError as reason:
            raise error(str(reason)) from None
        return original(self, params, *args, **kwargs)

    return _validate_params


def wrap_input_processor_init(original: Callable[..., Any]) -> Callable[..., Any]:
    """Remember the steerings' names in `__init__` of the input processor."""

    @wraps(original)
    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        remember_names(vllm_config.additional_config)
        original(self, vllm_config, *args, **kwargs)

    return __init__


def wrap_to_sampling_params(
    original: Callable[..., Any], error: type[Exception]
) -> Callable[..., Any]:
    """Read the steering in the model's name in `to_sampling_params` of a request."""

    @wraps(original)
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = original(self, *args, **kwargs)
        try:
            params.extra_args = steering_from_model_name(self.model, params.extra_args)
        except ValueError as reason:
            raise error(str(reason)) from None
        return params

    return to_sampling_params


def wrap_to_beam_search_params(
    original: Callable[..., Any], error: type[Exception]
) -> Callable[..., Any]:
    """Refuse steering in `to_beam_search_params`: every beam is a new, longer prompt."""

    @wraps(original)
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        routed = ROUTED.get()
        by_name = (self.model or "").rpartition(SEPARATOR)[2] in _names
        in_body = KEY in (self.vllm_xargs or {}) or (routed is not None and routed.requests)
        if by_name or in_body:
            raise error(f"{KEY}: beam search is not steered; sample, or be greedy.")
        return original(self, *args, **kwargs)

    return to_beam_search_params


def served_model_names(names: list[str], steerings: list[str]) -> list[str]:
    """Return all model names: those given, then the first with each steering."""
    return [*names, *(f"{names[0]}{SEPARATOR}{steering}" for steering in steerings)]
