"""vLLM plugin: functions wrapped at start-up.

vLLM calls `register` in every process: the server's front, the engine, each worker. It wraps the
few functions that have to know of steering; without steerings in the configuration each of them
does what it did. Nothing of vLLM is copied or replaced.
"""

import importlib
import logging
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from odesteer.backends.vllm import request_validation, runner_hooks
from odesteer.backends.vllm.registry import SteeringRegistry
from odesteer.backends.vllm.request import KEY, asks_of

# What was tested; others may work, and are refused where something is missing.
TESTED = "0.32"

_log = logging.getLogger("vllm.odesteer")
_DONE = "_odesteer_wrapped"

Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


def register() -> None:
    """The entry point `vllm.general_plugins`; calling it again does nothing."""
    from vllm.config import VllmConfig

    try:
        wrapped = _wrappers()
    except (ImportError, AttributeError) as error:
        import vllm

        reason = (
            f"odesteer cannot steer in vLLM {vllm.__version__}: {error}. It knows vLLM {TESTED}; "
            f"install that, or a newer odesteer."
        )
        _log.warning("%s Requests are served unsteered only.", reason)
        _wrap(VllmConfig, "__post_init__", lambda original: _refuses(original, reason))
        return
    for owner, name, wrapper in wrapped:
        _wrap(owner, name, wrapper)


def _wrappers() -> list[tuple[Any, str, Wrapper]]:
    """Whose functions are wrapped, and how; AttributeError where one is not there."""
    from vllm.exceptions import VLLMValidationError as error
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.worker_base import WorkerBase

    first = importlib.import_module("vllm.v1.worker.gpu_model_runner").GPUModelRunner
    protocols = "vllm.entrypoints.openai"
    chat = importlib.import_module(f"{protocols}.chat_completion.protocol").ChatCompletionRequest
    text = importlib.import_module(f"{protocols}.completion.protocol").CompletionRequest
    responses = importlib.import_module(f"{protocols}.responses.protocol").ResponsesRequest
    found: list[tuple[Any, str, Wrapper]] = [
        (InputProcessor, "__init__", request_validation.starts),
        (InputProcessor, "_validate_params", lambda f: request_validation.validates(f, error)),
        (AsyncLLM, "add_request", lambda f: request_validation.admits(f, error)),
        *[(each, "init_entrypoints_middleware", request_validation.layers) for each in _apps()],
        *[
            (each, "to_sampling_params", lambda f: request_validation.samples(f, error))
            for each in (chat, text, responses)
        ],
        *[
            (each, "to_beam_search_params", lambda f: request_validation.searches(f, error))
            for each in (chat, text)
        ],
        (EngineCore, "_initialize_kv_caches", _readies),
        (first, "load_model", runner_hooks.loads),
        (first, "_dummy_run", runner_hooks.runs_dummy),
        (first, "_update_states", runner_hooks.updates_first),
        (first, "_prepare_inputs", runner_hooks.prepares_first),
    ]
    for owner, name, _ in found:
        if not hasattr(owner, name):
            raise AttributeError(f"{owner.__name__} has no {name}")
    if not hasattr(kv_cache_utils, "generate_block_hash_extra_keys"):
        raise AttributeError("the prefix cache has no generate_block_hash_extra_keys")
    # The method that `collective_rpc` calls.
    WorkerBase.odesteer_stats = stats
    return [*found, *_on_this_platform()]


def _apps() -> list[Any]:
    """The modules by whose name for it the API server calls `init_entrypoints_middleware`."""
    register = importlib.import_module("vllm.entrypoints.serve.middleware.register")
    app = sys.modules.get("vllm.entrypoints.launchers.app")  # imported only where there is one
    return [register] if app is None else [register, app]


def _on_this_platform() -> list[tuple[Any, str, Wrapper]]:
    """The runners that only some machines can import."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        cpu = importlib.import_module("vllm.v1.worker.cpu_model_runner").CPUModelRunner
        platform = type(current_platform)
        return [
            (cpu, "load_model", runner_hooks.loads),
            (platform, "register_triton_kernel_overrides", _without_llvmlite),
        ]
    second = importlib.import_module("vllm.v1.worker.gpu.model_runner").GPUModelRunner
    return [
        (second, "load_model", runner_hooks.loads),
        (second, "_dummy_run", runner_hooks.runs_dummy),
        (second, "add_requests", runner_hooks.adds_second),
        (second, "prepare_inputs", runner_hooks.prepares_second),
    ]


def stats(worker: Any) -> list[dict[str, Any]]:
    """What a worker's places have done so far: (layer, site, steering, tokens, displacement)."""
    served = runner_hooks.served_by(worker.model_runner)
    return [] if served is None else served.stats()


def _wrap(owner: Any, name: str, wrapper: Wrapper) -> None:
    original = vars(owner).get(name)
    if original is None or getattr(getattr(original, "__func__", original), _DONE, False):
        return  # inherited, and wrapped where it is defined; or wrapped already
    plain = original.__func__ if isinstance(original, classmethod) else original
    wrapped = wrapper(plain)
    setattr(wrapped, _DONE, True)
    setattr(owner, name, classmethod(wrapped) if plain is not original else wrapped)


def _without_llvmlite(original: Callable[..., Any]) -> Callable[..., Any]:
    """`register_triton_kernel_overrides` of the CPU, after numba has been imported.

    It asks every object of every module for its attribute "kernel" (vLLM 0.32), and llvmlite's
    library, which numba loads, answers that it has any attribute there is: an AttributeError for
    whoever has fitted a steering and starts an engine in the same program.
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


def _readies(original: Callable[..., Any]) -> Callable[..., Any]:
    """`_initialize_kv_caches` of the engine: the workers have loaded, no request has come."""

    @wraps(original)
    def _initialize_kv_caches(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        catalogue = SteeringRegistry.of(vllm_config.additional_config)
        if catalogue is not None:
            _check_armed(self.model_executor, catalogue)
            _separate(catalogue)
        return original(self, vllm_config, *args, **kwargs)

    return _initialize_kv_caches


def _check_armed(executor: Any, catalogue: SteeringRegistry) -> None:
    """Refuse to serve where a steering is on no worker.

    Raises:
        RuntimeError: naming it.
    """
    armed = {
        (one["steering"], one["asked"], one["site"])
        for worker in executor.collective_rpc("odesteer_stats")
        for one in worker
    }
    for (layer, site), parts in catalogue.places.items():
        for name in parts:
            if (name, layer, site) not in armed:
                raise RuntimeError(
                    f"No worker steers by '{name}' at layer {layer}: is odesteer installed where "
                    f"the workers run, and left on by VLLM_PLUGINS?"
                )


def _separate(catalogue: SteeringRegistry) -> None:
    """Keep steered blocks of the prefix cache apart."""
    from vllm.v1.core import kv_cache_utils

    _wrap_in_module(kv_cache_utils, "generate_block_hash_extra_keys", catalogue)


def _wrap_in_module(module: Any, name: str, catalogue: SteeringRegistry) -> None:
    original = getattr(module, name)
    plain = getattr(original, "__wrapped__", original)  # of an earlier engine in this process
    setattr(module, name, hashes(plain, catalogue))


def _refuses(original: Callable[..., Any], reason: str) -> Callable[..., Any]:
    @wraps(original)
    def __post_init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        config = getattr(self, "additional_config", None)
        if isinstance(config, dict) and KEY in config:
            raise ValueError(reason)

    return __post_init__


def keys(request: Any, end: int, catalogue: SteeringRegistry) -> tuple[tuple[str, str], ...]:
    """What tells a request's block that ends before position `end` from an unsteered one."""
    return tuple(
        ("odesteer", catalogue.key(ask))
        for ask in asks_of(request.sampling_params)
        if end > ask.begins(request.num_prompt_tokens)
    )


def hashes(original: Callable[..., Any], catalogue: SteeringRegistry) -> Callable[..., Any]:
    """`generate_block_hash_extra_keys`, which tells steered blocks apart."""

    @wraps(original)
    def generate_block_hash_extra_keys(
        request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> Any:
        extra, next_mm = original(request, start_token_idx, end_token_idx, start_mm_idx)
        ours = keys(request, end_token_idx, catalogue)
        return (((*(extra or ()), *ours) or None) if ours else extra), next_mm

    return generate_block_hash_extra_keys
