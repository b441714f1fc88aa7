"""Which entry of a table did the user mean?"""

import difflib
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

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


def find(table: Mapping[str, Any], name: str, kind: str, group: str, base: type) -> Any:
    """table[name], or the class that another package offers by that name.

    Other packages' entry points are read only where the table has no such name, and only the one
    asked for is imported.

    Args:
        table: our own classes.
        name: whose class is wanted.
        kind: what it is, for errors.
        group: of entry points.
        base: what the class must derive from.

    Raises:
        ValueError: for an unknown name, or an entry point that leads to no such class.
    """
    if name in table:
        return table[name]
    offered = {point.name: point for point in entry_points(group=group)}
    point: EntryPoint = pick({**offered, **table}, name, kind)
    found = point.load()
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(
            f"The {kind} '{name}' of another package is '{point.value}', which is no "
            f"{base.__name__}."
        )
    return found
