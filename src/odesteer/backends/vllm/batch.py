"""Batch of one engine step: which rows are steered, by what, and how far.

An engine runs the tokens of many requests as the rows of one matrix. A request's row j of this
step is its token at the absolute position `computed + j`, whether it is read for the first time,
again after a preemption, as one chunk of a long prompt, or as a guess to be verified. A steering
acts on the positions from its start on, so nothing else has to be known.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from odesteer.backends.vllm.request import SteeringRequest
from odesteer.ode import Dose, DoseBatch, columns_of


class ScheduledRequest(NamedTuple):
    """One request's share of a step.

    Attributes:
        request: its name.
        asks: what it asks for; empty where it is not steered.
        first: the row of its first token.
        length: how many it has in this step.
        computed: its tokens before this step.
        prompt_length: of the prompt that the client sent.
    """

    request: str
    asks: tuple[SteeringRequest, ...]
    first: int
    length: int
    computed: int
    prompt_length: int

    def rows_from(self, start: int) -> range:
        """The rows at positions from `start` on."""
        return range(self.first + max(0, start - self.computed), self.first + self.length)

    @property
    def prompt_end(self) -> int | None:
        """The row of the prompt's last token, where this step reads it."""
        offset = self.prompt_length - 1 - self.computed
        return self.first + offset if 0 <= offset < self.length else None


class RowSpan(NamedTuple):
    """The rows of one request that one steering moves."""

    of: ScheduledRequest
    ask: SteeringRequest
    rows: range


@dataclass(eq=False)
class StepBatch:
    """The shares of a step by steering, and what all layers use of them.

    Attributes:
        shares: by the steering's name; each has at least one row.
        prompt_ends: (request, row) of the steered prompts whose last token is read, by steering.
    """

    shares: dict[str, list[RowSpan]] = field(default_factory=dict)
    prompt_ends: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    _rows: dict[tuple[torch.device, tuple[range, ...]], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, scheduled: Sequence[ScheduledRequest]) -> "StepBatch":
        step = cls()
        for one in scheduled:
            for ask in one.asks:
                if one.prompt_end is not None:
                    ends = step.prompt_ends.setdefault(ask.name, [])
                    ends.append((one.request, one.prompt_end))
                rows = one.rows_from(ask.begins(one.prompt_length))
                if rows:
                    step.shares.setdefault(ask.name, []).append(RowSpan(one, ask, rows))
        return step

    def rows(self, shares: Sequence[RowSpan], device: torch.device) -> Tensor:
        """The row numbers of shares, [n]; made once for all layers."""
        key = (device, tuple(share.rows for share in shares))
        if key not in self._rows:
            numbers = [row for share in shares for row in share.rows]
            self._rows[key] = to_device(torch.tensor(numbers), device)
        return self._rows[key]


def doses(shares: Sequence[RowSpan], own: Dose) -> list[tuple[Dose, list[RowSpan]]]:
    """Shares by their dose at a steering whose own is `own`, forwards ones and backwards ones.

    Rows of any doses of one sign pass together; fields with a gate do another thing backwards.
    """
    ways: dict[bool, list[tuple[RowSpan, Dose]]] = {}
    for share in shares:
        dose = share.ask.dose_at(own)
        if not dose.is_zero:
            ways.setdefault(dose.size < 0, []).append((share, dose))
    found = []
    for backwards, some in ways.items():
        different = {dose for _, dose in some}
        if len(different) == 1:
            joint: Dose = some[0][1]
        else:
            numbers = [columns_of(dose) for share, dose in some for _ in share.rows]
            stopping = any(dose.stop_at is not None for _, dose in some)
            joint = DoseBatch(torch.tensor(numbers, dtype=torch.float64).mT, backwards, stopping)
        found.append((joint, [share for share, _ in some]))
    return found


def to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on a device, without waiting for it."""
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)
