"""Steered layer of a served model: the operator, sparse and dense.

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

from odesteer.backends.vllm.batch import RowSpan, StepBatch, doses, to_device
from odesteer.ode import DoseBatch, columns_of
from odesteer.steering import LayerSteering

NOTHING = StepBatch()


class SteeredLayer:
    """What is steered at one place, now.

    Args:
        key: of the place in `STEERED_LAYERS`.
        parts: the steerings of this place, by name, in the order in which they act.
        rows: the most rows of a step that a graph may hold; 0 where no graphs are.
        device: where the activations are.

    Attributes:
        moved: by steering the tokens that it moved and how far in all, [2] in float64.
    """

    def __init__(
        self,
        key: int,
        parts: dict[str, LayerSteering],
        rows: int = 0,
        device: str | torch.device = "cpu",
    ):
        self.key, self.parts = key, parts
        self.step = NOTHING
        self.dense = False
        device = torch.device(device)
        self.moved = {name: torch.zeros(2, dtype=torch.float64, device=device) for name in parts}
        # A field with a gate goes backwards as another field, made here and not at every step.
        self._away = {name: ~part for name, part in parts.items() if part.field.gated}
        self._velocities: dict[tuple[str, str], Tensor] = {}
        # By steering and direction: the doses of all rows, [4, rows], and whether any is set.
        self._buffers: dict[tuple[str, bool], Tensor] = {}
        self._set: dict[tuple[str, bool], bool] = {}
        if rows:
            for name in parts:
                for backwards in (False, True) if name in self._away else (False,):
                    buffer = torch.zeros(4, rows, device=device)
                    buffer[3] = 1.0
                    self._buffers[name, backwards] = buffer
                    self._set[name, backwards] = False

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done in this step."""
        return not (self.step.shares or self.step.prompt_ends or self.dense)

    @property
    def in_graphs(self) -> bool:
        """Whether a CUDA graph may hold this place."""
        return bool(self._buffers)

    def begin(self, step: StepBatch) -> None:
        """What the rows of the coming step are; before it is run."""
        self.step = step
        for (name, backwards), buffer in self._buffers.items():
            shares = step.shares.get(name, [])
            some = list(self._columns(shares, name, backwards))
            if not some and not self._set[name, backwards]:
                continue  # still as it was made
            numbers = torch.zeros(4, buffer.shape[1])
            numbers[3] = 1.0
            for rows, dose in some:
                numbers[:, rows.start : rows.stop] = torch.tensor(dose)[:, None]
            # Behind what the device still runs, without waiting for it.
            buffer.copy_(to_device(numbers, buffer.device), non_blocking=True)
            self._set[name, backwards] = bool(some)

    def forget(self, requests: object) -> None:
        """Drop what was kept for requests (a container of names) that have ended."""
        if self._velocities:
            kept = {k: v for k, v in self._velocities.items() if k[0] not in requests}  # type: ignore[operator]
            self._velocities = kept

    def apply(self, hidden: Tensor, residual: Tensor | None) -> None:
        """Move the rows of [n, d] that are steered, in place."""
        if self.dense or (hidden.is_cuda and torch.cuda.is_current_stream_capturing()):
            self.apply_to_all(hidden, residual)
        else:
            self.apply_to_some(hidden, residual)

    def apply_to_some(self, hidden: Tensor, residual: Tensor | None) -> None:
        """The sparse form: reads and writes the steered rows alone."""
        for name, part in self.parts.items():
            for request, row in self._prompts(name, part):
                a = hidden[row] if residual is None else hidden[row] + residual[row]
                self._velocities[request, name] = part.velocity(a)
            for dose, shares in doses(self.step.shares.get(name, ()), part.dose):
                rows = self.step.rows(shares, hidden.device)
                a = hidden.index_select(0, rows)
                if residual is not None:
                    a += residual.index_select(0, rows)
                steering = part
                if dose.size < 0 and name in self._away:
                    steering, dose = self._away[name], dose.scaled(-1.0)
                steered = steering(a, self._velocity(name, part, shares), dose)
                hidden.index_copy_(0, rows, steered)
                if residual is not None:
                    residual.index_fill_(0, rows, 0)
                self._count(name, a, steered)

    def apply_to_all(self, hidden: Tensor, residual: Tensor | None) -> None:
        """The dense form: the same operations whatever is steered."""
        n = hidden.shape[0]
        for (name, backwards), buffer in self._buffers.items():
            part, numbers = (self._away if backwards else self.parts)[name], buffer[:, :n]
            a = hidden if residual is None else hidden + residual
            stops = part.field.barrier is not None
            steered = part(a, None, DoseBatch(numbers, stopping=stops))
            active = (numbers[:3] != 0).any(dim=0)[:, None]
            self._count(name, a, torch.where(active, steered, a))
            hidden.copy_(torch.where(active, steered, hidden))
            if residual is not None:
                residual.copy_(torch.where(active, torch.zeros_like(residual), residual))

    # ---- inside

    def _prompts(self, name: str, part: LayerSteering) -> list[tuple[str, int]]:
        return self.step.prompt_ends.get(name, []) if part.field.prompt_conditioned else []

    def _velocity(self, name: str, part: LayerSteering, shares: list[RowSpan]) -> Tensor | None:
        """For a field that reads the prompt: what it made of each row's, [n, d]."""
        if not part.field.prompt_conditioned:
            return None
        kept = [
            self._velocities[share.of.request, name].expand(len(share.rows), -1) for share in shares
        ]
        return torch.cat(kept)

    def _columns(
        self, shares: list[RowSpan], name: str, backwards: bool
    ) -> Iterator[tuple[range, tuple[float, float, float, float]]]:
        """The rows of shares that go one way, with their doses; those that go away, as they go."""
        for share in shares:
            dose = share.ask.dose_at(self.parts[name].dose)
            away = name in self._away and dose.size < 0
            if not dose.is_zero and away == backwards:
                yield share.rows, columns_of(dose.scaled(-1.0) if away else dose)

    def _count(self, name: str, before: Tensor, after: Tensor) -> None:
        distance = torch.linalg.vector_norm(after.float() - before.float(), dim=-1)
        self.moved[name] += torch.stack([(distance > 0).sum(), distance.sum()])


# The places of the model that this process serves: a compiled graph knows them by number.
STEERED_LAYERS: dict[int, SteeredLayer] = {}


@torch.library.custom_op("odesteer::steer", mutates_args=("hidden", "residual"))
def steer(hidden: Tensor, residual: Tensor, place: int) -> None:
    """Steer a decoder layer's output, given as two summands [n, d], in place."""
    STEERED_LAYERS[place].apply(hidden, residual)


@torch.library.custom_op("odesteer::steer_one", mutates_args=("hidden",))
def steer_one(hidden: Tensor, place: int) -> None:
    """Steer activations that are one tensor [n, d], in place."""
    STEERED_LAYERS[place].apply(hidden, None)


@steer.register_fake
def _(hidden: Tensor, residual: Tensor, place: int) -> None:
    return None


@steer_one.register_fake
def _(hidden: Tensor, place: int) -> None:
    return None
