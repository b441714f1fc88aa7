"""Installation of steering on a model that vLLM has loaded.

The forward of each steered block calls an operator of ours on what it returns. A forward hook
would be ignored in compiled graphs, without a word; an operator is part of the graph.
"""

import gc
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from odesteer.backends.vllm.registry import SteeringRegistry
from odesteer.backends.vllm.steered_layer import STEERED_LAYERS, SteeredLayer, steer, steer_one
from odesteer.models import compatibility
from odesteer.models.layers import attention_output, find_layers, layer_index
from odesteer.steering import LayerSteering

# The steered model of this process: a second one would be steered by the layers of the first.
_model: "weakref.ref[nn.Module] | None" = None


def install(model: nn.Module, registry: SteeringRegistry, config: Any) -> list[SteeredLayer]:
    """Put the steerings of a registry on the blocks of this process.

    Args:
        model: as vLLM loaded it, before it is run or compiled.
        registry: the steerings of the server.
        config: the engine's `VllmConfig`.

    Raises:
        ValueError: if a steering does not fit the model, or cannot be served as the engine is
            configured; says which and what to do.
    """
    global _model
    gc.collect()
    if _model is not None and _model() is not None and _model() is not model:
        raise ValueError(
            "This process steers another model already: one steered engine a process. Leave "
            "VLLM_ENABLE_V1_MULTIPROCESSING on, or delete the other engine first."
        )
    refuse(registry, config)
    blocks = find_layers(model)
    device = next(model.parameters()).device
    graphs = _graph_rows(config)
    STEERED_LAYERS.clear()
    layers = []
    for (layer, site), parts in registry.parts.items():
        for name, part in parts.items():
            _check_fits(name, part, model, registry.check)
        index = layer_index(model, layer)
        block = blocks[index]
        if type(block).__name__ == "PPMissingLayer":
            continue  # another stage of the pipeline has it
        key = 2 * index + (site == "heads")
        if key in STEERED_LAYERS:
            raise ValueError(f"Layer {index} is named in two ways (negative and positive).")
        steered = SteeredLayer(key, parts, graphs, device)
        for part in parts.values():
            # Onto the device now: a graph that is being captured must not copy.
            width = part.hidden_size or config.model_config.get_hidden_size()
            part(torch.zeros(1, width, device=device, dtype=config.model_config.dtype))
        STEERED_LAYERS[key] = steered
        if site == "heads":
            _wrap_input(attention_output(block), steered)
        else:
            _wrap_output(block, steered)
        layers.append(steered)
    _model = weakref.ref(model)
    return layers


def refuse(registry: SteeringRegistry, config: Any) -> None:
    """Refuse configurations in which a steering would not act as it should.

    Raises:
        ValueError: naming the setting that is in the way.
    """
    parallel = config.parallel_config
    passes = getattr(config.compilation_config, "pass_config", None)
    if getattr(parallel, "enable_dbo", False) or getattr(parallel, "use_ubatching", False):
        raise ValueError("Steering does not know dual-batch overlap: serve without --enable-dbo.")
    if getattr(passes, "enable_sp", False):
        raise ValueError(
            "Steering needs whole activations, and the sequence-parallel pass splits them: serve "
            "without enable_sp."
        )
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        raise ValueError("Steering does not know prefill context parallelism: leave it at 1.")
    split = parallel.tensor_parallel_size > 1
    for (_, site), parts in registry.parts.items():
        for name, part in parts.items():
            if site == "heads" and split:
                raise ValueError(
                    f"'{name}' steers attention heads, which tensor parallelism spreads over "
                    f"devices: serve with tensor-parallel-size 1."
                )
            if part.field.prompt_conditioned and config.kv_transfer_config is not None:
                raise ValueError(
                    f"'{name}' reads the prompt's last token, which another engine may have read "
                    f"where keys and values are transferred: serve without a KV connector."
                )
            if part.data_dependent and _graph_rows(config):
                raise ValueError(
                    f"'{name}' decides while it runs (method {part.method}, solver {part.solver}), "
                    f"which a CUDA graph cannot: serve with --enforce-eager."
                )


def _check_fits(name: str, part: LayerSteering, model: nn.Module, check: str) -> None:
    try:
        compatibility.check(part, model, check)
    except ValueError as error:
        raise ValueError(f"The steering '{name}' does not fit: {error}") from None


def _graph_rows(config: Any) -> int:
    """Return the most rows of a CUDA graph; 0 if none is captured."""
    mode = getattr(config.compilation_config, "cudagraph_mode", None)
    if not torch.cuda.is_available() or config.model_config.enforce_eager or not mode:
        return 0
    return int(config.scheduler_config.max_num_batched_tokens)


def _wrap_output(block: Any, layer: SteeredLayer) -> None:
    original = block.forward
    key, name = layer.key, type(block).__name__

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        hidden, residual = _summands(output, name)
        if torch.compiler.is_compiling() or not layer.idle:
            if residual is None:
                steer_one(hidden, key)
            else:
                steer(hidden, residual, key)
        return output

    block.forward = forward


def _summands(output: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Split the output of a decoder layer: the stream, or two summands of it.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(output, Tensor):
        return output, None
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Tensor):
        return output
    raise ValueError(
        f"{name} returns neither the residual stream nor its two summands: odesteer cannot steer "
        f"this architecture in vLLM."
    )


def _wrap_input(module: Any, layer: SteeredLayer) -> None:
    original = module.forward
    key = layer.key

    def forward(heads: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not layer.idle:
            # Others than the projection may read the same tensor.
            heads = heads.clone()
            steer_one(heads, key)
        return original(heads, *args, **kwargs)

    module.forward = forward
