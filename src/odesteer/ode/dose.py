"""Doses: time, path length, angle, target.

    Time(T)              integration time T, the paper's strength
    PathLength(T)        the time in which a field at its initial speed travels T
    Angle(theta)         path length theta ||a||: transfers between models and layers
    Target(p, budget)    until P(desired | a) >= p, at most as far as the budget; with a coverage,
                         not before a stated share of rows is desired

`PerRow` gives each row of a batch its dose, in columns of numbers: rows of any strength and any
target cost what rows of one strength do. A number means
`Time`. Under a unit-speed field time and path length are the same.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odesteer.ode.fields.base import VectorField, compute_dtype


class Dose(ABC):
    """Integration time of each row, and the probability at which it may stop."""

    @property
    def stop_at(self) -> float | None:
        """Probability at which a row stops, or None to spend the whole dose."""
        return None

    def stop_levels(self, a: Tensor) -> float | Tensor | None:
        """Return `stop_at` for rows a [..., d]: one for all, or one for each [...]."""
        return self.stop_at

    @abstractmethod
    def time(self, field: VectorField, a: Tensor) -> Tensor:
        """Return signed integration times: [..., d] of any type -> [...] in `compute_dtype`."""

    def uniform_time(self, field: VectorField) -> float | None:
        """Return the time if it is the same number for any rows, else None."""
        return None

    @property
    @abstractmethod
    def is_zero(self) -> bool:
        """True for a dose that moves nothing."""

    @property
    @abstractmethod
    def size(self) -> float:
        """The dose as one signed number, in its own unit."""

    @abstractmethod
    def scaled(self, factor: float) -> "Dose":
        """Return the dose `factor` times as large; -1 goes the other way."""


def _finite(name: str, value: float) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number; got {value!r:.80}.")
    return number


@dataclass(frozen=True)
class _Amount(Dose):
    """Base of the doses that are one signed number."""

    amount: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "amount", _finite(type(self).__name__, self.amount))

    @property
    def is_zero(self) -> bool:
        return self.amount == 0.0

    @property
    def size(self) -> float:
        return self.amount

    def scaled(self, factor: float) -> "Dose":
        return type(self)(factor * self.amount)


@dataclass(frozen=True)
class Time(_Amount):
    """Integration time T; for a constant field, the multiplier of its vector."""

    def __str__(self) -> str:
        return f"strength {self.amount:g}"

    def time(self, field: VectorField, a: Tensor) -> Tensor:
        return _uniform(a, self.amount)

    def uniform_time(self, field: VectorField) -> float:
        return self.amount


@dataclass(frozen=True)
class PathLength(_Amount):
    """Path length in activation space, at the field's initial speed."""

    def __str__(self) -> str:
        return f"path length {self.amount:g}"

    def time(self, field: VectorField, a: Tensor) -> Tensor:
        return at_speed(field, a, _uniform(a, self.amount))

    def uniform_time(self, field: VectorField) -> float | None:
        return self.amount if field.unit_speed else None


@dataclass(frozen=True)
class Angle(_Amount):
    """Path length over ||a||; in radians for a flow on the sphere about 0.

    Usual ones are 0.05 to 0.5; beyond pi, the way to the opposite, a warning says so.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.amount) > math.pi:
            warnings.warn(
                f"Angle({self.amount:g}) is a path of {abs(self.amount):g} times the activation's "
                f"norm, further than to its opposite (3.14); usual ones are 0.05 to 0.5.",
                stacklevel=3,
            )

    def __str__(self) -> str:
        return f"angle {self.amount:g}"

    def time(self, field: VectorField, a: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(a, dim=-1, dtype=compute_dtype(a.dtype))
        return at_speed(field, a, self.amount * norm)


def _uniform(a: Tensor, amount: float) -> Tensor:
    return a.new_full(a.shape[:-1], amount, dtype=compute_dtype(a.dtype))


def at_speed(field: VectorField, a: Tensor, length: Tensor) -> Tensor:
    """Return the time in which the field, at its speed in a [..., d], travels `length` [...]."""
    if field.unit_speed:
        return length
    speed = field(a.to(length.dtype)).norm(dim=-1)
    return length / speed.masked_fill(speed == 0, math.inf)


@dataclass(frozen=True)
class Target(Dose):
    """Stop each row where its calibrated probability reaches `probability`.

    A row that is already there is returned bit for bit. A row that cannot get there spends
    the whole budget. The guarantee holds in the precision of the solution: a cast back to
    bfloat16 may lose about 0.001 of probability.

    Args:
        probability: in (0, 1).
        budget: the largest dose: a positive number (`Time`) or another dose.
        coverage: in (0, 1); stop no earlier than at the level of h from which on at least this
            share of rows is wanted, chosen by conformal prediction on the rows that the fit held
            out. `docs/targets.md` says what that promises.

    Raises:
        ValueError: for a probability or coverage outside (0, 1) or a budget that is not positive.
    """

    probability: float
    budget: "Dose | float"
    coverage: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.probability < 1.0:
            raise ValueError(
                f"Target probability must be between 0 and 1 (exclusive); got {self.probability}."
            )
        if self.coverage is not None and not 0.0 < self.coverage < 1.0:
            raise ValueError(
                f"Target coverage must be between 0 and 1 (exclusive); got {self.coverage}."
            )
        budget = as_dose(self.budget)
        if isinstance(budget, Target) or budget.size <= 0:
            raise ValueError(
                f"Target budget must be a positive number, PathLength or Angle; got "
                f"{self.budget!r}. To steer away, use the negated steering ~s with a target."
            )
        object.__setattr__(self, "budget", budget)

    def __str__(self) -> str:
        covered = "" if self.coverage is None else f" with coverage {self.coverage:g}"
        return f"until P >= {self.probability:g}{covered} within {self.budget}"

    def time(self, field: VectorField, a: Tensor) -> Tensor:
        return as_dose(self.budget).time(field, a)

    def uniform_time(self, field: VectorField) -> float | None:
        return as_dose(self.budget).uniform_time(field)

    @property
    def stop_at(self) -> float:
        return self.probability

    @property
    def is_zero(self) -> bool:
        return False

    @property
    def size(self) -> float:
        return as_dose(self.budget).size

    def scaled(self, factor: float) -> "Target":
        return Target(self.probability, as_dose(self.budget).scaled(factor), self.coverage)


def as_dose(strength: "Dose | float") -> Dose:
    """Convert a number to `Time`; return a dose unchanged.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(strength, Dose):
        return strength
    if isinstance(strength, str) or not hasattr(strength, "__float__"):
        raise ValueError(
            f"A strength is a number or a dose, such as 0.5 or Angle(0.2); got {strength!r:.80}."
        )
    return Time(strength)


DOSES: dict[str, type[Dose]] = {
    "time": Time,
    "path-length": PathLength,
    "angle": Angle,
    "target": Target,
}


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
