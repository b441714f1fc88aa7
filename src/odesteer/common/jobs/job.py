"""Job: the units still to compute, with progress."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from odesteer.common.jobs.directory import WorkFolder


class Unit(Protocol):
    """A piece of work, computed whole by one process and then written whole."""

    @property
    def number(self) -> int:
        """Its place among all units."""

    @property
    def weight(self) -> int:
        """About how much work it is."""

    @property
    def needs(self) -> Sequence[int]:
        """Numbers of units that have to be done before."""

    @property
    def fold(self) -> int:
        """What it works on: who has that in memory does it best."""

    @property
    def keeps(self) -> bool:
        """Whether who does it has its fold in memory then."""


class Computes(Protocol):
    """A process that has all in its memory that units need."""

    def compute(self, number: int) -> None:
        """Compute a unit, which the caller has claimed, and write it."""

    def close(self) -> None:
        """End what was started for it, such as other processes."""


class Task(Protocol):
    """What a process has to know to compute; it may be sent to other machines."""

    def start(self, say: Callable[[str], None] | None = None) -> Computes:
        """Load what is needed, and say in the directory what the work is.

        Raises:
            ValueError: if the directory is other work's.
        """


@dataclass(frozen=True)
class Job:
    """Units, for whoever computes them.

    Attributes:
        units: all of them.
        folder: where they are kept.
        task: how they are computed.
        end: does what follows the last unit; False where somebody else is at it.
        say: called with a line before anything slow.
        progress: called with (work done, work in all).
        workers: how many were asked for.
    """

    units: Sequence[Unit]
    folder: WorkFolder
    task: Task
    end: Callable[[], bool]
    say: Callable[[str], None] | None = None
    progress: Callable[[int, int], None] | None = None
    workers: int | None = None

    def left(self, units: Sequence[Unit]) -> list[Unit]:
        """Those that nobody has done yet; all but `units` are known to be done. Tells progress."""
        found = [unit for unit in units if not self.folder.done(unit.number)]
        if self.progress is not None:
            total = sum(unit.weight for unit in self.units)
            self.progress(total - sum(unit.weight for unit in found), total)
        return found

    def ready(self, unit: Unit) -> bool:
        """Whether all that it needs is done."""
        return all(map(self.folder.done, unit.needs))
