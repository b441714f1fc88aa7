"""Which modules of a model are its decoder blocks?

Found by structure, not by a list of names: the blocks are a `ModuleList` of the text
model, as long as the configuration says, and hold most of its parameters.
"""

from typing import Any

from torch import nn


def find_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a causal language model, first to last.

    Raises:
        ValueError: if no list of blocks is found.
    """
    lists = {name: m for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and m}
    # A list inside another list's items (experts, heads) is a part of a block, not the blocks.
    outer = {
        name: blocks
        for name, blocks in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists)
    }
    depth = _text_config_value(model, "num_hidden_layers")
    fitting = {name: blocks for name, blocks in outer.items() if len(blocks) == depth}
    candidates = fitting or outer
    if not candidates:
        raise ValueError(
            f"{type(model).__name__} has no list of decoder blocks to steer: odesteer needs a "
            f"decoder-only language model."
        )
    return max(candidates.values(), key=lambda m: sum(p.numel() for p in m.parameters()))


def hidden_size(model: nn.Module) -> int | None:
    """The width of the residual stream, if the configuration says it."""
    return _text_config_value(model, "hidden_size")


def layer_index(model: nn.Module, layer: int) -> int:
    """0-based index of a block; negatives count from the end.

    Raises:
        ValueError: if the model has no such block.
    """
    depth = len(find_layers(model))
    if not -depth <= layer < depth:
        raise ValueError(
            f"Layer {layer} is out of range: this model has {depth} decoder blocks, 0 to "
            f"{depth - 1} (or -{depth} to -1 from the end)."
        )
    return layer % depth


def attention_output(block: nn.Module) -> nn.Module:
    """The projection of a block's attention that mixes the heads' outputs.

    Its input is the heads' outputs side by side, [..., heads * head width].

    Raises:
        ValueError: if the block has no attention, or none with such a projection.
    """
    for attention in block.modules():
        if "attention" not in type(attention).__name__.lower():
            continue
        # Named by what it is in every family: the output projection.
        for candidate in ("o_proj", "out_proj", "wo", "dense", "c_proj", "proj"):
            module = getattr(attention, candidate, None)
            if isinstance(module, nn.Module) and getattr(module, "weight", None) is not None:
                return module
    raise ValueError(
        f"{type(block).__name__} has no attention whose heads can be steered; steer the residual "
        f"stream instead."
    )


def input_width(module: nn.Module) -> int:
    """The width of what a linear projection reads (also GPT-2's transposed kind)."""
    features: int | None = getattr(module, "in_features", None)
    weight: Any = module.weight
    return int(weight.shape[0]) if features is None else features


def head_width(model: nn.Module) -> int:
    """The width of one attention head, as the configuration says it.

    Raises:
        ValueError: if it does not say.
    """
    given = _text_config_value(model, "head_dim")
    width, heads = hidden_size(model), _text_config_value(model, "num_attention_heads")
    if given is not None:
        return given
    if width is None or not heads:
        raise ValueError(f"{type(model).__name__} does not say how wide its attention heads are.")
    return width // heads


def _text_config_value(model: nn.Module, name: str) -> int | None:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    value = getattr(config, name, None)
    return value if isinstance(value, int) else None
