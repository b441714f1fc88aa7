"""Decoder blocks of a model and the residual stream between them.

Blocks are found by structure, not by a list of names: a parent numbers them (in a list, or as h0,
h1, ...), they are alike and have children, they stand in the tower that reads tokens, and there
are as many as the configuration says. Where a model is ambiguous, `use_layers` decides.
"""

import copy
import inspect
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_NUMBERED = re.compile(r"(.*?)(\d+)")


def stacks(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Find lists of numbered modules (or h0, h1, ...) that have children, by path."""
    stacks_by_path: dict[str, list[nn.Module]] = {}
    inside: set[nn.Module] = set()  # of blocks: experts and heads are parts, not blocks
    for path, parent in model.named_modules():
        if parent in inside:
            continue
        for stem, modules in _numbered(parent):
            if all(any(True for _ in module.children()) for module in modules):
                stacks_by_path[".".join(part for part in (path, stem) if part)] = modules
                inside.update(part for module in modules for part in module.modules())
    return stacks_by_path


def listed(stacks: dict[str, list[nn.Module]]) -> str:
    """Format stacks for an error: path and number of blocks."""
    return ", ".join(f"'{path}' ({len(blocks)})" for path, blocks in stacks.items())


def _numbered(parent: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """Yield (name without its number, children in order) of alike, numbered children."""
    groups: dict[str, dict[int, nn.Module]] = {}
    for name, child in parent.named_children():
        if match := _NUMBERED.fullmatch(name):
            groups.setdefault(match[1], {})[int(match[2])] = child
    for stem, numbered in groups.items():
        children = [numbered[number] for number in sorted(numbered)]
        # A sequence of unlike steps (embed, blocks, head) is no stack.
        alike = len({type(child) for child in children}) < len(children)
        if alike or isinstance(parent, nn.ModuleList):
            yield stem, children


def in_text_tower(
    model: nn.Module, stacks: dict[str, list[nn.Module]]
) -> dict[str, list[nn.Module]]:
    """Select the stacks that read tokens: no vision or audio towers, no bridges."""
    modules = dict(model.named_modules())
    text_configs = {type(getattr(model, "config", None)), type(text_config(model))}

    def is_text(path: str, blocks: list[nn.Module]) -> bool:
        parts = path.split(".")
        owners = [modules.get(".".join(parts[:end])) for end in range(len(parts), -1, -1)]
        configs = [getattr(owner, "config", None) for owner in owners]
        config = next((each for each in configs if hasattr(each, "to_dict")), None)
        # Blocks that only let the stream look at a tower come beside the decoder's own.
        bridge = all("cross" in type(block).__name__.lower() for block in blocks)
        return not bridge and (config is None or type(config) in text_configs)

    return {path: blocks for path, blocks in stacks.items() if is_text(path, blocks)}


def modules_at(model: nn.Module, path: str) -> list[nn.Module]:
    """Return the modules in the list at a path, or named by the path and a number."""
    parent_path, _, stem = path.rpartition(".")
    try:
        module = model.get_submodule(path)
        if isinstance(module, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            return list(module.children())
        return next((modules for name, modules in _numbered(module)), [])
    except AttributeError:
        pass
    try:
        parent = model.get_submodule(parent_path)
    except AttributeError:
        return []
    return next((modules for name, modules in _numbered(parent) if name == stem), [])


def text_config(model: nn.Module) -> Any:
    """Return the configuration of a model's text decoder."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    return config


Blocks = Sequence[nn.Module]

# Weak: a choice must not keep its model alive.
_chosen: "weakref.WeakKeyDictionary[nn.Module, list[nn.Module]]" = weakref.WeakKeyDictionary()


def unwrap(model: nn.Module) -> nn.Module:
    """Return the transformers model inside PEFT, torch.compile or data parallelism."""
    while True:
        inner: Any = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            inner = model.module
        if inner is None and callable(getattr(model, "get_base_model", None)):
            base: Any = model
            inner = base.get_base_model()
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


class _Location(NamedTuple):
    """Where the blocks of a model were found; names alone, so that no module is kept alive.

    Attributes:
        parent: path of the module that numbers the blocks.
        names: of the blocks in it, first to last.
        siblings: how many children it has: of another number, the blocks are looked for again.
        decoder: path of what `find_decoder` returns, once it has been looked for.
    """

    parent: str
    names: tuple[str, ...]
    siblings: int
    decoder: str | None = None

    @classmethod
    def of(cls, model: nn.Module, blocks: Blocks) -> "_Location":
        """Locate blocks that have one parent."""
        first = next(path for path, module in model.named_modules() if module is blocks[0])
        parent = first.rpartition(".")[0]
        owner = model.get_submodule(parent)
        names = {id(child): name for name, child in owner.named_children()}
        return cls(parent, tuple(names[id(block)] for block in blocks), len(owner._modules))

    def blocks(self, model: nn.Module) -> Blocks | None:
        """Return the modules that are there now; None if the model is built otherwise by now."""
        try:
            children = model.get_submodule(self.parent)._modules
        except AttributeError:
            return None
        found = [children.get(name) for name in self.names]
        if len(children) != self.siblings or None in found:
            return None
        return [block for block in found if block is not None]


_known: "weakref.WeakKeyDictionary[nn.Module, _Location]" = weakref.WeakKeyDictionary()


def use_layers(model: nn.Module, layers: str | Sequence[nn.Module] | None) -> None:
    """Set the decoder blocks of this model for everything in odesteer.

    Args:
        model: the model; a wrapped one and the one inside share the choice.
        layers: the path of the modules ("transformer.h"), or the modules themselves, first to
            last. Each must return the residual stream [b, t, d]. None: found by structure again.

    Raises:
        ValueError: if the path leads to no modules that could be blocks, or a module given is
            not a part of the model.
    """
    inner = unwrap(model)
    if layers is None:
        _chosen.pop(inner, None)
        return
    if isinstance(layers, str):
        modules = modules_at(model, layers) or modules_at(inner, layers)
        if not modules:
            raise ValueError(
                f"'{layers}' is no list of modules of {type(inner).__name__}; it has "
                f"{listed(stacks(inner)) or 'none'}."
            )
    else:
        modules = list(layers)
        known = set(inner.modules())
        strangers = [type(m).__name__ for m in modules if m not in known]
        if strangers or not modules:
            raise ValueError(
                f"use_layers needs modules of this {type(inner).__name__}; "
                f"{f'{strangers[0]} is no part of it' if strangers else 'the list is empty'}."
            )
    _chosen[inner] = modules


def find_layers(model: nn.Module) -> Blocks:
    """Return the decoder blocks of a causal language model, first to last.

    Raises:
        ValueError: if there are none, if the model is an encoder-decoder, or if it has several
            stacks and does not say which it means.
    """
    inner = unwrap(model)
    name = type(inner).__name__
    if not isinstance(inner, nn.Module):
        raise ValueError(f"A model of transformers is steered; got {name}.")
    if inner in _chosen:
        return _chosen[inner]
    known = _known.get(inner)
    found = known and known.blocks(inner)
    if found:
        return found
    blocks = _search(inner, name)
    _known[inner] = _Location.of(inner, blocks)
    return blocks


def _search(inner: nn.Module, name: str) -> Blocks:
    """Return the blocks of an unwrapped model; see `find_layers`."""
    if _is_encoder_decoder(inner):
        raise ValueError(
            f"{name} is an encoder-decoder: odesteer steers decoder-only language models, whose "
            f"prompt and generation share one residual stream."
        )
    every_stack = stacks(inner)
    candidates = in_text_tower(inner, every_stack)
    depth = config_value(inner, "num_hidden_layers")
    candidates = {
        path: blocks for path, blocks in candidates.items() if len(blocks) == depth
    } or candidates
    if not candidates:
        there = (
            f"{listed(every_stack)} read no tokens" if every_stack else "nothing in it is numbered"
        )
        raise ValueError(
            f"{name} has no list of decoder blocks to steer ({there}): name them with "
            f"odesteer.use_layers(model, 'path.of.the.blocks')."
        )
    if len(candidates) > 1:
        raise ValueError(
            f"{name} has several stacks that could be its decoder blocks: {listed(candidates)}. "
            f"Name the modules that return its residual stream with "
            f"odesteer.use_layers(model, 'path')."
        )
    return next(iter(candidates.values()))


def find_decoder(model: nn.Module) -> nn.Module:
    """Return the innermost module with every block that takes the tokens: no head."""
    inner, blocks = unwrap(model), find_layers(model)
    known = None if inner in _chosen else _known.get(inner)
    if known is not None and known.decoder is not None:
        return inner.get_submodule(known.decoder)
    decoder = _search_decoder(inner, blocks)
    if known is not None:
        path = next(path for path, module in inner.named_modules() if module is decoder)
        _known[inner] = known._replace(decoder=path)
    return decoder


def _search_decoder(inner: nn.Module, blocks: Blocks) -> nn.Module:
    modules = dict(inner.named_modules())
    parts = next(name for name, module in modules.items() if module is blocks[0]).split(".")
    for end in range(len(parts) - 1, 0, -1):
        owner = modules[".".join(parts[:end])]
        arguments = inspect.signature(owner.forward).parameters.keys()
        if arguments & {"input_ids", "inputs_embeds"}:
            inside = set(owner.modules())
            if all(block in inside for block in blocks):
                return owner
    return inner


def block_output(
    output: Any, tokens: tuple[int, ...] | None = None, width: int | None = None
) -> Tensor:
    """Return the residual stream [b, t, d] in a decoder block's output.

    Args:
        output: a tensor, or a tuple, list or output class that holds the stream first.
        tokens: (b, t) of the forward pass, where it is known.
        width: of the stream, d, where it is known.

    Raises:
        ValueError: if it is no such stream: hyper-connections pass on several at once, reversible
            blocks return parts of one, some keep time first.
    """
    key = _stream_key(output)
    stream = output if key is None else output[key]
    if not isinstance(stream, Tensor):
        raise ValueError(
            f"A decoder block returned a {type(output).__name__} and no tensor that could be its "
            f"residual stream [b, t, d]; odesteer cannot steer this model there."
        )
    if stream.dim() != 3:
        raise ValueError(
            f"A decoder block returned {list(stream.shape)}, not one residual stream [b, t, d]: "
            f"odesteer cannot steer a model that passes on several streams or none."
        )
    expected = (*(tokens or stream.shape[:2]), width or stream.shape[2])
    if tuple(stream.shape) != expected:
        raise ValueError(
            f"A decoder block returned {list(stream.shape)} where one residual stream [b, t, d] "
            f"would be {list(expected)}: odesteer cannot tell which of it belongs to which token."
        )
    return stream


def replace_output(output: Any, stream: Tensor) -> Any:
    """Return a block's output with another stream where `block_output` reads it."""
    key = _stream_key(output)
    if key is None:
        return stream
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        changed[key] = stream
        return changed
    parts = [stream, *output[1:]]
    return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)


def input_device(model: nn.Module) -> torch.device:
    """Return the device for token ids: where the input embedding computes.

    Not where its weight lies: offloaded weights lie on "meta" until their module runs.
    """
    inner: Any = unwrap(model)
    try:
        reads: nn.Module = inner.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        reads = inner
    for module in (reads, inner):
        device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    weights = (*reads.parameters(), *inner.parameters())
    return weights[0].device if weights else torch.device("cpu")


def config_value(model: nn.Module, name: str) -> int | None:
    """Return an integer of the text decoder's configuration, or None."""
    value = getattr(text_config(unwrap(model)), name, None)
    return value if isinstance(value, int) else None


def hidden_size(model: nn.Module) -> int | None:
    """Return the width of the residual stream, if the configuration says it."""
    return config_value(model, "hidden_size")


def layer_index(model: nn.Module, layer: int) -> int:
    """Return the 0-based index of a block; negatives count from the end.

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
    """Return the projection of a block's attention that mixes the heads' outputs.

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
            # Not asked for a weight: quantised kinds keep theirs under other names.
            if isinstance(module, nn.Module) and _width_in(module) is not None:
                return module
    raise ValueError(
        f"{type(block).__name__} has no attention whose heads can be steered; steer the residual "
        f"stream instead."
    )


def input_width(module: nn.Module) -> int:
    """Return the input width of a linear projection, quantised or transposed as well.

    Raises:
        ValueError: if it does not say.
    """
    width = _width_in(module)
    if width is None:
        raise ValueError(f"{type(module).__name__} does not say how wide its input is.")
    return width


def _width_in(module: nn.Module) -> int | None:
    # "input_size" is how the parallel layers of vLLM call it.
    features: Any = getattr(module, "in_features", getattr(module, "input_size", None))
    if features is None:
        weight: Any = getattr(module, "weight", None)
        # GPT-2's Conv1D keeps its weight as [in, out].
        features = weight.shape[0] if isinstance(weight, Tensor) and weight.dim() == 2 else None
    return None if features is None else int(features)


def head_width(model: nn.Module) -> int:
    """Return the width of one attention head, as the configuration says it.

    Raises:
        ValueError: if it does not say.
    """
    head_dim = config_value(model, "head_dim")
    width, heads = hidden_size(model), config_value(model, "num_attention_heads")
    if head_dim is not None:
        return head_dim
    if width is None or not heads:
        raise ValueError(f"{type(model).__name__} does not say how wide its attention heads are.")
    return width // heads


# ---- inside


def _stream_key(output: Any) -> int | str | None:
    """Return the key of the stream in a block's output; None for a bare tensor."""
    if isinstance(output, Mapping):
        return next(
            (name for name in ("last_hidden_state", "hidden_states") if name in output), None
        )
    if not isinstance(output, tuple | list) or not output:
        return None
    first, *rest = output
    # A reversible block names the halves of its stream.
    halves = hasattr(output, "_fields") and any(
        isinstance(each, Tensor) and each.shape == first.shape for each in rest
    )
    return None if halves else 0


def _is_encoder_decoder(model: nn.Module) -> bool:
    configs = (getattr(model, "config", None), text_config(model))
    return any(getattr(config, "is_encoder_decoder", False) is True for config in configs)
