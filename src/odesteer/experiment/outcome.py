"""What does a run say of itself: first in its results, and to who started it?"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from odesteer.artifact.compatibility import describe_model
from odesteer.artifact.saving import dose_to_json
from odesteer.experiment import judging
from odesteer.experiment.conditions import Condition
from odesteer.experiment.folder import SCHEMA
from odesteer.experiment.plan import Plan


class Outcome(NamedTuple):
    """Where the results are; whether they are complete; how many units this process computed."""

    results: Path
    complete: bool
    computed: int


def header(about: Mapping[str, Any], planned: Plan, model: Any, tokenizer: Any) -> dict[str, Any]:
    """The first line of the results."""
    return {
        "kind": "run",
        "schema": SCHEMA,
        **about,
        "model": describe_model(model, tokenizer),
        "judges": judging.about(planned.experiment.judges),
        "conditions": [_condition(one) for one in planned.conditions],
    }


def _condition(one: Condition) -> dict[str, Any]:
    fixed = not one.open
    return {
        "id": one.id,
        "method": one.method.name,
        "label": one.method.label,
        "dose": dose_to_json(one.doses[0]) if fixed and one.doses else None,
        "layer": one.layers[0] if fixed and one.layers else None,
        "chosen": one.open,
        "steps": one.steps,
        "seed": one.seed,
    }
