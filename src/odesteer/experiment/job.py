"""What is an engine given to do, and what of it is left?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from odesteer.benchmarks import Benchmark
from odesteer.experiment.folder import RunFolder
from odesteer.experiment.plan import Plan, Unit
from odesteer.extraction import Progress
from odesteer.models import Say

WAIT = 0.5  # seconds until somebody else's units are looked at again


@dataclass(frozen=True)
class Job:
    """A run, for whoever computes it.

    Attributes:
        planned, benchmark: what there is to do.
        folder: where results and what is learnt are kept.
        about: what the run is, for the first line of its results.
        data: where judges have their labelled answers.
        say: called with a line before anything slow.
        progress: called with (work done, work in all).
        workers: how many were asked for.
    """

    planned: Plan
    benchmark: Benchmark
    folder: RunFolder
    about: Mapping[str, Any]
    data: Any = None
    say: Say | None = None
    progress: Progress | None = None
    workers: int | None = None

    def left(self, units: Sequence[Unit]) -> list[Unit]:
        """Those that nobody has done yet; all but `units` are known to be done. Tells progress."""
        found = [unit for unit in units if not self.folder.done(unit.number)]
        if self.progress is not None:
            total = sum(unit.weight for unit in self.planned.units)
            self.progress(total - sum(unit.weight for unit in found), total)
        return found

    def ready(self, unit: Unit) -> bool:
        """Whether all that it needs is done."""
        return all(map(self.folder.done, unit.needs))
