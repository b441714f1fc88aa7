"""Order and labels of conditions.

Unsteered, prompt-only and random first, then methods in the order of `METHODS`. Where doses mean
the same for every method (an angle, a path length), conditions of one dose stand together:
that is the comparison at matched displacement. Conditions that differ in their seed alone are
one row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from odesteer.common import catalogue
from odesteer.evaluation.report.measures import Key
from odesteer.evaluation.report.run import Answer, Condition, Run
from odesteer.methods import METHODS

UNSTEERED, PROMPT, RANDOM = "none", "prompt", "random"
_FIRST = (UNSTEERED, PROMPT, RANDOM)
_DOSES = {"time": "strength", "path-length": "path length"}
_DAMAGES = {"kl": "KL", "displacement": "displacement"}
# Display names; a condition's own label goes before.
NAMES = {UNSTEERED: catalogue.METHODS[UNSTEERED], PROMPT: "Prompt only", **catalogue.METHODS}
_COMPARABLE = ("angle", "path-length")
REFERENCES, CHOSEN = "not steered", "chosen on validation data"


@dataclass(frozen=True)
class Row:
    """Condition, or several that differ in their seed alone.

    Attributes:
        condition: the first of them; its id names the row.
        answers: of all, by (seed, fold, case, sample).
        label: display name of the method.
        heading: shared with the rows beside it.
        setting: dose, layer and steps in words.
    """

    condition: Condition
    answers: Mapping[Key, Answer]
    label: str
    heading: str
    setting: str

    @property
    def method(self) -> str:
        return self.condition.method

    @property
    def family(self) -> str:
        """Method with its hyperparameters, without the dose: "caa" of "caa@angle-0.1"."""
        return family(self.condition)

    @cached_property
    def keyed(self) -> list[tuple[Key, Answer]]:
        return list(self.answers.items())

    @property
    def groups(self) -> int:
        return len({answer.group for answer in self.answers.values()})

    def beside(self, other: "Row") -> list[tuple[Key, Answer]]:
        """Return this row's answers to the cases of another row, under its keys.

        Answers of a single seed (unsteered text that is the same for all, say) stand beside each
        seed of the other row.
        """
        seeds = {key[0] for key in self.answers}
        if len(seeds) > 1:
            return self.keyed
        (seed,) = seeds
        answers = {key: self.answers.get((seed, *key[1:])) for key in other.answers}
        return [(key, answer) for key, answer in answers.items() if answer is not None]


def rows_of(run: Run) -> tuple[Row, ...]:
    """Return the rows of a run that have an answer, in order."""
    pooled: dict[str, list[Condition]] = {}
    for condition in run.conditions.values():
        if run.answers[condition.id]:
            pooled.setdefault(_without_seed(condition), []).append(condition)
    first = [conditions[0] for conditions in pooled.values()]
    layers = len({repr(c.layer) for c in first if c.layer is not None}) > 1
    steps = len({c.steps for c in first if c.steps is not None}) > 1
    # Two sets of hyperparameters may have one label.
    families = {(name_of(c), family(c)) for c in first}
    labels = [label for label, _ in families]
    rows = [
        Row(
            conditions[0],
            {(c.seed, *answer.place): answer for c in conditions for answer in run.answers[c.id]},
            name_of(conditions[0])
            + (f" ({family(conditions[0])})" if labels.count(name_of(conditions[0])) > 1 else ""),
            _heading(conditions[0]),
            setting(run, conditions[0], layers, steps),
        )
        for conditions in pooled.values()
    ]
    return tuple(sorted(rows, key=_table_order))


def name_of(condition: Condition) -> str:
    """Return the display name of a condition."""
    if condition.method == UNSTEERED:
        return NAMES[UNSTEERED]
    return NAMES.get(condition.label, condition.label)


def family(condition: Condition) -> str:
    return _without_seed(condition).split("@")[0]


def unsteered(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.method == UNSTEERED), None)


def steered(rows: Sequence[Row]) -> list[Row]:
    """Rows of methods: neither unsteered nor prompt-only."""
    return [row for row in rows if row.method not in (UNSTEERED, PROMPT)]


def amount(dose: Mapping[str, Any] | None) -> float:
    """Return a dose as one number; of a target, its budget's."""
    if dose is None:
        return 0.0
    return amount(dose["budget"]) if "budget" in dose else float(dose.get("amount", 0.0))


def dose_words(dose: Mapping[str, Any] | None) -> str:
    """Format a dose: "angle 0.1", "until P >= 0.9 within angle 0.3"."""
    if dose is None:
        return ""
    if "budget" in dose:
        return f"until P ≥ {dose.get('probability', 0.0):g} within {dose_words(dose['budget'])}"
    kind = str(dose.get("type", ""))
    return f"{_DOSES.get(kind, kind)} {amount(dose):.4g}"


def layer_words(layer: Any) -> str:
    """Format a layer, several, or "its own" for a method that chooses its layers."""
    if layer is None:
        return "its own"
    return ", ".join(map(str, layer)) if isinstance(layer, list) else str(layer)


def _at(layer: Any) -> str:
    """Format a layer as a suffix; empty for a method that chooses its layers."""
    return "" if layer is None else f", layer {layer_words(layer)}"


def setting(run: Run, condition: Condition, layers: bool = True, steps: bool = True) -> str:
    """Format dose, layer and steps of a condition; of a chosen one, for each fold."""
    if condition.chosen:
        choices = [line for line in run.choices if line["condition"] == condition.id]
        words = dict.fromkeys(
            dose_words(line.get("dose")) + _at(line.get("layer")) for line in choices
        )
        return " / ".join(words) or "not chosen yet"
    parts = [dose_words(condition.dose) + (_at(condition.layer) if layers else "")]
    if steps and condition.steps is not None:
        parts.append(f"{condition.steps} step{'' if condition.steps == 1 else 's'}")
    return ", ".join(part for part in parts if part).removeprefix(", ")


def comparable(dose: Mapping[str, Any] | None) -> bool:
    """Whether the same dose of another method is the same displacement."""
    return dose is not None and dose.get("type") in _COMPARABLE


def method_rank(method: str) -> int:
    """Return the rank: unsteered, prompt, random, then `METHODS`, then unknown ones."""
    order = [*_FIRST, *(name for name in METHODS if name not in _FIRST)]
    return order.index(method) if method in order else len(order)


def _without_seed(condition: Condition) -> str:
    return condition.id.removesuffix(f",seed-{condition.seed}")


def _matched(condition: Condition) -> tuple[str, float] | None:
    """Return the damage that a dose was matched to: ("kl", 0.1) of "caa@kl-0.1"."""
    target = _without_seed(condition).partition("@")[2].partition(",")[0]
    kind, _, size = target.partition("-")
    try:
        return (kind, float(size)) if condition.chosen and kind in _DAMAGES else None
    except ValueError:
        return None


def _heading(condition: Condition) -> str:
    if condition.method in (UNSTEERED, PROMPT):
        return REFERENCES
    if matched := _matched(condition):
        return f"every method at {_DAMAGES[matched[0]]} {matched[1]:g} on validation data"
    if condition.chosen:
        return CHOSEN
    if comparable(condition.dose):
        return f"every method at {dose_words(condition.dose)}"
    return "each method at doses of its own"


def _table_order(row: Row) -> tuple[Any, ...]:
    c = row.condition
    layer = c.layer if isinstance(c.layer, list) else [c.layer if c.layer is not None else -1]
    rank, dose, steps = method_rank(c.method), amount(c.dose), c.steps or 0
    if row.heading == REFERENCES:
        return (0, rank)
    if matched := _matched(c):
        return (2, *matched, rank, row.family, layer, steps)
    if c.chosen:
        return (1, "", 0.0, rank, row.family, layer, steps)
    if comparable(c.dose):
        return (3, str((c.dose or {}).get("type")), dose, rank, row.family, layer, steps)
    return (4, "", 0.0, rank, row.family, dose, layer, steps)
