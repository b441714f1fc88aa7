"""Job directory: description, claims and finished units.

    DIR/NAME.json     description of the work
    DIR/PARTS/N.*     unit N, written atomically
    DIR/claims/N      claim of the process that computes unit N

There is no other record: a unit is left to do if its file is missing.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from odesteer.common.files import write_whole
from odesteer.common.jobs.lock import Claim
from odesteer.common.limits import read_json

CLAIMS = "claims"
WAIT = 0.5  # seconds until somebody else's units are looked at again


class WorkFolder:
    """A directory of work.

    Args:
        path: the directory; made by who begins.
        about: the file that says what the work is.
        parts: the folder of units, and how their names end.
    """

    def __init__(self, path: Path, about: str, parts: tuple[str, str]):
        self.path = path
        self.about = path / about
        self._parts, self._suffix = path / parts[0], parts[1]

    def begin(self, about: Mapping[str, Any], keys: Sequence[str]) -> None:
        """Write the description of the work, or check the one that is there.

        Raises:
            ValueError: if the directory is other work's; names which of the `keys` differ.
        """
        for made in (self._parts, self.path / CLAIMS):
            made.mkdir(parents=True, exist_ok=True)
        while True:
            refuse_other(self.about, about, keys)
            if self.about.is_file():
                return
            # One of those who begin at once says it, since what is not compared may differ.
            claim = Claim.take(self.path / CLAIMS / "begin")
            if claim is None:
                time.sleep(WAIT)
                continue
            with claim:
                if not self.about.is_file():
                    write_whole(self.about, line(about))

    def part(self, number: int) -> Path:
        """Return the file of a unit."""
        return self._parts / f"{number:05d}{self._suffix}"

    def done(self, number: int) -> bool:
        return self.part(number).is_file()

    def claim(self, number: int) -> Claim | None:
        """Claim a unit; None if another process holds it or it is done."""
        claim = Claim.take(self.path / CLAIMS / str(number))
        if claim is not None and self.done(number):
            claim.__exit__(None, None, None)
            return None
        if claim is not None:
            for cut_off in self._parts.glob(f".{self.part(number).name}.*"):
                cut_off.unlink(missing_ok=True)  # by a writer that was killed: the unit is ours
        return claim

    def sign(self, name: str) -> Path:
        """Create a file by which other machines recognise a shared directory."""
        path = self.path / CLAIMS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path


def refuse_other(found: Path, about: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Raise ValueError if a directory holds other work than `about`.

    Args:
        found: the file; nothing is refused where it is not there.
        about: what the work is, as far as it is known.
        keys: which of its entries make it other work; the error names what differs in them.
    """
    if not found.is_file():
        return
    try:
        before = read_json(found)
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise ValueError(
            f"'{found}' cannot be read: it is damaged. Choose another --out, or remove its "
            f"directory."
        )
    now = json.loads(line(about))
    one, other = (
        _flat({key: tree.get(key) for key in keys if key in now}) for tree in (before, now)
    )
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    if names:
        shown = ", ".join(
            f"{name.removeprefix('config.')} (there {one.get(name)!r:.60}, here "
            f"{other.get(name)!r:.60})"
            for name in names[:4]
        )
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise ValueError(
            f"'{found.parent}' holds another {found.stem}: it differs in {shown}{more}. Choose "
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


def _flat(tree: Any, place: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {
            name: value
            for key, inner in tree.items()
            for name, value in _flat(inner, f"{place}.{key}" if place else key).items()
        }
    return {place: tree}
