"""Steered layer of a served model, and the operator that steers it.

    rows of a step      a = hidden + residual,  hidden <- a(T),  residual <- 0

Decoder layers of most architectures return the two summands of the residual stream; the activation
is their sum, and a field has to see it. Setting the sum and no remainder is exact in every
precision, where adding a(T) - a to one summand would round. Rows that are not steered keep every
bit of both.

In a CUDA graph no decision is taken: the dense form runs over all rows, with doses from buffers
that the next step fills anew. Everywhere else only the steered rows are computed.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from odesteer.backends.vllm.batch import RowSpan, StepBatch, group_by_dose, to_device
from odesteer.ode import DoseBatch, columns_of
from odesteer.steering import LayerSteering

EMPTY_BATCH = StepBatch()


class SteeredLayer:
    """A layer and site of the model, and what is steered there in the current step.

    Args:
        key: in `STEERED_LAYERS`.
        parts: the steerings of this layer, by name, in the order in which they act.
        rows: the most rows of a step that a CUDA graph may hold; 0 without graphs.
        device: of the activations.

    Attributes:
        totals: by steering, the number of tokens moved and the sum of their displacements, [2] in
            float64.
    """

    def __init__(
        self,
        key: int,
        parts: dict[str, LayerSteering],
        rows: int = 0,
        device: str | torch.device = "cpu",
    ):
        self.key, self.parts = key, parts
        self.batch = EMPTY_BATCH
        self.dense = False
        device = torch.device(device)
        self.totals = {name: torch.zeros(2, dtype=torch.float64, device=device) for name in parts}
        # A gated field goes backwards as another field, made here and not at every step.
        self._reversed = {name: ~part for name, part in parts.items() if part.field.gated}
        self._velocities: dict[tuple[str, str], Tensor] = {}
        # By steering and direction: the doses of all rows, [4, rows], and whether any is set.
        self._buffers: dict[tuple[str, bool], Tensor] = {}
        self._set: dict[tuple[str, bool], bool] = {}
        if rows:
            for name in parts:
                for backwards in (False, True) if name in self._reversed else (False,):
                    buffer = torch.zeros(4, rows, device=device)
                    buffer[3] = 1.0
                    self._buffers[name, backwards] = buffer
                    self._set[name, backwards] = False

    @property
    def idle(self) -> bool:
        """Whether this step has nothing to steer."""
        return not (self.batch.spans or self.batch.prompt_ends or self.dense)

    @property
    def in_graphs(self) -> bool:
        """Whether a CUDA graph may hold this layer."""
        return bool(self._buffers)

    def begin(self, batch: StepBatch) -> None:
        """Set the batch of the coming step."""
        self.batch = batch
        for (name, backwards), buffer in self._buffers.items():
            spans = batch.spans.get(name, [])
            doses = list(self._doses(spans, name, backwards))
            if not doses and not self._set[name, backwards]:
                continue  # no dose, before and now
            numbers = torch.zeros(4, buffer.shape[1])
            numbers[3] = 1.0
            for rows, dose in doses:
                numbers[:, rows.start : rows.stop] = torch.tensor(dose)[:, None]
            # Behind what the device still runs, without waiting for it.
            buffer.copy_(to_device(numbers, buffer.device), non_blocking=True)
            self._set[name, backwards] = bool(doses)

    def forget(self, request_ids: object) -> None:
        """Drop the velocities of requests (a container of ids) that have ended."""
        if self._velocities:
            kept = {k: v for k, v in self._velocities.items() if k[0] not in request_ids}  # type: ignore[operator]
            self._velocities = kept

    def apply(self, hidden: Tensor, residual: Tensor | None) -> None:
        """Move the steered rows of [n, d] in place."""
        if self.dense or (hidden.is_cuda and torch.cuda.is_current_stream_capturing()):
            self.apply_dense(hidden, residual)
        else:
            self.apply_sparse(hidden, residual)

    def apply_sparse(self, hidden: Tensor, residual: Tensor | None) -> None:
        """Steer by reading and writing the steered rows alone."""
        for name, part in self.parts.items():
            for request_id, row in self._prompt_ends(name, part):
                a = hidden[row] if residual is None else hidden[row] + residual[row]
                self._velocities[request_id, name] = part.velocity(a)
            for dose, spans in group_by_dose(self.batch.spans.get(name, ()), part):
                rows = self.batch.rows(spans, hidden.device)
                a = hidden.index_select(0, rows)
                if residual is not None:
                    a += residual.index_select(0, rows)
                steering = part
                if dose.size < 0 and name in self._reversed:
                    steering, dose = self._reversed[name], dose.scaled(-1.0)
                steered = steering(a, self._velocity(name, part, spans), dose)
                hidden.index_copy_(0, rows, steered)
                if residual is not None:
                    residual.index_fill_(0, rows, 0)
                self._count(name, a, steered)

    def apply_dense(self, hidden: Tensor, residual: Tensor | None) -> None:
        """Steer by the same operations on all rows, whatever is steered."""
        n = hidden.shape[0]
        for (name, backwards), buffer in self._buffers.items():
            part, numbers = (self._reversed if backwards else self.parts)[name], buffer[:, :n]
            a = hidden if residual is None else hidden + residual
            stops = part.field.barrier is not None
            steered = part(a, None, DoseBatch(numbers, stopping=stops))
            active = (numbers[:3] != 0).any(dim=0)[:, None]
            self._count(name, a, torch.where(active, steered, a))
            hidden.copy_(torch.where(active, steered, hidden))
            if residual is not None:
                residual.copy_(torch.where(active, torch.zeros_like(residual), residual))

    def _prompt_ends(self, name: str, part: LayerSteering) -> list[tuple[str, int]]:
        return self.batch.prompt_ends.get(name, []) if part.field.prompt_conditioned else []

    def _velocity(self, name: str, part: LayerSteering, spans: list[RowSpan]) -> Tensor | None:
        """For a prompt-conditioned field, the velocity of each row's prompt, [n, d]."""
        if not part.field.prompt_conditioned:
            return None
        velocities = [
            self._velocities[span.scheduled.request_id, name].expand(len(span.rows), -1)
            for span in spans
        ]
        return torch.cat(velocities)

    def _doses(
        self, spans: list[RowSpan], name: str, backwards: bool
    ) -> Iterator[tuple[range, tuple[float, float, float, float]]]:
        """Yield the rows of the spans of one direction, with their doses in that direction."""
        for span in spans:
            part = self.parts[name]
            dose = part.resolve(span.steering.dose_at(part.dose))
            reverse = name in self._reversed and dose.size < 0
            if not dose.is_zero and reverse == backwards:
                yield span.rows, columns_of(dose.scaled(-1.0) if reverse else dose)

    def _count(self, name: str, before: Tensor, after: Tensor) -> None:
        distance = torch.linalg.vector_norm(after.float() - before.float(), dim=-1)
        self.totals[name] += torch.stack([(distance > 0).sum(), distance.sum()])


# Of the model that this process serves: a compiled graph knows its layers by number.
STEERED_LAYERS: dict[int, SteeredLayer] = {}


@torch.library.custom_op("odesteer::steer", mutates_args=("hidden", "residual"))
def steer(hidden: Tensor, residual: Tensor, key: int) -> None:
    """Steer a decoder layer's output, given as two summands [n, d], in place."""
    STEERED_LAYERS[key].apply(hidden, residual)


@torch.library.custom_op("odesteer::steer_one", mutates_args=("hidden",))
def steer_one(hidden: Tensor, key: int) -> None:
    """Steer activations that are one tensor [n, d], in place."""
    STEERED_LAYERS[key].apply(hidden, None)


@steer.register_fake
def _(hidden: Tensor, residual: Tensor, key: int) -> None:
    return None


@steer_one.register_fake
def _(hidden: Tensor, key: int) -> None:
    return None
