"""Job: the units still to compute, with progress."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from odesteer.common.jobs.directory import WorkFolder


class Unit(Protocol):
    """Unit of work, computed by one process and written atomically."""

    @property
    def number(self) -> int:
        """Index among all units."""

    @property
    def weight(self) -> int:
        """Approximate amount of work."""

    @property
    def needs(self) -> Sequence[int]:
        """Numbers of the units that must be done first."""

    @property
    def fold(self) -> int:
        """Data that it works on; a worker that holds it is preferred."""

    @property
    def keeps(self) -> bool:
        """Whether the worker holds the fold in memory afterwards."""


class Computes(Protocol):
    """Worker process with everything in memory that units need."""

    def compute(self, number: int) -> None:
        """Compute and write a unit that the caller has claimed."""

    def close(self) -> None:
        """End what was started for it, such as other processes."""


class Task(Protocol):
    """Picklable description of the work, from which workers start."""

    def start(self, say: Callable[[str], None] | None = None) -> Computes:
        """Load what is needed, and write the description of the work.

        Raises:
            ValueError: if the directory is other work's.
        """


@dataclass(frozen=True)
class Job:
    """Units of work, their directory and their callbacks.

    Attributes:
        units: all units of the work.
        folder: directory of the units.
        task: description from which workers start.
        end: finishes the work after the last unit; False while another process does so.
        say: called with a line before anything slow.
        progress: called with (work done, work in all).
        workers: requested number of workers.
    """

    units: Sequence[Unit]
    folder: WorkFolder
    task: Task
    end: Callable[[], bool]
    say: Callable[[str], None] | None = None
    progress: Callable[[int, int], None] | None = None
    workers: int | None = None

    def left(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the units among `units` that are not done, and report progress."""
        left = [unit for unit in units if not self.folder.done(unit.number)]
        if self.progress is not None:
            total = sum(unit.weight for unit in self.units)
            self.progress(total - sum(unit.weight for unit in left), total)
        return left

    def ready(self, unit: Unit) -> bool:
        """Whether everything that the unit needs is done."""
        return all(map(self.folder.done, unit.needs))
