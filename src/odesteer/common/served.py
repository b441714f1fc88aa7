"""Checks of the steerings that a server is started with, without torch.

`odesteer serve` makes them before it imports torch, which takes seconds.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from odesteer.common.catalogue import LEVELS
from odesteer.common.expression import NAME, build
from odesteer.common.registry import lookup

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
