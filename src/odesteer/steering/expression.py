"""Parser of expressions over named steerings, such as `truthful & ~toxic`.

    truthful & ~toxic        both aims at once
    truthful | (calm & ~shy)

~ binds closest, then &, then |, as in Python; the operations are those of
`odesteer.steering.composition`.
"""

import re
from collections.abc import Mapping
from typing import Any

from odesteer.common.registry import lookup

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TOKEN = re.compile(rf"\s*(?:({NAME.pattern})|([&|~()]))")
_LONGEST = 1000


def build(text: str, steerings: Mapping[str, Any]) -> Any:
    """The steering that `text` describes.

    Args:
        text: see above.
        steerings: by name.

    Raises:
        ValueError: for what is no expression, an unknown name, or steerings that do not compose.
    """
    tokens = _tokens(text)
    try:
        found = _either(tokens, steerings)
    except TypeError:
        raise ValueError(
            f"'{text}' joins steerings of several layers; only those of one layer compose."
        ) from None
    if tokens:
        raise ValueError(f"'{text}' goes on with '{tokens[0]}' where it should end.")
    return found


def _tokens(text: str) -> list[str]:
    if len(text) > _LONGEST:
        raise ValueError(f"An expression has at most {_LONGEST} characters; got {len(text)}.")
    tokens, place = [], 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(
                f"'{text}' is no expression over steerings at '{text[place:][:20]}'; write for "
                f"example 'truthful & ~toxic'."
            )
        tokens.append(match[1] or match[2])
        place = match.end()
    return tokens


def _either(tokens: list[str], steerings: Mapping[str, Any]) -> Any:
    found = _both(tokens, steerings)
    while tokens and tokens[0] == "|":
        tokens.pop(0)
        found = found | _both(tokens, steerings)
    return found


def _both(tokens: list[str], steerings: Mapping[str, Any]) -> Any:
    found = _one(tokens, steerings)
    while tokens and tokens[0] == "&":
        tokens.pop(0)
        found = found & _one(tokens, steerings)
    return found


def _one(tokens: list[str], steerings: Mapping[str, Any]) -> Any:
    if not tokens:
        raise ValueError("The expression ends where a steering should be.")
    token = tokens.pop(0)
    if token == "~":
        return ~_one(tokens, steerings)
    if token == "(":
        found = _either(tokens, steerings)
        if not tokens or tokens.pop(0) != ")":
            raise ValueError("The expression opens a parenthesis that it does not close.")
        return found
    if token in "&|)":
        raise ValueError(f"The expression has '{token}' where a steering should be.")
    return lookup(steerings, token, "steering")
