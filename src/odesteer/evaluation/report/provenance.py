"""Provenance: choices, judges and data."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from odesteer.evaluation.report.rows import dose_words, layer_words, name_of
from odesteer.evaluation.report.run import Run


class Provenance(NamedTuple):
    """A small table of words."""

    title: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def facts_of(run: Run) -> tuple[Provenance, ...]:
    """Choices, trials, judges, fits and data; those that the run has."""
    made = (_choices(run), _trials(run), _judges(run), _fits(run), _folds(run), _data(run))
    return tuple(facts for facts in made if facts.rows)


def _label(run: Run, line: Mapping[str, Any]) -> str:
    return name_of(run.conditions[line["condition"]])


def _choices(run: Run) -> Provenance:
    rows = tuple(
        (
            _label(run, line),
            str(line.get("fold", 0)),
            layer_words(line.get("layer")),
            dose_words(line.get("dose")),
            str(line.get("rule", "")),
            str(len(line.get("trials") or ())),
        )
        for line in run.choices
    )
    heading = ("condition", "fold", "layer", "dose", "rule", "trials")
    return Provenance("What was chosen, on validation data alone", heading, rows)


def _trials(run: Run) -> Provenance:
    rows = tuple(
        (
            _label(run, line),
            str(line.get("fold", 0)),
            layer_words(trial.get("layer")),
            dose_words(trial.get("dose")),
            _words(trial.get("effect")),
            _words(trial.get("damage")),
            "chosen" if all(trial.get(k) == line.get(k) for k in ("layer", "dose")) else "",
        )
        for line in run.choices
        for trial in line.get("trials") or ()
    )
    heading = ("condition", "fold", "layer", "dose", "effect", "damage", "")
    return Provenance("What the choices were made among", heading, rows)


def _judges(run: Run) -> Provenance:
    directions = {"better": "better", "worse": "worse"}
    rows = tuple(
        (
            name,
            facts.get("unit", ""),
            run.benchmark.get("wanted", {}).get(name, "")
            or directions.get(facts.get("higher_is", ""), "neither"),
            facts.get("agreement", "") or "not stated",
            _unscored(run, name),
        )
        for name, facts in run.judges.items()
    )
    heading = ("judge", "unit", "higher is", "measured quality", "unscored")
    return Provenance("Judges, and how far to trust them", heading, rows)


def _unscored(run: Run, judge: str) -> str:
    """How many, and the reasons from the most frequent on."""
    reasons: dict[str, int] = {}
    total = 0
    for answers in run.answers.values():
        for answer in answers:
            if judge in answer.scores:
                total += 1
                if answer.scores[judge] is None:
                    why = answer.reasons.get(judge) or "no reason given"
                    reasons[why] = reasons.get(why, 0) + 1
    if not reasons:
        return f"0 of {total}"
    said = ", ".join(f"{count}: {why}" for why, count in sorted(reasons.items(), key=_most))
    return f"{sum(reasons.values())} of {total} ({said})"


def _most(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _fits(run: Run) -> Provenance:
    rows = []
    for line in run.fits:
        quality = line.get("held_out") or {}
        rows.append(
            (
                _label(run, line),
                str(line.get("fold", 0)),
                layer_words(line.get("layer")),
                dose_words(line.get("dose")),
                *(_words(quality.get(key)) for key in ("auc", "log_loss", "ece", "n")),
            )
        )
    heading = ("condition", "fold", "layer", "dose", "AUC", "log-loss", "calibration error", "n")
    return Provenance("Fits, and the held-out quality of their barriers", heading, tuple(rows))


def _folds(run: Run) -> Provenance:
    rows = tuple(
        (str(number), *(str(len(fold.get(part, ()))) for part in ("fit", "validation", "test")))
        for number, fold in enumerate(run.folds)
    )
    return Provenance("Folds", ("fold", "to learn from", "to choose on", "tested"), rows)


def _data(run: Run) -> Provenance:
    rows = tuple((name, str(digest)) for name, digest in run.benchmark.get("files", {}).items())
    return Provenance("Data", ("file", "SHA-256"), rows)


def _words(value: Any) -> str:
    """A number as it is read, an estimate with its interval, anything else as JSON."""
    if value is None:
        return ""
    if isinstance(value, Mapping) and "mean" in value:
        low, high = value.get("low"), value.get("high")
        between = "" if low is None or high is None else f" [{low:.3g}, {high:.3g}]"
        return f"{value['mean']:.3g}{between}"
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
