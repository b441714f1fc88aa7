"""Structural search for the stack of decoder blocks.

By structure, whatever the names: a parent numbers its blocks (in a list, or as h0, h1, ...),
they are alike and made of parts, and the tower they stand in is configured as the one that
reads tokens.
"""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

_NUMBERED = re.compile(r"(.*?)(\d+)")


def stacks(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Modules that a parent numbers (in a list, or h0, h1, ...) and that have parts, by path."""
    found: dict[str, list[nn.Module]] = {}
    inside: set[nn.Module] = set()  # of blocks: experts and heads are parts, not blocks
    for path, parent in model.named_modules():
        if parent in inside:
            continue
        for stem, modules in _numbered(parent):
            if all(any(True for _ in module.children()) for module in modules):
                found[".".join(part for part in (path, stem) if part)] = modules
                inside.update(part for module in modules for part in module.modules())
    return found


def listed(stacks: dict[str, list[nn.Module]]) -> str:
    """The stacks as an error says them: path and number of blocks."""
    return ", ".join(f"'{path}' ({len(blocks)})" for path, blocks in stacks.items())


def _numbered(parent: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """(name without its number, children in order) of children that are alike and numbered."""
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
    """The stacks that read tokens: not those of vision or audio towers, not their bridges."""
    modules = dict(model.named_modules())
    own = {type(getattr(model, "config", None)), type(text_config(model))}

    def is_text(path: str, blocks: list[nn.Module]) -> bool:
        parts = path.split(".")
        owners = [modules.get(".".join(parts[:end])) for end in range(len(parts), -1, -1)]
        configs = [getattr(owner, "config", None) for owner in owners]
        config = next((one for one in configs if hasattr(one, "to_dict")), None)
        # Blocks that only let the stream look at a tower come beside the decoder's own.
        bridge = all("cross" in type(block).__name__.lower() for block in blocks)
        return not bridge and (config is None or type(config) in own)

    return {path: blocks for path, blocks in stacks.items() if is_text(path, blocks)}


def modules_at(model: nn.Module, path: str) -> list[nn.Module]:
    """The modules in the list at a path, or those whose names are the path and a number."""
    parent_path, _, stem = path.rpartition(".")
    try:
        found = model.get_submodule(path)
        if isinstance(found, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            return list(found.children())
        return next((modules for name, modules in _numbered(found)), [])
    except AttributeError:
        pass
    try:
        parent = model.get_submodule(parent_path)
    except AttributeError:
        return []
    return next((modules for name, modules in _numbered(parent) if name == stem), [])


def text_config(model: nn.Module) -> Any:
    """The part of a model's configuration that its text decoder is made from."""
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    return config
