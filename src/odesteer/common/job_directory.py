"""Job directory: description, claims and finished units.

    DIR/NAME.json     description of the work
    DIR/PARTS/N.*     unit N, written atomically
    DIR/claims/N      claim of the process that computes unit N

There is no other record: a unit is left to do if its file is missing.
"""

import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from odesteer.common.files import write_whole
from odesteer.common.limits import read_json

CLAIMS = "claims"


class Claim:
    """Exclusive lock on a unit of work, also a context manager that releases it.

    The lock is the system's (`filelock.FileLock`): it also ends with its process, and a process
    that is paused keeps it. On storage that several hosts share, it holds for all of them.
    """

    def __init__(self, path: Path, lock: FileLock):
        self._path, self._lock = path, lock

    @classmethod
    def take(cls, path: Path) -> "Claim | None":
        """Take a claim; None if a living process holds it."""
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return cls(path, lock)

    def release(self) -> None:
        """Remove the file and release the lock."""
        # In this order: whoever locks the removed file finds that it has no name any more.
        with suppress(OSError):  # Windows removes no file that is open
            self._path.unlink()
        self._lock.release()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def remove_abandoned_claims(folder: Path) -> None:
    """Remove the claims of processes that are gone, once all work is done."""
    for path in folder.iterdir():
        claim = Claim.take(path)
        if claim is not None:
            claim.release()


class WorkFolder:
    """A directory of work.

    Args:
        path: the directory, which `begin` makes.
        about: name of the file that describes the work.
        parts: name of the folder of units, and the suffix of their files.
    """

    def __init__(self, path: Path, about: str, parts: tuple[str, str]):
        self.path = path
        self._about, self._parts, self._suffix = about, *parts

    @property
    def about(self) -> Path:
        """Path of the file that describes the work."""
        return self.path / self._about

    def resolved(self) -> "WorkFolder":
        """Return the same directory by its absolute path, for processes elsewhere."""
        other = copy.copy(self)
        other.path = self.path.resolve()
        return other

    def begin(self, about: Mapping[str, Any], keys: Sequence[str]) -> None:
        """Write the description of the work, or check the one that is there.

        Raises:
            ValueError: if the directory is other work's; names which of the `keys` differ.
        """
        for folder in (self.path / self._parts, self.path / CLAIMS):
            folder.mkdir(parents=True, exist_ok=True)
        # Only one process writes it, since entries that are not compared may differ.
        while (claim := Claim.take(self.path / CLAIMS / "begin")) is None:
            time.sleep(0.05)
        with claim:
            if not self.about.is_file():
                write_whole(self.about, line(about))
        refuse_other(self.about, about, keys)

    def part(self, number: int) -> Path:
        """Return the file of a unit."""
        return self.path / self._parts / f"{number:05d}{self._suffix}"

    def done(self, number: int) -> bool:
        return self.part(number).is_file()

    def claim(self, number: int) -> Claim | None:
        """Claim a unit; None if another process holds it or it is done."""
        claim = Claim.take(self.path / CLAIMS / str(number))
        if claim is not None and self.done(number):
            claim.release()
            return None
        if claim is not None:
            for cut_off in (self.path / self._parts).glob(f".{self.part(number).name}.*"):
                cut_off.unlink(missing_ok=True)  # by a writer that was killed: the unit is ours
        return claim


def refuse_other(path: Path, about: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Raise ValueError if a directory holds other work than `about`.

    Args:
        path: the file that describes the work there; nothing is refused without it.
        about: description of the work here, as far as it is known.
        keys: the entries that make it other work; the error names what differs in them.
    """
    if not path.is_file():
        return
    try:
        before = read_json(path)
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise ValueError(
            f"'{path}' cannot be read: it is damaged. Choose another --out, or remove its "
            f"directory."
        )
    now = json.loads(line(about))
    there, here = (
        _flat({key: tree.get(key) for key in keys if key in now}) for tree in (before, now)
    )
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if names:
        shown = ", ".join(
            f"{name.removeprefix('config.')} (there {there.get(name)!r:.60}, here "
            f"{here.get(name)!r:.60})"
            for name in names[:4]
        )
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise ValueError(
            f"'{path.parent}' holds another {path.stem}: it differs in {shown}{more}. Choose "
            f"another --out, or remove that directory."
        )


def line(tree: Mapping[str, Any]) -> bytes:
    """Encode a line of JSON: sorted keys, seven digits, null for NaN and infinity."""
    text = json.dumps(_plain(tree), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {
            name: value
            for key, inner in tree.items()
            for name, value in _flat(inner, f"{path}.{key}" if path else key).items()
        }
    return {path: tree}
