"""Expressions over named steerings, such as `truthful & ~toxic`, and checks of what is served.

    truthful & ~toxic        both aims at once
    truthful | (calm & ~shy)

~ binds closest, then &, then |, as in Python, whose parser reads them; the operations are those of
`odesteer.steering.Steering`. Nothing here needs torch, which takes `odesteer serve` seconds.
"""

import ast
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from odesteer.common.catalogue import LEVELS
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


LONGEST_NAME = 128  # of a steering
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def check_served(
    steerings: Mapping[str, str | os.PathLike[str]], compose: Mapping[str, str], check: str
) -> None:
    """Check names, sources and expressions; nothing is read.

    Args:
        steerings, compose, check: see `odesteer.backends.vllm.registry.configuration`.

    Raises:
        ValueError: for no steerings, a name that no client could use, or an expression that is
            none or names something else.
        FileNotFoundError: for a directory that is not there.
    """
    lookup(dict.fromkeys(LEVELS), check, "compatibility check")
    if not steerings:
        raise ValueError("A server that steers needs at least one steering: name=directory.")
    for name in (*steerings, *compose):
        if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
            raise ValueError(
                f"'{name}' is no name for a steering: use up to {LONGEST_NAME} letters, digits, "
                f"dots and dashes."
            )
    duplicates = set(steerings) & set(compose)
    if duplicates:
        raise ValueError(f"The name '{min(duplicates)}' is given twice.")
    for source in steerings.values():
        local_folder(source)
    for text in compose.values():
        build(text, dict.fromkeys(steerings, _Operand()))


def local_folder(source: str | os.PathLike[str]) -> Path | None:
    """Return the path of a saved steering, or None for the name of a Hub repository.

    Raises:
        FileNotFoundError: if it is neither.
    """
    if Path(source).exists():
        return Path(source)
    if not _REPOSITORY.fullmatch(os.fspath(source)):
        raise FileNotFoundError(
            f"No steering at '{source}': there is no such directory. save_pretrained and "
            f"`odesteer fit --out` write one; a Hub repository is named like 'me/truthful'."
        )
    return None


class _Operand:
    """Steering of which only the place in an expression matters."""

    def __and__(self, other: "_Operand") -> "_Operand":
        return self

    __or__ = __and__

    def __invert__(self) -> "_Operand":
        return self
