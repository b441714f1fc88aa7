"""Choice of metrics: the effect and the damage."""

from collections.abc import Sequence
from dataclasses import replace

from odesteer.evaluation.report.measures import MEASURES, Better, Measure, mean_of
from odesteer.evaluation.report.run import Run

# What is drawn and sorted by, the first that a run has; else its first metric.
HEADLINES = ("true_x_info", "toxicity", "win_rate", "mc2")
DAMAGE = ("kl", "perplexity", "displacement")  # what a benchmark asks, what this costs


def measures_of(run: Run) -> tuple[Measure, ...]:
    """A run's columns: its benchmark's metrics, other judges' means, then damage."""
    scored = {
        name for answers in run.answers.values() for answer in answers for name in answer.scores
    }
    texts = any(a.generation for answers in run.answers.values() for a in answers)
    named = [name for name in run.benchmark.get("metrics", ()) if name not in DAMAGE]
    found: list[Measure] = []
    for name in named:
        measure = MEASURES.get(name) or mean_of(name)
        found += _available(run, measure, scored, texts)
    used = {judge for measure in found for judge in measure.judges[0]} | set(_damage_judges())
    found += [_resolved(run, mean_of(name)) for name in sorted(scored - used)]
    for name in DAMAGE:
        # Two readings of one number are one column.
        found += _available(run, MEASURES[name], scored, texts)[:1]
    return tuple(found)


def headline(measures: Sequence[Measure]) -> Measure:
    """What figures draw and texts are sorted by."""
    for name in HEADLINES:
        for measure in measures:
            if measure.name == name:
                return measure
    return next((m for m in measures if m.name not in DAMAGE and not m.grams), measures[0])


def damage(measures: Sequence[Measure]) -> Measure | None:
    """What is matched when methods are compared: KL, else perplexity, else displacement."""
    return next((m for name in DAMAGE for m in measures if m.name == name), None)


def _damage_judges() -> list[str]:
    return [name for each in DAMAGE for judges in MEASURES[each].judges for name in judges]


def _available(run: Run, measure: Measure, scored: set[str], texts: bool) -> list[Measure]:
    if measure.grams:
        return [measure] if texts else []
    return [
        _resolved(run, replace(measure, judges=(judges,)))
        for judges in measure.judges
        if set(judges) <= scored
    ]


def _resolved(run: Run, measure: Measure) -> Measure:
    """With the direction that its first judge has in this benchmark."""
    if measure.better != "judge":
        return measure
    judge = measure.judges[0][0]
    directions: dict[str, Better] = {"better": "higher", "worse": "lower"}
    said = directions.get(run.judges.get(judge, {}).get("higher_is", ""))
    wanted: Better = run.benchmark.get("wanted", {}).get(judge, said)
    return replace(measure, better=wanted)
