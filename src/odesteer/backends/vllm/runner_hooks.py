"""Batches of vLLM model runners: which rows are steered, by what, and how far.

vLLM has two: the one in `vllm.v1.worker.gpu_model_runner` (also on CPUs), which keeps the whole
batch, and the one in `vllm.v1.worker.gpu.model_runner`, which hands the batch on. Both are read
after they have prepared their inputs; both count tokens as computed that are in the cache.

Batch of one engine step: which rows are steered, by what, and how far.

An engine runs the tokens of many requests as the rows of one matrix. A request's row j of this
step is its token at the absolute position `computed + j`, whether it is read for the first time,
again after a preemption, as one chunk of a long prompt, or as a guess to be verified. A steering
acts on the positions from its start on, so nothing else has to be known.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesteer.backends.vllm.install import install
from odesteer.backends.vllm.registry import SteeringRegistry
from odesteer.backends.vllm.request import KEY, SteeringRequest, parse
from odesteer.backends.vllm.steered_layer import NOTHING, SteeredLayer
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


class Served:
    """The steerings of one runner: its places, and the requests that it knows."""

    def __init__(self, places: list[SteeredLayer], dense: bool = False):
        self.places = places
        self._dense = dense
        self._asks: dict[
            str, tuple[tuple[SteeringRequest, ...], int]
        ] = {}  # of the second runner's requests

    def begin(self, scheduled: list[ScheduledRequest]) -> None:
        """Before a step."""
        step = StepBatch.of(scheduled) if scheduled else NOTHING
        for place in self.places:
            place.dense = False
            place.begin(step)

    def begin_dummy(self) -> None:
        """Before a run of no requests: it warms up what a graph is going to hold, or nothing."""
        for place in self.places:
            place.begin(NOTHING)
            place.dense = self._dense

    def keep(self, request: str, params: Any, prompt_length: int) -> None:
        """A request is new."""
        self._asks[request] = asks_of(params), prompt_length

    def kept(self, request: str) -> tuple[tuple[SteeringRequest, ...], int]:
        """What is known of a request."""
        return self._asks.get(request, ((), 0))

    def stats(self) -> list[dict[str, Any]]:
        """Of every place and steering, what was done so far (JSON values)."""
        found = []
        for place in self.places:
            for name, part in place.parts.items():
                tokens, displacement = place.moved[name].tolist()
                found.append(
                    {
                        "steering": name,
                        "layer": place.key // 2,
                        "asked": part.layer,
                        "site": part.site,
                        "tokens": int(tokens),
                        "displacement": displacement,
                    }
                )
        return found

    def forget(self, requests: Any) -> None:
        """Requests have ended."""
        for request in requests:
            self._asks.pop(request, None)
        for place in self.places:
            place.forget(requests)


def asks_of(params: Any) -> tuple[SteeringRequest, ...]:
    """What sampling parameters ask for; nothing for a pooling request."""
    extra = getattr(params, "extra_args", None)
    value = None if extra is None else extra.get(KEY)
    return () if value is None else parse(value)


def first_runner(runner: Any) -> list[ScheduledRequest]:
    """What is steered of the batch that `vllm.v1.worker.gpu_model_runner` has prepared."""

    def known(request: str) -> tuple[tuple[SteeringRequest, ...], int]:
        state = runner.requests[request]
        return asks_of(state.sampling_params), int(state.num_prompt_tokens)

    batch = runner.input_batch
    starts, computed = runner.query_start_loc.np, batch.num_computed_tokens_cpu
    return _scheduled(batch.req_ids, starts, computed, known)


def second_runner(batch: Any, served: Served) -> list[ScheduledRequest]:
    """What is steered of the batch that `vllm.v1.worker.gpu.model_runner` has prepared."""
    starts, computed = batch.query_start_loc_np, batch.num_computed_tokens_np
    return _scheduled(batch.req_ids, starts, computed, served.kept)


def _scheduled(
    requests: Sequence[str],
    starts: Sequence[int],
    computed: Sequence[int],
    known: Callable[[str], tuple[tuple[SteeringRequest, ...], int]],
) -> list[ScheduledRequest]:
    """The shares of the requests that ask for something; most ask for nothing."""
    found = []
    for i, request in enumerate(requests):
        asks, prompt_length = known(request)
        if asks:
            first, end = int(starts[i]), int(starts[i + 1])
            length, before = end - first, int(computed[i])
            found.append(ScheduledRequest(request, asks, first, length, before, prompt_length))
    return found


def served_by(runner: Any) -> Served | None:
    """What is on a runner's model; None where its server does not steer."""
    return getattr(runner, "_odesteer", None)


def loads(original: Callable[..., Any]) -> Callable[..., Any]:
    """`load_model`, which also arms."""

    @wraps(original)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        catalogue = SteeringRegistry.of(self.vllm_config.additional_config)
        if catalogue is not None:
            places = install(self.get_model(), catalogue, self.vllm_config)
            graphs = any(place.in_graphs for place in places)
            self._odesteer = Served(places, graphs)
        return result

    return load_model


def runs_dummy(original: Callable[..., Any]) -> Callable[..., Any]:
    """`_dummy_run`, in which nothing of the last step is left."""

    @wraps(original)
    def _dummy_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        served = served_by(self)
        if served is not None:
            served.begin_dummy()
        return original(self, *args, **kwargs)

    return _dummy_run


def updates_first(original: Callable[..., Any]) -> Callable[..., Any]:
    """`_update_states` of the first runner, which learns what has ended."""

    @wraps(original)
    def _update_states(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        served = served_by(self)
        if served is not None:
            served.forget(scheduler_output.finished_req_ids)
        return original(self, scheduler_output, *args, **kwargs)

    return _update_states


def prepares_first(original: Callable[..., Any]) -> Callable[..., Any]:
    """`_prepare_inputs` of the first runner."""

    @wraps(original)
    def _prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        served = served_by(self)
        if served is not None:
            served.begin(first_runner(self))
        return result

    return _prepare_inputs


def prepares_second(original: Callable[..., Any]) -> Callable[..., Any]:
    """`prepare_inputs` of the second runner."""

    @wraps(original)
    def prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = original(self, *args, **kwargs)
        served = served_by(self)
        if served is not None:
            served.begin(second_runner(batch, served))
        return batch

    return prepare_inputs


def adds_second(original: Callable[..., Any]) -> Callable[..., Any]:
    """`add_requests` of the second runner: the only time that it sees sampling parameters."""

    @wraps(original)
    def add_requests(self: Any, scheduler_output: Any) -> Any:
        served = served_by(self)
        if served is not None:
            # What ended first: a name may come back.
            served.forget(scheduler_output.finished_req_ids)
            for new in scheduler_output.scheduled_new_reqs:
                served.keep(new.req_id, new.sampling_params, new.prompt_len)
        return original(self, scheduler_output)

    return add_requests
