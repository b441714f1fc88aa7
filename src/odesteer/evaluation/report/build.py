"""Assembly of a report: summary, tables, figures, provenance."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from odesteer.evaluation.report.charts import calibration_drawing, figures_of, flow_drawing
from odesteer.evaluation.report.figure_style import Drawing
from odesteer.evaluation.report.measures import (
    CHOSEN,
    RANDOM,
    UNSTEERED,
    Measure,
    Row,
    dose_words,
    headline,
    layer_words,
    measures_of,
    name_of,
    rows_of,
)
from odesteer.evaluation.report.run import Run
from odesteer.evaluation.report.tables import (
    Beside,
    Cell,
    Column,
    Line,
    Table,
    at_equal_dose,
    barrier_table,
    change_text,
    effect,
    main_table,
    ranks_pairs,
    reference,
    side_by_side,
    value_text,
)


def summary(
    run: Run, rows: Sequence[Row], measures: Sequence[Measure], tables: Sequence[Table]
) -> tuple[str, ...]:
    """Write sentences about the headline metric: what was found first, of what last."""
    main = tables[0]
    index = list(measures).index(headline(measures))
    column = main.columns[index]
    answers = sum(len(row.answers) for row in rows)
    groups = max((row.groups for row in rows), default=0)
    sentences = _chosen(main.lines, index, column)
    sentences += _largest(main.lines, index, column)
    sentences += [_tally(table, column) for table in tables if table.name == "equal-dose"]
    sentences.append(
        f"{run.benchmark.get('name', 'A benchmark')} with {run.model.get('name', 'a model')}: "
        f"{len(rows)} conditions, {answers:,} answers, {groups} independent groups, "
        f"{len(run.folds) or 1} fold{'s' if len(run.folds) > 1 else ''}."
    )
    return tuple(sentence for sentence in sentences if sentence)


def _unsteered(lines: Sequence[Line], index: int, column: Column) -> str:
    """Return the unsteered value; empty where it is not among the lines."""
    cells = [line.cells[index] for line in lines if line.method == UNSTEERED]
    return next((value_text(cell, column) for cell in cells if cell is not None), "")


def _chosen(lines: Sequence[Line], index: int, column: Column) -> list[str]:
    sentences = []
    for line in lines:
        cell = line.cells[index]
        if line.heading == CHOSEN and cell is not None and cell.difference is not None:
            sentences.append(
                f"{line.label}, as chosen on validation data ({line.setting}): "
                f"{value_text(cell, column)}, {change_text(cell, column)}."
            )
    return sentences


def _largest(lines: Sequence[Line], index: int, column: Column) -> list[str]:
    """Name the largest improvement of all conditions, and that of a random direction."""
    start = _unsteered(lines, index, column)
    best = _best([line for line in lines if line.method != RANDOM], index, column)
    if column.better is None or best is None:  # nothing to compare with
        return [f"Unsteered, {column.label} is {start}."] if start else []
    size, cell, line = best
    if size <= 0:
        sentences = [
            f"No condition improved {column.label}, which is {start} unsteered ({column.better} is "
            f"better)."
        ]
    else:
        where = f" ({line.setting})" if line.setting else ""
        doubt = "" if cell.significant else ", which is not significant"
        sentences = [
            f"{line.label}{where} improves {column.label} most, from {start} unsteered to "
            f"{value_text(cell, column)} ({column.better} is better): {change_text(cell, column)}"
            f"{doubt}. It was picked after the fact, from all conditions."
        ]
    chance = _best([line for line in lines if line.method == RANDOM], index, column)
    if chance is not None and chance[0] > 0:
        size, cell, line = chance
        sentences.append(
            f"A random direction alone ({line.setting}) reaches {change_text(cell, column)}: only "
            f"what a method has beyond that is its own."
        )
    return sentences


def _best(lines: Sequence[Line], index: int, column: Column) -> tuple[float, Cell, Line] | None:
    """Return the largest improvement, its cell and its line."""
    sign = 1.0 if column.better == "higher" else -1.0
    improvements = [
        (sign * cell.difference.interval.mean, cell, line)
        for line in lines
        if (cell := line.cells[index]) is not None and cell.difference is not None
    ]
    return max(improvements, key=lambda item: item[0], default=None)


def _tally(table: Table, column: Column) -> str:
    """Count how often the reference method is better, worse, or not told apart."""
    index = next((i for i, c in enumerate(table.columns) if c.key == column.key), None)
    if index is None:
        return ""
    cells = [line.cells[index] for line in table.lines]
    effects = [effect(cell, table.columns[index]) for cell in cells if cell is not None]
    better, worse = effects.count("better"), effects.count("worse")
    return (
        f"{table.title}: {column.label} is significantly better in {better} of {len(effects)} "
        f"comparisons, worse in {worse}, not told apart in {len(effects) - better - worse}."
    )


class Provenance(NamedTuple):
    """Small table of words."""

    title: str
    heading: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def facts_of(run: Run) -> tuple[Provenance, ...]:
    """Return tables of choices, trials, judges, fits and data that the run has."""
    trials = [(line, trial) for line in run.choices for trial in line.get("trials") or ()]
    chosen = ("layer", "dose")
    tables = (
        Provenance(
            "What was chosen, on validation data alone",
            (*_SETTING, "rule", "trials"),
            [
                (
                    *_setting(run, line),
                    str(line.get("rule", "")),
                    str(len(line.get("trials") or ())),
                )
                for line in run.choices
            ],
        ),
        Provenance(
            "What the choices were made among",
            (*_SETTING, "effect", "damage", ""),
            [
                (
                    *_setting(run, {**line, **{key: trial.get(key) for key in chosen}}),
                    _words(trial.get("effect")),
                    _words(trial.get("damage")),
                    "chosen" if all(trial.get(key) == line.get(key) for key in chosen) else "",
                )
                for line, trial in trials
            ],
        ),
        Provenance(
            "Judges, and how far to trust them",
            ("judge", "unit", "higher is", "measured quality", "unscored"),
            [
                (
                    name,
                    facts.get("unit", ""),
                    run.benchmark.get("wanted", {}).get(name) or facts.get("higher_is", "neither"),
                    facts.get("agreement", "") or "not stated",
                    _unscored(run, name),
                )
                for name, facts in run.judges.items()
            ],
        ),
        Provenance(
            "Fits, and the held-out quality of their barriers",
            (*_SETTING, "AUC", "log-loss", "calibration error", "n"),
            [
                (
                    *_setting(run, line),
                    *(_words((line.get("held_out") or {}).get(key)) for key in _QUALITY),
                )
                for line in run.fits
            ],
        ),
        Provenance(
            "Folds",
            ("fold", "to learn from", "to choose on", "tested"),
            [
                (str(number), *(str(len(fold.get(part, ()))) for part in _PARTS))
                for number, fold in enumerate(run.folds)
            ],
        ),
        Provenance(
            "Data",
            ("file", "SHA-256"),
            [(name, str(digest)) for name, digest in run.benchmark.get("files", {}).items()],
        ),
    )
    return tuple(table for table in tables if table.rows)


_SETTING = ("condition", "fold", "layer", "dose")
_QUALITY = ("auc", "log_loss", "ece", "n")
_PARTS = ("fit", "validation", "test")


def _setting(run: Run, line: Mapping[str, Any]) -> tuple[str, str, str, str]:
    label, fold = name_of(run.conditions[line["condition"]]), str(line.get("fold", 0))
    return label, fold, layer_words(line.get("layer")), dose_words(line.get("dose"))


def _unscored(run: Run, judge: str) -> str:
    """Count unscored answers, with the reasons from the most frequent on."""
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
    ranked = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    words = ", ".join(f"{count}: {why}" for why, count in ranked)
    return f"{sum(reasons.values())} of {total} ({words})"


def _words(value: Any) -> str:
    """Format a number, an estimate with its interval, or any other value as JSON."""
    if value is None:
        return ""
    if isinstance(value, Mapping) and "mean" in value:
        low, high = value.get("low"), value.get("high")
        between = "" if low is None or high is None else f" [{low:.3g}, {high:.3g}]"
        return f"{value['mean']:.3g}{between}"
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class Report:
    """Sentences, tables, figures and example texts of one run.

    Attributes:
        run: as it was read.
        sentences: the findings.
        tables: the main one first.
        figures: those that the run has data for.
        facts: choices, judges, data.
        texts: single generations, unsteered beside steered.
        offensive: whether texts are hidden until a reader opens them.
    """

    run: Run
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    figures: tuple[Drawing, ...]
    facts: tuple[Provenance, ...]
    texts: tuple[Beside, ...]
    offensive: bool

    @property
    def main(self) -> Table:
        return self.tables[0]


def check(run: Run, against: str | None = None) -> None:
    """Check that a report can be built, before the work is done.

    Raises:
        ValueError: if the run has no method of that name, or no score to report.
    """
    if not measures_of(run) and not run.barriers:
        raise ValueError(f"'{run.path}' has no score yet: nothing was judged.")
    reference(rows_of(run), against)


def build(run: Run, against: str | None = None, drawn: bool = True) -> Report:
    """Build the report of a run.

    Args:
        run: finished or not.
        against: the method that others are compared with; None: ODESteer, if the run has it.
        drawn: whether to draw figures.

    Raises:
        ValueError: as `check` does.
    """
    check(run, against)
    rows, measures = rows_of(run), measures_of(run)
    tables: list[Table] = []
    sentences: tuple[str, ...] = ()
    texts: tuple[Beside, ...] = ()
    figures: tuple[Drawing, ...] = ()
    if measures:
        main = main_table(rows, measures)
        tables = [main]
        method = reference(rows, against)
        if method and (equal_dose := at_equal_dose(rows, measures, method)):
            tables.append(equal_dose)
        sentences = summary(run, rows, measures, tables)
        texts = side_by_side(rows, headline(measures))
        figures = figures_of(run, rows, measures, main) if drawn else ()
    if (barriers := barrier_table(run)) is not None:
        tables.append(barriers)
        sentences += ranks_pairs(barriers)
        drawings = (flow_drawing(run), calibration_drawing(run)) if drawn else ()
        figures += tuple(drawing for drawing in drawings if drawing is not None)
    return Report(run, sentences, tuple(tables), figures, facts_of(run), texts, _offensive(run))


def _offensive(run: Run) -> bool:
    """Whether the texts of the benchmark may offend."""
    words: Sequence[str] = (str(run.benchmark.get("name", "")), *run.benchmark.get("metrics", ()))
    return any("toxic" in word for word in words)
