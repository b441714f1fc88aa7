"""Batch of one engine step: which rows are steered, by what, and how far.

An engine runs the tokens of many requests as the rows of one matrix. A request's row j of this
step is its token at the absolute position `computed + j`, whether it is read for the first time,
again after a preemption, as one chunk of a long prompt, or as a guess to be verified. A steering
acts on spans of positions that the prompt's length decides, so nothing else has to be known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from odesteer.backends.vllm.request import SteeringRequest
from odesteer.common.catalogue import LAST_AND_GENERATED
from odesteer.models.hooks.positions import Span
from odesteer.ode import Dose, DoseBatch, columns_of
from odesteer.steering import LayerSteering


class ScheduledRequest(NamedTuple):
    """A request's tokens in one step.

    Attributes:
        request_id: vLLM's.
        steerings: what the client asks for; empty for an unsteered request.
        first: the row of the first token.
        length: the number of tokens in this step.
        computed: the number of tokens before this step.
        prompt_length: of the prompt that the client sent.
    """

    request_id: str
    steerings: tuple[SteeringRequest, ...]
    first: int
    length: int
    computed: int
    prompt_length: int

    def rows(self, span: Span) -> range:
        """Return the rows at the positions of a span."""
        start, stop = span
        end = self.length if stop is None else min(self.length, stop - self.computed)
        return range(self.first + max(0, start - self.computed), self.first + end)

    @property
    def prompt_end(self) -> int | None:
        """The row of the prompt's last token, if it is read in this step."""
        offset = self.prompt_length - 1 - self.computed
        return self.first + offset if 0 <= offset < self.length else None


class RowSpan(NamedTuple):
    """Neighbouring rows of one request that one steering moves."""

    scheduled: ScheduledRequest
    steering: SteeringRequest
    rows: range


@dataclass(eq=False)
class StepBatch:
    """The steered rows of a step by steering, shared by all layers.

    Attributes:
        spans: by the steering's name; each has at least one row.
        prompt_ends: (request id, row) of the steered prompts whose last token is read, by
            steering.
    """

    spans: dict[str, list[RowSpan]] = field(default_factory=dict)
    prompt_ends: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    _rows: dict[tuple[torch.device, tuple[range, ...]], Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, scheduled: Sequence[ScheduledRequest], positions: Mapping[str, str] = {}
    ) -> "StepBatch":
        """Return the batch of requests.

        Args:
            scheduled: the requests of a step.
            positions: of the steerings, by name, for requests that name none.
        """
        batch = cls()
        for request in scheduled:
            for steering in request.steerings:
                if request.prompt_end is not None:
                    ends = batch.prompt_ends.setdefault(steering.name, [])
                    ends.append((request.request_id, request.prompt_end))
                default = positions.get(steering.name, LAST_AND_GENERATED)
                for span in steering.spans(request.prompt_length, default):
                    if rows := request.rows(span):
                        spans = batch.spans.setdefault(steering.name, [])
                        spans.append(RowSpan(request, steering, rows))
        return batch

    def rows(self, spans: Sequence[RowSpan], device: torch.device) -> Tensor:
        """Return the row numbers of spans, [n]; computed once for all layers."""
        key = (device, tuple(span.rows for span in spans))
        if key not in self._rows:
            numbers = [row for span in spans for row in span.rows]
            self._rows[key] = to_device(torch.tensor(numbers), device)
        return self._rows[key]


def group_by_dose(
    spans: Sequence[RowSpan], part: LayerSteering
) -> list[tuple[Dose, list[RowSpan]]]:
    """Group the spans of a steering by the sign of their dose.

    Rows of any doses of one sign pass together; a gated field is another field backwards.
    """
    by_sign: dict[bool, list[tuple[RowSpan, Dose]]] = {}
    for span in spans:
        dose = part.resolve(span.steering.dose_at(part.dose))
        if not dose.is_zero:
            by_sign.setdefault(dose.size < 0, []).append((span, dose))
    groups = []
    for backwards, pairs in by_sign.items():
        if len({dose for _, dose in pairs}) == 1:
            joint: Dose = pairs[0][1]
        else:
            numbers = [columns_of(dose) for span, dose in pairs for _ in span.rows]
            stopping = any(dose.stop_at is not None for _, dose in pairs)
            joint = DoseBatch(torch.tensor(numbers, dtype=torch.float64).mT, backwards, stopping)
        groups.append((joint, [span for span, _ in pairs]))
    return groups


def to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to a device, without waiting for the copy."""
    if device.type != "cuda":
        return numbers.to(device)
    return numbers.pin_memory().to(device, non_blocking=True)
