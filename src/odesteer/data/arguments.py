"""Arguments as users write them at first, for functions of a model and a contrast."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeGuard, TypeVar

from odesteer.data.contrast import Contrast
from odesteer.models.loading import check_loaded

P = ParamSpec("P")
R = TypeVar("R")


def forgiving(**aliases: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function of (model, tokenizer, ...) be called the way that is tried first.

    Two lists in the place of `contrast` become one; model and tokenizer that are swapped, or only
    named, are refused before anything is computed.

    Args:
        aliases: other names of keyword arguments, such as layers="layer".

    Example:
        >>> import torch
        >>> @forgiving(layers="layer")
        ... def count(model, tokenizer, contrast, layer=0):
        ...     return len(contrast.positive), layer
        >>> count(torch.nn.Linear(1, 1), str, ["A good day."], ["A bad day."], layers=3)
        (1, 3)
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        names = list(inspect.signature(function).parameters)
        at = names.index("contrast") if "contrast" in names else None

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> R:
            for alias, name in aliases.items():
                if alias in kwargs:
                    if name in kwargs:
                        raise ValueError(f"{alias} is another name of {name}; give one of them.")
                    kwargs[name] = kwargs.pop(alias)
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if "model" in given and "tokenizer" in given:
                check_loaded(given["model"], given["tokenizer"])
            if at is not None and len(args) > at + 1 and all(map(is_texts, args[at : at + 2])):
                contrast = Contrast.from_pairs(args[at], args[at + 1])
                args = (*args[:at], contrast, *args[at + 2 :])
            return function(*args, **kwargs)

        return call

    return decorate


def is_texts(value: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """Whether it is a list of texts, of (prompt, response) pairs or of chats."""
    return isinstance(value, list | tuple) and not any(
        isinstance(each, int | Mapping) for each in value
    )
