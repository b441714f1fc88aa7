"""Batch of doses, one a row.

One batch, one passage: the doses become columns of numbers, so that rows of any strength and
any target cost what rows of one strength cost.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from odesteer.ode.dose import Angle, Dose, PathLength, Target, Time, as_dose, at_speed
from odesteer.ode.fields.base import VectorField, compute_dtype


class _Table(Dose):
    """Shared by the doses that stand in a table, a column a row of the batch."""

    @abstractmethod
    def _columns(self, a: Tensor) -> Tensor:
        """Time, path length, angle, where it stops; for a [n, ..., d]: [4, n, 1, ...]."""

    def time(self, field: VectorField, a: Tensor) -> Tensor:
        time, length, angle, _ = self._columns(a)
        if self._turns:
            length = length + angle * torch.linalg.vector_norm(a, dim=-1, dtype=length.dtype)
        return (time + at_speed(field, a, length)).expand(a.shape[:-1])

    def stop_levels(self, a: Tensor) -> Tensor | None:
        if self.stop_at is None:
            return None
        return self._columns(a)[3].expand(a.shape[:-1])

    @property
    @abstractmethod
    def _turns(self) -> bool:
        """Whether any dose may be an angle."""


class DoseBatch(_Table):
    """The table itself, such as a buffer on a device that is filled anew for every batch.

    Whatever the numbers are, the same operations run: a CUDA graph may hold them.

    Args:
        numbers: [4, n]; of each row the integration time, path length, angle (at most one is not
            0; `columns_of` a dose), and the probability at which it stops, 1 being nowhere.
        backwards: whether the rows go backwards; rows of both signs need two tables.
        stopping: whether any row may stop.
    """

    def __init__(self, numbers: Tensor, backwards: bool = False, stopping: bool = True):
        self.numbers, self._backwards, self._stopping = numbers, backwards, stopping

    def __str__(self) -> str:
        return f"a dose of its own for each of {self.numbers.shape[1]} rows"

    def _columns(self, a: Tensor) -> Tensor:
        numbers = self.numbers.to(a.device, compute_dtype(a.dtype))
        return numbers.reshape(4, a.shape[0], *[1] * (a.dim() - 2))

    @property
    def _turns(self) -> bool:
        return True

    @property
    def stop_at(self) -> float | None:
        return 1.0 if self._stopping else None

    @property
    def is_zero(self) -> bool:
        return False

    @property
    def size(self) -> float:
        """Only its sign means anything."""
        return -1.0 if self._backwards else 1.0

    def scaled(self, factor: float) -> "DoseBatch":
        numbers = torch.cat([self.numbers[:3] * factor, self.numbers[3:]])
        return DoseBatch(numbers, self._backwards != (factor < 0), self._stopping)


class PerRow(_Table):
    """A dose of its own for each row of a batch.

    Requests with different strengths and targets can share one forward pass. With beams, each
    prompt's beams have its dose. It belongs to a batch, so it is not saved.

    Args:
        doses: one a row, each a number (`Time`) or a dose: `Angle`, `PathLength`, `Target`.

    Raises:
        ValueError: for no doses, or one that is itself a `PerRow`.
    """

    def __init__(self, doses: Sequence[Dose | float]):
        self.doses = tuple(as_dose(dose) for dose in doses)
        if not self.doses or any(isinstance(dose, PerRow) for dose in self.doses):
            raise ValueError("PerRow needs at least one dose, each of a row; got none or another.")
        # Columns: integration time, path length, angle, probability at which it stops.
        self._numbers = torch.tensor([columns_of(dose) for dose in self.doses], dtype=torch.float64)
        self._has_angles = bool((self._numbers[:, 2] != 0).any())
        # Asked for every token.
        stops = [dose.stop_at for dose in self.doses if dose.stop_at is not None]
        self._stop_at = max(stops, default=None)
        self._is_zero = all(dose.is_zero for dose in self.doses)
        self._placed: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __repr__(self) -> str:
        return f"PerRow({list(self.doses)})"

    def __str__(self) -> str:
        return f"a dose of its own for each of {len(self.doses)} rows"

    def at(self, rows: Tensor, batch: int) -> "PerRow":
        """The doses of activations that lie in these rows [n] of a batch."""
        chosen = rows.cpu() // self._repeats(batch)
        return PerRow([self.doses[i] for i in chosen.tolist()])

    def _repeats(self, batch: int) -> int:
        if batch % len(self.doses):
            raise ValueError(
                f"PerRow has {len(self.doses)} doses; the batch has {batch} rows. Give one a row."
            )
        return batch // len(self.doses)

    def _columns(self, a: Tensor) -> Tensor:
        if a.dim() < 2:
            raise ValueError(f"PerRow needs a batch of activations [b, ..., d]; got {[*a.shape]}.")
        key = (a.device, compute_dtype(a.dtype))
        if key not in self._placed:
            self._placed[key] = self._numbers.mT.to(*key)
        columns, repeats = self._placed[key], self._repeats(a.shape[0])
        if repeats > 1:
            columns = columns.repeat_interleave(repeats, dim=1)
        return columns.reshape(4, a.shape[0], *[1] * (a.dim() - 2))

    @property
    def _turns(self) -> bool:
        return self._has_angles

    @property
    def stop_at(self) -> float | None:
        """The highest probability at which a row stops, or None if none stops."""
        return self._stop_at

    @property
    def is_zero(self) -> bool:
        return self._is_zero

    @property
    def size(self) -> float:
        """The largest dose, whatever its unit; its sign is that of all.

        Raises:
            ValueError: if some rows go forwards and others backwards.
        """
        sizes = [dose.size for dose in self.doses]
        if min(sizes) < 0 < max(sizes):
            raise ValueError(
                "Some of these rows go forwards and others backwards, which this field does "
                "another way: attach the steering twice, each time on rows of one sign."
            )
        return max(sizes, key=abs)

    def scaled(self, factor: float) -> "PerRow":
        return PerRow([dose.scaled(factor) for dose in self.doses])


def columns_of(dose: Dose) -> tuple[float, float, float, float]:
    """Integration time, path length, angle, and where it stops: 1 is nowhere."""
    budget = as_dose(dose.budget) if isinstance(dose, Target) else dose
    kinds = (Time, PathLength, Angle)
    time, length, angle = (budget.size if isinstance(budget, kind) else 0.0 for kind in kinds)
    return time, length, angle, 1.0 if dose.stop_at is None else dose.stop_at
