"""Doses that differ from row to row of a batch.

The doses become columns of numbers, so that rows of any strength and any target are solved at the
cost of rows of one strength.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from odesteer.ode.dose import Angle, Dose, PathLength, Target, Time, as_dose, at_speed
from odesteer.ode.fields.base import VectorField, compute_dtype


class DoseBatch(Dose):
    """Table of doses, such as a device buffer that is refilled for every batch.

    The operations do not depend on the numbers, so that a CUDA graph may contain them.

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
        """Return `numbers` for activations a [n, ..., d]: [4, n, 1, ...]."""
        numbers = self.numbers.to(a.device, compute_dtype(a.dtype))
        return numbers.reshape(4, a.shape[0], *[1] * (a.dim() - 2))

    def time(self, field: VectorField, a: Tensor) -> Tensor:
        time, length, angle, _ = self._columns(a)
        if self._has_angles:
            length = length + angle * torch.linalg.vector_norm(a, dim=-1, dtype=length.dtype)
        return (time + at_speed(field, a, length)).expand(a.shape[:-1])

    def stop_levels(self, a: Tensor) -> Tensor | None:
        if self.stop_at is None:
            return None
        return self._columns(a)[3].expand(a.shape[:-1])

    @property
    def _has_angles(self) -> bool:
        """Whether any dose may be an angle."""
        return True

    @property
    def stop_at(self) -> float | None:
        return 1.0 if self._stopping else None

    @property
    def is_zero(self) -> bool:
        return False

    @property
    def size(self) -> float:
        """1 or -1: only the sign is known."""
        return -1.0 if self._backwards else 1.0

    def scaled(self, factor: float) -> Dose:
        numbers = torch.cat([self.numbers[:3] * factor, self.numbers[3:]])
        return DoseBatch(numbers, self._backwards != (factor < 0), self._stopping)


class PerRow(DoseBatch):
    """One dose for each row of a batch.

    Requests with different strengths and targets can share one forward pass. With beams, a
    prompt's beams have its dose. It belongs to a batch, so it is not saved.

    Args:
        doses: one for each row, a number (`Time`) or a dose: `Angle`, `PathLength`, `Target`.

    Raises:
        ValueError: for no doses, or one that is itself a `PerRow`.
    """

    def __init__(self, doses: Sequence[Dose | float]):
        self.doses = tuple(as_dose(dose) for dose in doses)
        if not self.doses or any(isinstance(dose, PerRow) for dose in self.doses):
            raise ValueError("PerRow needs at least one dose, each of a row; got none or another.")
        columns = [columns_of(dose) for dose in self.doses]
        super().__init__(torch.tensor(columns, dtype=torch.float64).mT)
        # Properties that are read for every token.
        self._any_angle = bool((self.numbers[2] != 0).any())
        self._stop_at = max((d.stop_at for d in self.doses if d.stop_at is not None), default=None)
        self._is_zero = all(dose.is_zero for dose in self.doses)
        self.covered = any(isinstance(d, Target) and d.coverage is not None for d in self.doses)
        self._on_device: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __repr__(self) -> str:
        return f"PerRow({list(self.doses)})"

    def at(self, rows: Tensor, batch: int) -> "PerRow":
        """Return the doses of activations in these rows [n] of a batch."""
        index = rows.cpu() // self._repeats(batch)
        return PerRow([self.doses[i] for i in index.tolist()])

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
        if key not in self._on_device:
            self._on_device[key] = self.numbers.to(*key)
        columns, repeats = self._on_device[key], self._repeats(a.shape[0])
        if repeats > 1:
            columns = columns.repeat_interleave(repeats, dim=1)
        return columns.reshape(4, a.shape[0], *[1] * (a.dim() - 2))

    @property
    def _has_angles(self) -> bool:
        return self._any_angle

    @property
    def stop_at(self) -> float | None:
        """The highest probability at which a row stops, or None if none stops."""
        return self._stop_at

    @property
    def is_zero(self) -> bool:
        return self._is_zero

    @property
    def size(self) -> float:
        """The largest dose, whatever its unit; all doses have its sign.

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
    """Return integration time, path length, angle and stopping probability (1: nowhere)."""
    budget = as_dose(dose.budget) if isinstance(dose, Target) else dose
    kinds = (Time, PathLength, Angle)
    time, length, angle = (budget.size if isinstance(budget, kind) else 0.0 for kind in kinds)
    return time, length, angle, 1.0 if dose.stop_at is None else dose.stop_at
