"""Configuration of vLLM for steering from Python."""

import json
import os
from collections.abc import Mapping
from typing import Any

from odesteer.backends.vllm.registry import configuration
from odesteer.backends.vllm.request import KEY, parse

_PLUGIN = "odesteer"


def options(
    steerings: Mapping[str, str | os.PathLike[str]],
    compose: Mapping[str, str] | None = None,
    check: str = "architecture",
) -> dict[str, Any]:
    """Arguments for `vllm.LLM` or `vllm.EngineArgs`: `LLM(model, **options({...}))`.

    Args:
        steerings: directories written by `save_pretrained` (or Hub repositories), by the name that
            requests use.
        compose: expressions over those names, such as {"safe": "truthful & ~toxic"}.
        check: how much the model must be the one they were fitted on, see
            `odesteer.models.compatibility`.

    Raises:
        ValueError: for no steerings, one that cannot be read, or where VLLM_PLUGINS leaves
            odesteer out.
        FileNotFoundError: for a directory that is not there.
    """
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and _PLUGIN not in allowed.split(","):
        raise ValueError(
            f"VLLM_PLUGINS is '{allowed}', which leaves odesteer out: requests would not be "
            f"steered. Add '{_PLUGIN}' to it."
        )
    return {"additional_config": configuration(steerings, compose, check)}


def ask(
    name: str,
    *,
    strength: float | None = None,
    angle: float | None = None,
    target: float | None = None,
    start: str | int = "last_prompt",
) -> dict[str, str]:
    """The `extra_args` of `SamplingParams`, or `vllm_xargs` over HTTP, of a steered request.

    Args:
        name: of a steering that the engine has.
        strength: integration time; the steering's own dose by default.
        angle: path length relative to the activation's norm.
        target: stop each token where P(positive) reaches this; the rest is its budget.
        start: "all", "last_prompt", "generated", or the first position that is steered.

    Raises:
        ValueError: for what no server would take.
    """
    given = {"strength": strength, "angle": angle, "target": target}
    value = {"name": name, "start": start, **{k: v for k, v in given.items() if v is not None}}
    text = json.dumps(value)
    parse(text)
    return {KEY: text}
