"""Header of the results file and summary of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from odesteer.evaluation.experiment import judging
from odesteer.evaluation.experiment.conditions import Condition
from odesteer.evaluation.experiment.plan import Plan
from odesteer.evaluation.experiment.run_directory import SCHEMA
from odesteer.models.compatibility import describe_model
from odesteer.steering.serialization.directory import dose_to_json


class RunSummary(NamedTuple):
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
