"""Lookup of named parts, ours or those of entry points."""

import difflib
from collections.abc import Iterable, Mapping
from importlib.metadata import (
    EntryPoint,
    entry_points,
    packages_distributions,
    version,
)
from typing import Any, TypeVar

T = TypeVar("T")

# Compared and shown characters of an unknown name, which may be of any length.
_LONGEST = 200


def lookup(table: Mapping[str, T], name: str, kind: str) -> T:
    """Return table[name]; the ValueError names the nearest entry and all others.

    >>> pick({"caa": 1, "iti": 2}, "cca", "method")
    Traceback (most recent call last):
    ...
    ValueError: Unknown method 'cca'. Did you mean 'caa'? Available: caa, iti.
    """
    if name in table:
        return table[name]
    shown = str(name)
    if len(shown) > _LONGEST:  # comparing takes time with the length
        shown = shown[: _LONGEST - 1] + "…"
    close = difflib.get_close_matches(shown, list(table), n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise ValueError(f"Unknown {kind} '{shown}'.{hint} Available: {', '.join(table)}.")


def resolve(
    table: Mapping[str, Any],
    name: str,
    kind: str,
    group: str,
    base: type,
    instance: bool = False,
) -> Any:
    """Return table[name], or the entry point of that name in another package.

    Other packages' entry points are read only where the table has no such name, and only the one
    asked for is imported.

    Args:
        table: our own.
        name: what is wanted.
        kind: what it is, for errors.
        group: of entry points.
        base: what the class must derive from.
        instance: whether an object of that class is wanted instead of a class.

    Raises:
        ValueError: for an unknown name, a name that several packages offer, or an entry point
            that cannot be imported or leads to something else.
    """
    if name in table:
        return table[name]
    points = sorted(entry_points(group=group))
    point: EntryPoint = lookup({**_by_name(points), **table}, name, kind)
    owner = f"The {kind} '{name}' of {_package(point)}"
    same = [each for each in points if each.name == name]
    if len({each.value for each in same}) > 1:
        packages = " and ".join(sorted({_package(each) for each in same}))
        raise ValueError(f"Several packages offer the {kind} '{name}': {packages}; remove one.")
    try:
        plugin = point.load()
    except Exception as error:
        raise ValueError(
            f"{owner} cannot be imported from '{point.value}': {type(error).__name__}: {error}"
        ) from error
    fits = (
        isinstance(plugin, base)
        if instance
        else isinstance(plugin, type) and issubclass(plugin, base)
    )
    if not fits:
        raise ValueError(f"{owner} is '{point.value}', which is no {base.__name__}.")
    return plugin


def plugins(group: str) -> dict[str, EntryPoint]:
    """List the entry points of other packages by name; nothing is imported.

    Raises nothing: whether an entry point leads anywhere shows when it is asked for.
    """
    return _by_name(sorted(entry_points(group=group)))


def version_of(cls: type) -> str:
    """Return the version of the package that defines a class, or "unknown"."""
    owners = packages_distributions().get(cls.__module__.partition(".")[0], ())
    return version(owners[0]) if owners else "unknown"


def _by_name(points: Iterable[EntryPoint]) -> dict[str, EntryPoint]:
    return {point.name: point for point in points}


def _package(point: EntryPoint) -> str:
    return "another package" if point.dist is None else f"the package '{point.dist.name}'"
