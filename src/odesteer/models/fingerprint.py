"""Fingerprint of a model: its weights and whatever changes its activations.

Two models with one fingerprint compute the same activations. A name or a revision does not
ensure that: a model may have been trained, merged or given an adapter since it was loaded.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# Hooks of these only move tensors between devices, or note what they see.
_HARMLESS = ("transformers", "accelerate")
# Says where a model lies and what read it, not what it computes.
_VOLATILE = ("_name_or_path", "transformers_version", "use_cache")
_WORDS = 512  # of 8 bytes, summed into one: the hash then reads a 512th of the model
_LINES = 2**14  # of 4 KiB at a time


def fingerprint(model: nn.Module) -> str:
    """Hash everything that decides what the model computes to 32 hexadecimal digits.

    The configuration, the modules and their settings, the state of adapters, and every
    parameter and buffer: a weighted sum of each 4 KiB of it as integers, exact and in one read
    of the memory, so that a single changed weight changes the result. Also the versions and the
    machine's kind, on which rounding depends.

    For models without an `obstacle`.
    """
    import transformers

    digest = hashlib.sha256()
    config: Any = getattr(model, "config", None)
    settings = config.to_dict() if hasattr(config, "to_dict") else {}
    machine = sorted({tensor.device.type for _, tensor in _state(model)})
    facts = {
        "config": {key: settings[key] for key in settings if key not in _VOLATILE},
        "attention": getattr(config, "_attn_implementation", None),
        "revision": getattr(config, "_commit_hash", None),
        "adapters": getattr(model, "peft_config", None),
        "versions": [torch.__version__, transformers.__version__],
        "machine": [*machine, torch.backends.cpu.get_cpu_capability()],
        "gpu": torch.cuda.get_device_name() if "cuda" in machine else None,
        "precision": torch.get_float32_matmul_precision(),
        "autocast": [kind for kind in machine if torch.is_autocast_enabled(kind)],
        "modules": [_facts(name, module) for name, module in model.named_modules()],
    }
    digest.update(json.dumps(facts, sort_keys=True, default=_plain).encode())
    for name, tensor in _state(model):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_content(tensor))
    return digest.hexdigest()[:32]


def obstacle(model: nn.Module) -> str | None:
    """Say why a model cannot be identified by its weights, or return None."""
    reason = hooked(model)
    if reason is not None:
        return reason
    for name, tensor in _state(model):
        if tensor.device.type == "meta":
            return f"{name} is not in memory (it is offloaded)"
        if type(tensor) not in (Tensor, nn.Parameter):
            return f"{name} is a {type(tensor).__name__}, whose bytes are not plain"
    return None


def hooked(model: nn.Module) -> str | None:
    """Name a hook or replaced forward that may change activations, such as a steering."""
    if nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks:
        return "a global forward hook is registered"
    for name, module in model.named_modules():
        where = name or type(model).__name__
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            home = getattr(hook, "__module__", None) or type(hook).__module__
            if home.split(".")[0] not in _HARMLESS:
                return f"{where} carries a forward hook (of {home})"
        if "forward" in vars(module) and not hasattr(module, "_hf_hook"):
            return f"the forward of {where} was replaced"
    return None


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers, also those that are not saved."""
    state = model.state_dict(keep_vars=True)
    rest = {name: buffer for name, buffer in model.named_buffers() if name not in state}
    for name, value in {**state, **rest}.items():
        if isinstance(value, Tensor):
            yield name, value


def _content(tensor: Tensor) -> bytes:
    """Sum up a tensor's bytes as integers, whose sum is exact in any order."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if data.data_ptr() % 8 or data.storage_offset() % 8:
        data = data.clone()
    whole = len(data) // (8 * _WORDS) * (8 * _WORDS)
    # Odd weights, so that words that change places change the sum, and none is lost.
    weights = torch.arange(1, 2 * _WORDS, 2, device=data.device)
    lines = data[:whole].view(torch.int64).view(-1, _WORDS)
    sums = [(part * weights).sum(dim=-1).cpu() for part in lines.split(_LINES)]
    return b"".join(part.numpy().tobytes() for part in (*sums, data[whole:].cpu()))


def _facts(name: str, module: nn.Module) -> list[Any]:
    """List a module's class, its settings and its active adapters."""
    kind = type(module)
    adapter = [
        getattr(module, key, None)
        for key in ("active_adapters", "disable_adapters", "merged_adapters", "scaling")
    ]
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    return [name, f"{kind.__module__}.{kind.__qualname__}", module.extra_repr(), adapter, compiled]


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return value.tolist() if isinstance(value, Tensor | np.generic) else str(value)
