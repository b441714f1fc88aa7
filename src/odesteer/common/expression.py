"""Parser of expressions over named steerings, such as `truthful & ~toxic`.

    truthful & ~toxic        both aims at once
    truthful | (calm & ~shy)

~ binds closest, then &, then |, as in Python, whose parser reads them; the operations are those of
`odesteer.steering.Steering`.
"""

import ast
import re
from collections.abc import Mapping
from typing import Any

from odesteer.common.registry import lookup

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME_OR_STRAY = re.compile(rf"({NAME.pattern})|[^&|~()\s]")
_MAX_LENGTH = 1000


def build(text: str, steerings: Mapping[str, Any]) -> Any:
    """Return the steering that an expression describes.

    Args:
        text: see above.
        steerings: by name.

    Raises:
        ValueError: for what is no expression, an unknown name, or steerings that do not compose.
    """
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"An expression has at most {_MAX_LENGTH} characters; got {len(text)}.")
    names: list[str] = []

    def identifier(match: re.Match[str]) -> str:
        if match[1] is None:
            raise _refusal(text, f"at '{text[match.start() :][:20]}'")
        names.append(match[0])
        return f"_{len(names) - 1}"

    source = " ".join(_NAME_OR_STRAY.sub(identifier, text).split())

    def evaluate(node: ast.expr) -> Any:
        match node:
            case ast.Name(id):
                return lookup(steerings, names[int(id[1:])], "steering")
            case ast.UnaryOp(ast.Invert(), operand):
                return ~evaluate(operand)
            case ast.BinOp(left, ast.BitAnd(), right):
                return evaluate(left) & evaluate(right)
            case ast.BinOp(left, ast.BitOr(), right):
                return evaluate(left) | evaluate(right)
        raise _refusal(text, "where a parenthesis follows a steering or is empty")

    try:
        return evaluate(ast.parse(source, mode="eval").body)
    except SyntaxError as error:
        if not source or source[-1] in "&|~":
            raise _refusal(text, "since it ends where a steering should be") from None
        raise _refusal(text, f"({error.msg})") from None
    except (RecursionError, MemoryError):
        raise _refusal(text, "that is nested so deeply") from None


def _refusal(text: str, reason: str) -> ValueError:
    return ValueError(
        f"'{' '.join(text.split())}' is no expression over steerings {reason}; write for example "
        f"'truthful & ~toxic'."
    )
