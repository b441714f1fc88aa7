"""Run directory, and its merge into one results file.

    RUN/run.json          the first line of the results: a description of the run
    RUN/units/N.jsonl     the lines of unit N, written as a whole
    RUN/claims/N          lock of the process that computes unit N
    RUN/steerings/ RUN/activations/ RUN/shared/    results of units for those that follow
    RUN/results.jsonl     run.json, the units in order as they are done, and a last line

The results are the units in the plan's order, whichever process computed them and however often
one was stopped: a line that was cut off is removed and written again.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from odesteer.common.files import write_whole
from odesteer.common.jobs import (
    CLAIMS,
    Claim,
    WorkFolder,
    line,
    refuse_other,
    remove_abandoned_claims,
)

RESULTS, RUN, SCHEMA = "results.jsonl", "run.json", 1
KEYS = (
    "config",
    "benchmark",
    "folds",
    "version",
    "backend",
    "model",
)  # a difference in one of these makes another run


class RunFolder(WorkFolder):
    """A run directory; `units` is their number in the plan."""

    def __init__(self, path: Path, units: int):
        super().__init__(path, RUN, ("units", ".jsonl"))
        self._units = units
        for name in ("steerings", "shared"):
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

    def finish(self, number: int, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write the lines of a unit, and assemble the results so far."""
        write_whole(self.part(number), b"".join(map(line, lines)))
        self.assemble()

    def lines(self, number: int) -> list[dict[str, Any]]:
        """Return the lines of a unit."""
        text = self.part(number).read_text(encoding="utf-8")
        return [json.loads(each) for each in text.splitlines()]

    def assemble(self) -> bool:
        """Append to the results every finished unit that no unfinished one precedes.

        Returns:
            Whether the results are complete.
        """
        begun = (self.path / RUN).is_file()
        claim = Claim.take(self.path / CLAIMS / "results") if begun else None
        if claim is None:
            return False
        with claim:
            complete = self._append()
        if complete:
            remove_abandoned_claims(self.path / CLAIMS)
        return complete

    def _append(self) -> bool:
        parts = [self.path / RUN, *map(self.part, range(self._units))]
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


def refuse_another(path: Path, about: Mapping[str, Any]) -> None:
    """Raise ValueError if the directory holds another run, naming the difference."""
    if not (path / RUN).is_file() and (path / RESULTS).exists():
        raise ValueError(f"'{path}' holds a {RESULTS} that is no run's: choose another --out.")
    refuse_other(path / RUN, about, KEYS)
