"""Which entry of a table did the user mean?"""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def pick(table: Mapping[str, T], name: str, kind: str) -> T:
    """table[name], or a ValueError that names the nearest entry and all of them.

    >>> pick({"caa": 1, "iti": 2}, "cca", "method")
    Traceback (most recent call last):
    ...
    ValueError: Unknown method 'cca'. Did you mean 'caa'? Available: caa, iti.
    """
    if name in table:
        return table[name]
    close = difflib.get_close_matches(str(name), list(table), n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise ValueError(f"Unknown {kind} '{name}'.{hint} Available: {', '.join(table)}.")
