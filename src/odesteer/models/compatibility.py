"""Compatibility of a steering with a model.

    exact         model type, layers, width, name, revision and chat template
    architecture  model type, layers and width (the default where a steering is attached)
    width         the width alone

Only what a steering records of its model is compared: one made by hand is checked for its width
and its layer at every level.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from odesteer.common.catalogue import LEVELS
from odesteer.common.limits import brief
from odesteer.common.registry import lookup
from odesteer.models.layers import find_layers, hidden_size, text_config, unwrap
from odesteer.models.steers import Steers


class Difference(NamedTuple):
    """Difference between a model and the one that a steering was fitted on.

    Attributes:
        what: its name in words.
        steering: the value where it was fitted.
        model: the value here.
        accepted_by: the strictest level that accepts it; None where no level does.
    """

    what: str
    steering: Any
    model: Any
    accepted_by: str | None

    def __str__(self) -> str:
        return f"{self.what} {_shown(self.steering)} and not {_shown(self.model)}"


def model_name(model: nn.Module) -> str:
    """Return the name of the model."""
    name = getattr(getattr(unwrap(model), "config", None), "_name_or_path", None)
    name = name or type(model).__name__
    # The path of a local directory means nothing on another machine.
    return Path(name).name if Path(name).is_dir() else name


def describe_model(model: nn.Module, tokenizer: Any = None) -> dict[str, Any]:
    """Describe a model as a steering fitted on it records it (JSON values)."""
    config: Any = getattr(unwrap(model), "config", None)
    template = getattr(tokenizer, "chat_template", None)
    return {
        "name": model_name(model),
        "type": getattr(config, "model_type", None),
        # A multimodal model has another type than the language model inside it.
        "text_type": getattr(text_config(unwrap(model)), "model_type", None),
        "revision": getattr(config, "_commit_hash", None),
        "layers": len(find_layers(model)),
        "hidden_size": hidden_size(model),
        "chat_template": bool(template),
        "chat_template_sha256": _template_hash(template),
    }


def differences(steering: Steers, model: nn.Module, tokenizer: Any = None) -> list[Difference]:
    """List how `model` differs from the one a steering was fitted on, worst first.

    Args:
        steering: only what its `model` records is compared.
        model: the model to compare with.
        tokenizer: its tokenizer; without one the chat template is not compared.
    """
    here = describe_model(model, tokenizer)
    fitted = dict(steering.model)
    if steering.site == "residual" and steering.hidden_size is not None:
        fitted["hidden_size"] = steering.hidden_size
    result = []

    def compare(what: str, key: str, accepted_by: str | None) -> None:
        there = fitted.get(key)
        if there is not None and here[key] is not None and there != here[key]:
            result.append(Difference(what, there, here[key], accepted_by))

    compare("width", "hidden_size", None)
    layer, depth = steering.layer, here["layers"]
    if layer is not None and not -depth <= layer < depth:
        result.append(Difference("layer", layer, f"0 to {depth - 1}", None))
    compare("layers", "layers", "width")
    if fitted.get("text_type") is not None:
        compare("model type", "text_type", "width")
    elif fitted.get("type") != here["text_type"]:
        # Written before both were kept: it may be either.
        compare("model type", "type", "width")
    # A local copy goes by the last part of its name, and does not know its revision.
    there = fitted.get("name")
    if isinstance(there, str) and _last(there) != _last(here["name"]):
        result.append(Difference("model", there, here["name"], "architecture"))
    compare("revision", "revision", "architecture")
    if tokenizer is not None and "chat_template_sha256" in fitted:
        hashes = fitted["chat_template_sha256"], here["chat_template_sha256"]
        if hashes[0] != hashes[1]:
            result.append(Difference("chat template", *hashes, "architecture"))
    return result


def doubt(steering: Steers, model: nn.Module) -> str | None:
    """Return a doubt about a steering that does not forbid it, or None.

    A file of another library may spell the architecture differently (llama.cpp: qwen2moe;
    transformers: qwen2_moe), or name one with the same structure (a Mistral is a llama there).
    """
    there = steering.model.get("hint")
    here = getattr(text_config(unwrap(model)), "model_type", None)
    if not isinstance(there, str) or not isinstance(here, str) or _bare(there) == _bare(here):
        return None
    return (
        f"The file of this control vector says that it is for a '{brief(there, 80)}', and this "
        f"model is a '{here}': that may be the same by another name."
    )


def check(steering: Steers, model: nn.Module, level: str) -> None:
    """Refuse a model that differs from the one fitted on by more than a level accepts.

    Args:
        steering: only what its `model` records is compared.
        model: the model to steer.
        level: one of `LEVELS`.

    Raises:
        ValueError: for an unknown level, or naming the differences and the level that would
            accept them.
    """
    lookup(dict.fromkeys(LEVELS), level, "compatibility check")
    strictness = LEVELS.index(level)
    refused = [
        each
        for each in differences(steering, model)
        if each.accepted_by is None or LEVELS.index(each.accepted_by) > strictness
    ]
    if not refused:
        return
    needed = max(refused, key=lambda each: _rank(each.accepted_by)).accepted_by
    cure = (
        "fit one on this model"
        if needed is None
        else f"fit one on this model, or attach with check='{needed}', which accepts that"
    )
    raise ValueError(
        f"This steering was fitted on {_in_words(steering.model)}; this is "
        f"{_in_words(describe_model(model))}: {', '.join(map(str, refused))}; {cure}."
    )


def _in_words(facts: Mapping[str, Any]) -> str:
    """Return the name of a described model, its depth and its width, as far as known."""
    name = _shown(_last(str(facts.get("name") or "another model")))
    kind = facts.get("text_type") or facts.get("type")
    depth, width = facts.get("layers"), facts.get("hidden_size")
    size = "" if depth is None or width is None else f"{depth} blocks of width {width}"
    known = ", ".join(_shown(each) for each in (kind, size) if each)
    return f"{name} ({known})" if known else name


def _rank(level: str | None) -> int:
    return len(LEVELS) if level is None else LEVELS.index(level)


def _bare(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


def _shown(value: Any) -> str:
    text = "none" if value is None else brief(str(value), 80)
    # A hash is told apart by its beginning.
    return text[:12] if re.fullmatch("[0-9a-f]{40,64}", text) else text


def _template_hash(template: Any) -> str | None:
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
