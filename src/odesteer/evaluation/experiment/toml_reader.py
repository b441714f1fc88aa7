"""Typed reader of TOML tables, with positions in errors.

Every key is asked for by name and kind; what is left over is a mistake, and the error names the
file, the key, the value and what to do.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from odesteer.common.registry import lookup

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
_SAID = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


class TomlTable:
    """One table of a file; `place` is its path in it, such as "benchmark"."""

    def __init__(self, values: Mapping[str, Any], file: str, place: str = ""):
        self.values = dict(values)
        self.file = file
        self._place = place

    @classmethod
    def read(cls, path: Path, changes: Sequence[str] = ()) -> "TomlTable":
        """A file, with `key=value` put in the place of what it says.

        Raises:
            FileNotFoundError, ValueError: if there is no such file, or it is no TOML.
        """
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"No experiment at '{path}'. The repository's experiments/ has some to begin with."
            ) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"'{path}' is no TOML: {error}.") from None
        for change in changes:
            _put(values, change)
        return cls(values, path.name)

    def wrong(self, key: str, want: str) -> ValueError:
        """The error for a value that cannot be used."""
        name = self.name(key)
        given = repr(self.values[key]) if key in self.values else "nothing"
        return ValueError(f"{self.file}: {name} is {want}; got {given:.120}.")

    def name(self, key: str) -> str:
        return f"{self._place}.{key}" if self._place else key

    def only(self, known: Sequence[str]) -> None:
        """Refuse every key that is none of these."""
        try:
            for key in self.values:
                lookup(dict.fromkeys(known), key, "key")
        except ValueError as error:
            where = f"[{self._place}] of {self.file}" if self._place else self.file
            raise ValueError(f"{where}: {error}") from None

    def one(self, key: str, kind: type[T], otherwise: Any = None) -> Any:
        """A value of a kind; `otherwise` where the key is not there."""
        if key not in self.values:
            return otherwise
        value = self.values[key]
        if not _is(value, kind):
            raise self.wrong(key, _SAID[kind])
        return kind(value)  # type: ignore[call-arg]

    def several(self, key: str, kind: type[T], otherwise: Sequence[Any] = ()) -> tuple[Any, ...]:
        """A list of values of a kind."""
        return self.each(key, lambda value: kind(value), kind, otherwise)  # type: ignore[call-arg]

    def each(
        self,
        key: str,
        made: Callable[[Any], T],
        kind: type | None = None,
        otherwise: Sequence[Any] = (),
    ) -> tuple[T, ...]:
        """What is made of each value of a list; a value alone is a list of one."""
        if key not in self.values:
            return tuple(otherwise)
        given = self.values[key]
        values = given if isinstance(given, list) else [given]
        if not values or any(kind is not None and not _is(value, kind) for value in values):
            kinds = {str: "texts", int: "whole numbers", float: "numbers"}
            raise self.wrong(key, f"a list of {kinds.get(kind or object, 'values')}")
        try:
            return tuple(made(value) for value in values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.file}: {self.name(key)}: {error}") from None

    def within(self, key: str) -> "TomlTable":
        """A table in this one; empty where it is not there."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "a table")
        return TomlTable(value, self.file, self.name(key))

    def choice(self, key: str, known: Mapping[str, Any], what: str, otherwise: Any = None) -> Any:
        """A name in a table of ours."""
        value = self.one(key, str, otherwise)
        if value is not None:
            try:
                lookup(known, value, what)
            except ValueError as error:
                raise ValueError(f"{self.file}: {self.name(key)}: {error}") from None
        return value


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _put(values: dict[str, Any], change: str) -> None:
    """`benchmark.test_prompts=20`; what is no TOML value is a text."""
    path, found, text = change.partition("=")
    if not found:
        raise ValueError(f"--set takes key=value, such as limits.test=20; got '{change}'.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, key = path.strip().split(".")
    for name in tables:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ValueError(f"--set {change}: '{name}' is no table of this file.")
        values = inner
    values[key] = value
