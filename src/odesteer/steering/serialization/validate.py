"""Validation of a deserialized steering: attribute types, then a trial run.

Every attribute must be of its type, and a few activations must go to finite places: parts whose
sizes disagree, or numbers that overflow, do not get past that. The same is asked before a
steering is written, so that whatever was written can be read.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from odesteer.steering.layer_steering import LayerSteering

    pass

# Attributes that are JSON values as they are, and of which type.
_PLAIN: dict[str, tuple[type, ...]] = {
    "solver": (str,),
    "steps": (int,),
    "layer": (int, type(None)),
    "method": (str,),
    "hyperparameters": (dict,),
    "receipts": (dict,),
    "model": (dict,),
    "site": (str,),
}
# More would keep whoever loads the steering waiting for every token.
MAX_STEPS = 1000
# Of the trial: enough to see a flow diverge that does so early.
_TRIAL_STEPS = 50
# What can go wrong in the arithmetic of parts that do not belong together.
MISFITS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def plain_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a steering that are kept as they are.

    Raises:
        ValueError: for a value of another type, or more than `MAX_STEPS` steps.
        KeyError: for one that is missing.
    """
    # Files from before there were other sites do not name it.
    values = {key: config[key] for key in _PLAIN if key != "site"}
    values["site"] = config.get("site", "residual")
    for key, kinds in _PLAIN.items():
        value = values[key]
        if type(value) not in kinds or (isinstance(value, str) and len(value) > 1000):
            raise ValueError(f"its {key} cannot be {value!r:.80}")
    if values["steps"] > MAX_STEPS:
        raise ValueError(f"steps may be at most {MAX_STEPS}; got {values['steps']}")
    return values


def calibration_of(values: Any) -> dict[str, float]:
    """Scale and offset; ValueError unless they are numbers and scale > 0."""
    if not isinstance(values, dict) or set(values) != {"scale", "offset"}:
        raise ValueError(f"its calibration is scale and offset; got {values!r:.80}")
    if any(type(each) not in (int, float) for each in values.values()) or not values["scale"] > 0:
        raise ValueError(f"its calibration needs a scale > 0 and an offset; got {values!r:.80}")
    return values


def try_out(steering: "LayerSteering") -> None:
    """ValueError unless activations 0, 1, a drawn one and a large one go to finite places."""
    shape = (4, steering.hidden_size or 1)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(shape, generator=generator, dtype=torch.float32)
    rows[0], rows[1] = 0.0, 1.0
    # The largest coordinates of language models are some thousands.
    rows[3] *= 1000.0
    trial = replace(steering, steps=min(steering.steps, _TRIAL_STEPS))
    found = {"activation": trial(rows), "velocity": trial.velocity(rows)}
    if steering.field.barrier is not None:
        found["log-odds"] = trial.log_odds(rows)
    for what, values in found.items():
        expected = shape[:1] if what == "log-odds" else shape
        if values.shape != expected or not bool(torch.isfinite(values).all()):
            raise ValueError(
                f"its {type(steering.field).__name__} gives activations {list(shape)} a {what} "
                f"{list(values.shape)} that is of another shape or not finite"
            )
