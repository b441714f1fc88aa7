"""What does the server say to a request before any engine sees it?

A wrong request gets status 400 and one line; and a model named `smollm2:truthful` is the model
`smollm2` steered by `truthful`, so that a program that only lets its user pick a model can steer.
"""

import json
from collections.abc import Callable
from functools import wraps
from typing import Any

from odesteer.backends.vllm.catalogue import Catalogue
from odesteer.backends.vllm.request import KEY
from odesteer.backends.vllm.runners import asks_of

SEPARATOR = ":"
# Of this process's engine, for what sees a request and no engine.
_names: set[str] = set()


def check(params: Any, additional_config: Any) -> None:
    """Refuse a request that the server could not do as it asks.

    Raises:
        ValueError: in one line for the client.
    """
    asks = asks_of(params)
    if not asks:
        return
    catalogue = Catalogue.of(additional_config)
    if catalogue is None:
        raise ValueError(f"{KEY}: this server was started without steerings.")
    for ask in asks:
        catalogue.check_ask(ask)


def knows(additional_config: Any) -> None:
    """Remember the names of this process's steerings."""
    catalogue = Catalogue.of(additional_config)
    if catalogue is not None:
        _names.update(catalogue.steerings)


def aliased(model: str | None, extra: dict[str, Any] | None) -> dict[str, Any] | None:
    """The extra arguments of a request to a model's name, which may name a steering."""
    base, separator, name = (model or "").rpartition(SEPARATOR)
    if not (base and separator and name in _names) or (extra and KEY in extra):
        return extra
    return {**(extra or {}), KEY: json.dumps({"name": name})}


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
        knows(vllm_config.additional_config)
        original(self, vllm_config, *args, **kwargs)

    return __init__


def samples(original: Callable[..., Any]) -> Callable[..., Any]:
    """`to_sampling_params` of a request: the model's name may name a steering."""

    @wraps(original)
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = original(self, *args, **kwargs)
        params.extra_args = aliased(self.model, params.extra_args)
        return params

    return to_sampling_params


def searches(original: Callable[..., Any], error: type[Exception]) -> Callable[..., Any]:
    """`to_beam_search_params`: every beam is a request anew, whose prompt grows."""

    @wraps(original)
    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        if KEY in (aliased(self.model, self.vllm_xargs) or {}):
            raise error(f"{KEY}: beam search is not steered; sample, or be greedy.")
        return original(self, *args, **kwargs)

    return to_beam_search_params


def named(names: list[str], steerings: list[str]) -> list[str]:
    """The served model names: each by itself, then the first with each steering."""
    taken = [f"{names[0]}{SEPARATOR}{steering}" for steering in steerings]
    return [*names, *taken]
