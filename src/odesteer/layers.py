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


def _text_config_value(model: nn.Module, name: str) -> int | None:
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    value = getattr(config, name, None)
    return value if isinstance(value, int) else None
