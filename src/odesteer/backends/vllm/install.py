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

# Who steers in this process; a second model would be steered by the first one's numbers.
_served: "weakref.ref[nn.Module] | None" = None


def install(model: nn.Module, catalogue: SteeringRegistry, config: Any) -> list[SteeredLayer]:
    """Put the steerings of a catalogue on the blocks that this process has.

    Args:
        model: as vLLM loaded it, before it is run or compiled.
        catalogue: what the server has.
        config: the engine's `VllmConfig`.

    Raises:
        ValueError: if a steering does not fit the model, or cannot be served as the engine is
            configured; says which and what to do.
    """
    global _served
    gc.collect()
    if _served is not None and _served() is not None and _served() is not model:
        raise ValueError(
            "This process steers another model already: one steered engine a process. Leave "
            "VLLM_ENABLE_V1_MULTIPROCESSING on, or delete the other engine first."
        )
    refuse(catalogue, config)
    blocks = find_layers(model)
    device = next(model.parameters()).device
    graphs = _graph_rows(config)
    STEERED_LAYERS.clear()
    places = []
    for (layer, site), parts in catalogue.places.items():
        for name, part in parts.items():
            _check_fits(name, part, model, catalogue.check)
        index = layer_index(model, layer)
        block = blocks[index]
        if type(block).__name__ == "PPMissingLayer":
            continue  # another stage of the pipeline has it
        key = 2 * index + (site == "heads")
        if key in STEERED_LAYERS:
            raise ValueError(f"Layer {index} is named in two ways (negative and positive).")
        place = SteeredLayer(key, parts, graphs, device)
        for part in parts.values():
            # Onto the device now: a graph that is being captured must not copy.
            width = part.hidden_size or config.model_config.get_hidden_size()
            part(torch.zeros(1, width, device=device, dtype=config.model_config.dtype))
        STEERED_LAYERS[key] = place
        if site == "heads":
            _on_input(attention_output(block), place)
        else:
            _on_output(block, place)
        places.append(place)
    _served = weakref.ref(model)
    return places


def refuse(catalogue: SteeringRegistry, config: Any) -> None:
    """What cannot be steered rightly is not served at all.

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
    for (_, site), parts in catalogue.places.items():
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
        compatibility.check(compatibility.differences(part, model), check)
    except ValueError as error:
        raise ValueError(f"The steering '{name}' does not fit: {error}") from None


def _graph_rows(config: Any) -> int:
    """The most rows of a CUDA graph; 0 where none is captured."""
    mode = getattr(config.compilation_config, "cudagraph_mode", None)
    if not torch.cuda.is_available() or config.model_config.enforce_eager or not mode:
        return 0
    return int(config.scheduler_config.max_num_batched_tokens)


def _on_output(block: Any, place: SteeredLayer) -> None:
    original = block.forward
    key, name = place.key, type(block).__name__

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        hidden, residual = _summands(output, name)
        if torch.compiler.is_compiling() or not place.idle:
            if residual is None:
                steer_one(hidden, key)
            else:
                steer(hidden, residual, key)
        return output

    block.forward = forward


def _summands(output: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """What a decoder layer returns: the stream, or two summands of it.

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


def _on_input(module: Any, place: SteeredLayer) -> None:
    original = module.forward
    key = place.key

    def forward(heads: Tensor, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not place.idle:
            # What reads it may not be the projection alone.
            heads = heads.clone()
            steer_one(heads, key)
        return original(heads, *args, **kwargs)

    module.forward = forward
