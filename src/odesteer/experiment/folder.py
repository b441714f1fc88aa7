"""What is in a run directory, and how does it become one file?

    RUN/run.json          the first line of the results: what the run is
    RUN/units/N.jsonl     what unit N had to say, written whole
    RUN/claims/N          somebody is at unit N
    RUN/steerings/ RUN/activations/ RUN/shared/    what units have learnt, for those that follow
    RUN/results.jsonl     run.json, the units in order as they are done, and a last line

The results are units put together, in the plan's order, so it does not matter who computed them
or how often somebody was stopped: a line that was cut off is cut away and written again.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from odesteer.artifact.saving import write_whole
from odesteer.experiment.claims import Claim

RESULTS, RUN, SCHEMA = "results.jsonl", "run.json", 1


class RunFolder:
    """A run directory; `units` is how many the plan has."""

    def __init__(self, path: Path, units: int):
        self.path = path
        self._units = units
        for name in ("units", "claims", "steerings", "shared"):
            (path / name).mkdir(parents=True, exist_ok=True)

    @property
    def results(self) -> Path:
        return self.path / RESULTS

    @property
    def activations(self) -> Path:
        return self.path / "activations"

    def steering(self, fold: int, name: str) -> Path:
        return self.path / "steerings" / f"fold-{fold}" / name

    def shared(self, name: str) -> Path:
        return self.path / "shared" / name

    def begin(self, about: Mapping[str, Any]) -> None:
        """Say what the run is, or find that it is said already.

        Raises:
            ValueError: if the directory is another run's; names what differs.
        """
        refuse_other(self.path, about)
        if not (self.path / RUN).is_file():
            write_whole(self.path / RUN, line(about))

    def done(self, number: int) -> bool:
        return self._unit(number).is_file()

    def claim(self, number: int) -> Claim | None:
        """The right to compute a unit; None where somebody else has it, or it is done."""
        claim = Claim.take(self.path / "claims" / str(number))
        if claim is not None and self.done(number):
            claim.__exit__(None, None, None)
            return None
        return claim

    def finish(self, number: int, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write what a unit has to say, and put together what there is."""
        write_whole(self._unit(number), b"".join(map(line, lines)))
        self.assemble()

    def lines(self, number: int) -> list[dict[str, Any]]:
        """What a unit said."""
        text = self._unit(number).read_text(encoding="utf-8")
        return [json.loads(each) for each in text.splitlines()]

    def assemble(self) -> bool:
        """Append to the results every unit that is done and has none before it that is not.

        Returns:
            Whether the results are complete.
        """
        begun = (self.path / RUN).is_file()
        claim = Claim.take(self.path / "claims" / "results") if begun else None
        if claim is None:
            return False
        with claim:
            return self._append()

    def _append(self) -> bool:
        parts = [self.path / RUN, *map(self._unit, range(self._units))]
        size = self.results.stat().st_size if self.results.is_file() else 0
        whole = 0  # bytes of the parts that are in the file from beginning to end
        with self.results.open("r+b" if size else "w+b") as file:
            appending = False
            for part in parts:
                if not part.is_file():
                    return False
                length = part.stat().st_size
                if not appending and whole + length > size:
                    file.seek(whole)
                    file.truncate()
                    appending = True
                if appending:
                    file.write(part.read_bytes())
                whole += length
            end = self._end()
            if whole + len(end) != size:
                file.seek(whole)
                file.truncate()
                file.write(end)
                file.flush()
                os.fsync(file.fileno())
        return True

    def _end(self) -> bytes:
        cases, unscored = 0, dict[str, int]()
        for number in range(self._units):
            for each in self.lines(number):
                if each["kind"] == "case":
                    cases += 1
                    for name in each["reasons"]:
                        unscored[name] = unscored.get(name, 0) + 1
        return line({"kind": "end", "cases": cases, "unscored": unscored})

    def _unit(self, number: int) -> Path:
        return self.path / "units" / f"{number:05d}.jsonl"


def refuse_other(path: Path, about: Mapping[str, Any]) -> None:
    """ValueError where the directory holds another run than `about`; names what differs."""
    found = path / RUN
    if not found.is_file():
        if (path / RESULTS).exists():
            raise ValueError(f"'{path}' holds a {RESULTS} that is no run's: choose another --out.")
        return
    before = json.loads(found.read_text(encoding="utf-8"))
    now = json.loads(line(about))
    keys = [key for key in ("config", "benchmark", "folds", "version", "model") if key in now]
    one, other = (_flat({key: tree.get(key) for key in keys}) for tree in (before, now))
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    if names:
        shown = ", ".join(
            f"{name.removeprefix('config.')} (there {one.get(name)!r:.60}, here "
            f"{other.get(name)!r:.60})"
            for name in names[:4]
        )
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise ValueError(
            f"'{path}' holds another run: it differs in {shown}{more}. Choose another --out, or "
            f"remove that directory."
        )


def line(tree: Mapping[str, Any]) -> bytes:
    """A line of the results: sorted keys, seven digits, null for what is no number."""
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
