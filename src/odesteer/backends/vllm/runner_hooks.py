"""Hooks of vLLM's two model runners, which say what the coming step is.

Version 1, in `vllm.v1.worker.gpu_model_runner` (also on CPUs), keeps the whole batch; version 2,
in `vllm.v1.worker.gpu.model_runner`, hands the batch on. Both are read after they have prepared
their inputs; both count tokens that are in the cache as computed.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from odesteer.backends.vllm.batch import ScheduledRequest, StepBatch
from odesteer.backends.vllm.install import install
from odesteer.backends.vllm.registry import SteeringRegistry
from odesteer.backends.vllm.request import SteeringRequest, requests_of
from odesteer.backends.vllm.steered_layer import EMPTY_BATCH, SteeredLayer


class RunnerSteering:
    """The steered layers of one runner, and the requests that it knows."""

    def __init__(self, layers: list[SteeredLayer], dense: bool = False):
        self.layers = layers
        self._positions = {
            name: part.positions for layer in layers for name, part in layer.parts.items()
        }
        self._dense = dense
        # By request id, for the second runner: what is asked for, and the prompt's length.
        self._requests: dict[str, tuple[tuple[SteeringRequest, ...], int]] = {}

    def begin(self, scheduled: list[ScheduledRequest]) -> None:
        """Set the batch of the coming step."""
        batch = StepBatch.of(scheduled, self._positions) if scheduled else EMPTY_BATCH
        for layer in self.layers:
            layer.dense = False
            layer.begin(batch)

    def begin_dummy(self) -> None:
        """Prepare a run without requests: a warm-up, of a graph that is captured next or not."""
        for layer in self.layers:
            layer.begin(EMPTY_BATCH)
            layer.dense = self._dense

    def remember(self, request_id: str, params: Any, prompt_length: int) -> None:
        """Keep what a new request asks for."""
        self._requests[request_id] = requests_of(params), prompt_length

    def remembered(self, request_id: str) -> tuple[tuple[SteeringRequest, ...], int]:
        """Return what a request asks for, and the length of its prompt."""
        return self._requests.get(request_id, ((), 0))

    def stats(self) -> list[dict[str, Any]]:
        """Return the totals of every layer and steering (JSON values)."""
        stats = []
        for layer in self.layers:
            for name, part in layer.parts.items():
                tokens, displacement = layer.totals[name].tolist()
                stats.append(
                    {
                        "steering": name,
                        "layer": layer.key // 2,
                        "configured_layer": part.layer,
                        "site": part.site,
                        "tokens": int(tokens),
                        "displacement": displacement,
                    }
                )
        return stats

    def forget(self, request_ids: Any) -> None:
        """Drop requests that have ended."""
        for request_id in request_ids:
            self._requests.pop(request_id, None)
        for layer in self.layers:
            layer.forget(request_ids)


def scheduled_v1(runner: Any) -> list[ScheduledRequest]:
    """Return the steered requests of the batch that a version-1 runner has prepared."""

    def lookup(request_id: str) -> tuple[tuple[SteeringRequest, ...], int]:
        state = runner.requests[request_id]
        return requests_of(state.sampling_params), int(state.num_prompt_tokens)

    batch = runner.input_batch
    starts, computed = runner.query_start_loc.np, batch.num_computed_tokens_cpu
    return _scheduled(batch.req_ids, starts, computed, lookup)


def scheduled_v2(batch: Any, steering: RunnerSteering) -> list[ScheduledRequest]:
    """Return the steered requests of the batch that a version-2 runner has prepared."""
    starts, computed = batch.query_start_loc_np, batch.num_computed_tokens_np
    return _scheduled(batch.req_ids, starts, computed, steering.remembered)


def _scheduled(
    request_ids: Sequence[str],
    starts: Sequence[int],
    computed: Sequence[int],
    lookup: Callable[[str], tuple[tuple[SteeringRequest, ...], int]],
) -> list[ScheduledRequest]:
    scheduled = []
    for i, request_id in enumerate(request_ids):
        steerings, prompt_length = lookup(request_id)
        if steerings:
            first, end = int(starts[i]), int(starts[i + 1])
            length, before = end - first, int(computed[i])
            scheduled.append(
                ScheduledRequest(request_id, steerings, first, length, before, prompt_length)
            )
    return scheduled


def steering_of_runner(runner: Any) -> RunnerSteering | None:
    """Return the steering on a runner's model; None if the server does not steer."""
    return getattr(runner, "_odesteer", None)


def wrap_load_model(original: Callable[..., Any]) -> Callable[..., Any]:
    """Install the steerings after `load_model`."""

    @wraps(original)
    def load_model(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        registry = SteeringRegistry.of(self.vllm_config.additional_config)
        if registry is not None:
            layers = install(self.get_model(), registry, self.vllm_config)
            self._odesteer = RunnerSteering(layers, any(layer.in_graphs for layer in layers))
        return result

    return load_model


def wrap_dummy_run(original: Callable[..., Any]) -> Callable[..., Any]:
    """Clear the batch of the last step before `_dummy_run`."""

    @wraps(original)
    def _dummy_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        steering = steering_of_runner(self)
        if steering is not None:
            steering.begin_dummy()
        return original(self, *args, **kwargs)

    return _dummy_run


def wrap_update_states(original: Callable[..., Any]) -> Callable[..., Any]:
    """Forget finished requests before `_update_states` of version 1."""

    @wraps(original)
    def _update_states(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        steering = steering_of_runner(self)
        if steering is not None:
            steering.forget(scheduler_output.finished_req_ids)
        return original(self, scheduler_output, *args, **kwargs)

    return _update_states


def wrap_prepare_inputs_v1(original: Callable[..., Any]) -> Callable[..., Any]:
    """Set the batch after `_prepare_inputs` of version 1."""

    @wraps(original)
    def _prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        steering = steering_of_runner(self)
        if steering is not None:
            steering.begin(scheduled_v1(self))
        return result

    return _prepare_inputs


def wrap_prepare_inputs_v2(original: Callable[..., Any]) -> Callable[..., Any]:
    """Set the batch after `prepare_inputs` of version 2."""

    @wraps(original)
    def prepare_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch = original(self, *args, **kwargs)
        steering = steering_of_runner(self)
        if steering is not None:
            steering.begin(scheduled_v2(batch, steering))
        return batch

    return prepare_inputs


def wrap_add_requests(original: Callable[..., Any]) -> Callable[..., Any]:
    """Remember new requests in `add_requests`: version 2 sees sampling parameters only there."""

    @wraps(original)
    def add_requests(self: Any, scheduler_output: Any) -> Any:
        steering = steering_of_runner(self)
        if steering is not None:
            # What ended first: an id may come back.
            steering.forget(scheduler_output.finished_req_ids)
            for new in scheduler_output.scheduled_new_reqs:
                steering.remember(new.req_id, new.sampling_params, new.prompt_len)
        return original(self, scheduler_output)

    return add_requests
