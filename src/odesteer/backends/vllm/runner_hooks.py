"""Batches of vLLM model runners: which rows are steered, by what, and how far.

vLLM has two: the one in `vllm.v1.worker.gpu_model_runner` (also on CPUs), which keeps the whole
batch, and the one in `vllm.v1.worker.gpu.model_runner`, which hands the batch on. Both are read
after they have prepared their inputs; both count tokens as computed that are in the cache.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from odesteer.backends.vllm.batch import ScheduledRequest, StepBatch
from odesteer.backends.vllm.install import install
from odesteer.backends.vllm.registry import SteeringRegistry
from odesteer.backends.vllm.request import SteeringRequest, asks_of
from odesteer.backends.vllm.steered_layer import NOTHING, SteeredLayer


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
