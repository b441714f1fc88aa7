"""vLLM plugin: functions wrapped at start-up.

vLLM calls `register` in every process: the API server, the engine, each worker. It wraps the few
functions that have to know of steering; without steerings in the configuration each of them does
what it did. Nothing of vLLM is copied or replaced.
"""

import importlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from odesteer.backends.vllm import request_validation as validation
from odesteer.backends.vllm import runner_hooks
from odesteer.backends.vllm.registry import SteeringRegistry
from odesteer.backends.vllm.request import KEY, requests_of

# Other versions may work, and are refused where something is missing.
TESTED = "0.32"

_log = logging.getLogger("vllm.odesteer")
_DONE = "_odesteer_wrapped"
# Seconds that a server which was told to end waits for its connections.
LONGEST_END = 5

Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


def register() -> None:
    """Wrap vLLM's functions: the entry point `vllm.general_plugins`; idempotent."""
    from vllm.config import VllmConfig

    try:
        wrappers = _wrappers()
    except (ImportError, AttributeError) as error:
        import vllm

        reason = (
            f"odesteer cannot steer in vLLM {vllm.__version__}: {error}. It knows vLLM {TESTED}; "
            f"install that, or a newer odesteer."
        )
        _log.warning("%s Requests are served unsteered only.", reason)
        _wrap(VllmConfig, "__post_init__", lambda original: _wrap_to_refuse(original, reason))
        return
    for owner, name, wrapper in wrappers:
        _wrap(owner, name, wrapper)


def _wrap_client_init(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        # vLLM raises KeyboardInterrupt, which does not end the wait for its engine: the server
        # would end only once its model is loaded.
        main = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGTERM, signal.SIGINT) if main else ()
        before = {each: signal.getsignal(each) for each in signals}
        # A background job of a shell ignores SIGINT.
        replaced = [each for each, handler in before.items() if callable(handler)]
        for each in replaced:
            signal.signal(each, _end)
        try:
            original(self, *args, **kwargs)
        finally:
            for each in replaced:
                signal.signal(each, before[each])

    return init


def _wrap_server_init(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def init(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        # vLLM ends its engine first, and then waits for streams that nobody writes any more.
        config.timeout_graceful_shutdown = config.timeout_graceful_shutdown or LONGEST_END
        original(self, config, *args, **kwargs)

    return init


def _end(number: int, _frame: Any) -> None:
    """End this process, which serves nobody yet, and the engines that it is starting."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(128 + number)


def _wrappers() -> list[tuple[Any, str, Wrapper]]:
    """Owner, name and wrapper of each function; AttributeError for one that is missing."""
    from vllm.exceptions import VLLMValidationError as error
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.core_client import AsyncMPClient
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.worker_base import WorkerBase

    runner_v1 = importlib.import_module("vllm.v1.worker.gpu_model_runner").GPUModelRunner
    launcher = importlib.import_module("vllm.entrypoints.launchers.launcher")
    protocols = "vllm.entrypoints.openai"
    chat = importlib.import_module(f"{protocols}.chat_completion.protocol").ChatCompletionRequest
    text = importlib.import_module(f"{protocols}.completion.protocol").CompletionRequest
    responses = importlib.import_module(f"{protocols}.responses.protocol").ResponsesRequest
    by_name = partial(validation.wrap_to_sampling_params, error=error)
    refuse_beams = partial(validation.wrap_to_beam_search_params, error=error)
    wrappers: list[tuple[Any, str, Wrapper]] = [
        (InputProcessor, "__init__", validation.wrap_input_processor_init),
        (InputProcessor, "_validate_params", partial(validation.wrap_validate_params, error=error)),
        (AsyncLLM, "add_request", partial(validation.wrap_add_request, error=error)),
        *((app, "init_entrypoints_middleware", validation.wrap_init_middleware) for app in _apps()),
        *((request, "to_sampling_params", by_name) for request in (chat, text, responses)),
        *((request, "to_beam_search_params", refuse_beams) for request in (chat, text)),
        (AsyncMPClient, "__init__", _wrap_client_init),
        (launcher.NoSignalServer, "__init__", _wrap_server_init),
        (EngineCore, "_initialize_kv_caches", _wrap_initialize_kv_caches),
        (runner_v1, "load_model", runner_hooks.wrap_load_model),
        (runner_v1, "_dummy_run", runner_hooks.wrap_dummy_run),
        (runner_v1, "_update_states", runner_hooks.wrap_update_states),
        (runner_v1, "_prepare_inputs", runner_hooks.wrap_prepare_inputs_v1),
    ]
    for owner, name, _ in wrappers:
        if not hasattr(owner, name):
            raise AttributeError(f"{owner.__name__} has no {name}")
    if not hasattr(kv_cache_utils, "generate_block_hash_extra_keys"):
        raise AttributeError("the prefix cache has no generate_block_hash_extra_keys")
    # The method that `collective_rpc` calls.
    WorkerBase.odesteer_stats = stats
    return [*wrappers, *_platform_wrappers()]


def _apps() -> list[Any]:
    """Return the modules through which the API server calls `init_entrypoints_middleware`."""
    register = importlib.import_module("vllm.entrypoints.serve.middleware.register")
    app = sys.modules.get("vllm.entrypoints.launchers.app")  # imported only where there is one
    return [register] if app is None else [register, app]


def _platform_wrappers() -> list[tuple[Any, str, Wrapper]]:
    """Wrappers of runners that only some machines can import."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        cpu = importlib.import_module("vllm.v1.worker.cpu_model_runner").CPUModelRunner
        platform = type(current_platform)
        return [
            (cpu, "load_model", runner_hooks.wrap_load_model),
            (platform, "register_triton_kernel_overrides", _wrap_triton_overrides),
        ]
    runner_v2 = importlib.import_module("vllm.v1.worker.gpu.model_runner").GPUModelRunner
    return [
        (runner_v2, "load_model", runner_hooks.wrap_load_model),
        (runner_v2, "_dummy_run", runner_hooks.wrap_dummy_run),
        (runner_v2, "add_requests", runner_hooks.wrap_add_requests),
        (runner_v2, "prepare_inputs", runner_hooks.wrap_prepare_inputs_v2),
    ]


def stats(worker: Any) -> list[dict[str, Any]]:
    """Return what a worker has steered so far, see `RunnerSteering.stats`."""
    steering = runner_hooks.steering_of_runner(worker.model_runner)
    return [] if steering is None else steering.stats()


def _wrap(owner: Any, name: str, wrapper: Wrapper) -> None:
    original = vars(owner).get(name)
    if original is None or getattr(getattr(original, "__func__", original), _DONE, False):
        return  # inherited, and wrapped where it is defined; or wrapped already
    plain = original.__func__ if isinstance(original, classmethod) else original
    wrapped = wrapper(plain)
    setattr(wrapped, _DONE, True)
    setattr(owner, name, classmethod(wrapped) if plain is not original else wrapped)


def _wrap_triton_overrides(original: Callable[..., Any]) -> Callable[..., Any]:
    """`register_triton_kernel_overrides` of the CPU, after numba has been imported.

    It reads the attribute "kernel" of every object of every module (vLLM 0.32), and llvmlite's
    library, which numba loads, claims to have any attribute: an AttributeError in a program that
    fits a steering and then starts an engine.
    """

    @wraps(original)
    def register_triton_kernel_overrides(cls: Any) -> None:
        name = "llvmlite.binding.ffi"
        hidden = sys.modules.pop(name, None)
        try:
            original(cls)
        finally:
            if hidden is not None:
                sys.modules[name] = hidden

    return register_triton_kernel_overrides


def _wrap_initialize_kv_caches(original: Callable[..., Any]) -> Callable[..., Any]:
    """Check the workers before `_initialize_kv_caches`: they have loaded, no request has come."""

    @wraps(original)
    def _initialize_kv_caches(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        registry = SteeringRegistry.of(vllm_config.additional_config)
        if registry is not None:
            _check_installed(self.model_executor, registry)
            _separate_steered_blocks(registry)
        return original(self, vllm_config, *args, **kwargs)

    return _initialize_kv_caches


def _check_installed(executor: Any, registry: SteeringRegistry) -> None:
    """Refuse to serve if a steering is on no worker.

    Raises:
        RuntimeError: naming it.
    """
    installed = {
        (stats["steering"], stats["configured_layer"], stats["site"])
        for worker in executor.collective_rpc("odesteer_stats")
        for stats in worker
    }
    for (layer, site), parts in registry.parts.items():
        for name in parts:
            if (name, layer, site) not in installed:
                raise RuntimeError(
                    f"No worker steers by '{name}' at layer {layer}: is odesteer installed where "
                    f"the workers run, and left on by VLLM_PLUGINS?"
                )


def _separate_steered_blocks(registry: SteeringRegistry) -> None:
    """Keep steered blocks of the prefix cache apart."""
    from vllm.v1.core import kv_cache_utils

    original = kv_cache_utils.generate_block_hash_extra_keys
    plain = getattr(original, "__wrapped__", original)  # of an earlier engine in this process
    kv_cache_utils.generate_block_hash_extra_keys = wrap_block_hash(plain, registry)


def _wrap_to_refuse(original: Callable[..., Any], reason: str) -> Callable[..., Any]:
    @wraps(original)
    def __post_init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        config = getattr(self, "additional_config", None)
        if isinstance(config, dict) and KEY in config:
            raise ValueError(reason)

    return __post_init__


def block_keys(request: Any, end: int, registry: SteeringRegistry) -> tuple[tuple[str, str], ...]:
    """Return the keys of a request's block of the prefix cache that ends before position `end`.

    Keys and values above a steered layer differ from the first block that holds a steered token
    on. So what is asked for, and the positions up to `end` that it means, join the hash of exactly
    the blocks from there on: one rule means other positions after a longer prompt, and unsteered
    beginnings stay shared by all requests.
    """
    keys = []
    for steering in requests_of(request.sampling_params):
        spans = [
            (start, None if stop is None or stop >= end else stop)
            for start, stop in steering.spans(
                request.num_prompt_tokens, registry.steerings[steering.name].positions
            )
            if start < end
        ]
        if spans:
            keys.append(("odesteer", registry.cache_key(steering, spans)))
    return tuple(keys)


def wrap_block_hash(original: Callable[..., Any], registry: SteeringRegistry) -> Callable[..., Any]:
    """Add `block_keys` to `generate_block_hash_extra_keys`."""

    @wraps(original)
    def generate_block_hash_extra_keys(
        request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> Any:
        extra, next_mm = original(request, start_token_idx, end_token_idx, start_mm_idx)
        ours = block_keys(request, end_token_idx, registry)
        return (((*(extra or ()), *ours) or None) if ours else extra), next_mm

    return generate_block_hash_extra_keys
