"""Tables of a report, before they are rendered: conditions, equal doses, barriers, texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from odesteer.evaluation import statistics as estimate
from odesteer.evaluation.report.measures import (
    RANDOM,
    Better,
    Measure,
    Row,
    layer_words,
    method_rank,
    name_of,
    steered,
    unsteered,
)
from odesteer.evaluation.report.run import Answer, Run
from odesteer.evaluation.statistics import NAN, Interval, PairedDifference, holm, interval
from odesteer.steering.calibration import binary_quality

LEVEL = 0.05
MARK = "*"
ABSENT = "–"


@dataclass(frozen=True)
class Column:
    """Metric. `note` explains it; `tested`: its differences may carry a mark."""

    key: str
    label: str
    better: Better = None
    digits: int = 3
    note: str = ""
    tested: bool = True

    @classmethod
    def of(cls, measure: Measure) -> "Column":
        judges = " and ".join(name for name in measure.judges[0] if name != measure.name)
        note = "; ".join(part for part in (f"by {judges}" if judges else "", measure.note) if part)
        label, digits = measure.label, measure.digits
        return cls(measure.key, label, measure.better, digits, note, measure.tested)

    @property
    def arrow(self) -> str:
        return {"higher": "↑", "lower": "↓"}.get(self.better or "", "")


@dataclass(frozen=True)
class Cell:
    """Metric of one condition.

    Attributes:
        value: with its own 95 % interval; None where there is only a difference.
        difference: paired, to the unsteered model or to what the row says.
        unscored: number of answers without a value, which are in neither.
        adjusted: p of the difference after Holm's correction within the table.
    """

    value: Interval | None = None
    difference: PairedDifference | None = None
    unscored: int = 0
    adjusted: float | None = None

    @property
    def significant(self) -> bool:
        return self.adjusted is not None and self.adjusted <= LEVEL


@dataclass(frozen=True)
class Line:
    """Row: `heading` is shared with the rows beside it, `n` are cases and groups."""

    label: str
    setting: str
    heading: str
    cells: tuple[Cell | None, ...]
    n: tuple[int, int] | None = None
    method: str = ""
    id: str = ""


@dataclass(frozen=True)
class Table:
    """Table of metrics by condition.

    `name` is for files. `versus` is the baseline of the differences; if it is "", there are none
    and values are shown with their own intervals.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    versus: str = "the unsteered model"
    notes: tuple[str, ...] = ()

    def corrected(self) -> "Table":
        """Correct the p-values of all tested differences for their number."""
        tested = [
            (i, j, cell.difference.p)
            for i, line in enumerate(self.lines)
            for j, cell in enumerate(line.cells)
            if cell and cell.difference and self.columns[j].tested
            and not math.isnan(cell.difference.p)
        ]  # fmt: skip
        adjusted = holm([p for _, _, p in tested])
        by_place = {(i, j): p for (i, j, _), p in zip(tested, adjusted, strict=True)}
        lines = tuple(
            replace(line, cells=tuple(
                replace(cell, adjusted=by_place[i, j]) if cell and (i, j) in by_place else cell
                for j, cell in enumerate(line.cells)
            ))
            for i, line in enumerate(self.lines)
        )  # fmt: skip
        return replace(self, lines=lines)

    @property
    def comparisons(self) -> int:
        """Number of tested differences."""
        return sum(c is not None and c.adjusted is not None for w in self.lines for c in w.cells)

    def legend(self) -> list[str]:
        """Return the notes that a reader of the numbers needs, in any format."""
        notes = []
        if self.versus:
            notes.append(
                f"Differences are to {self.versus}, paired by case, with 95 % intervals (bootstrap "
                f"over groups)."
            )
        if self.comparisons:
            notes.append(
                f"{MARK}: significant at 5 % after Holm's correction for the {self.comparisons} "
                f"differences tested in this table (randomisation test over groups)."
            )
        by_note: dict[str, list[str]] = {}
        for column in self.columns:
            by_note.setdefault(column.note, []).append(column.label)
        notes += [f"{', '.join(labels)}: {note}." for note, labels in by_note.items() if note]
        return [*notes, *self.notes]


def number(value: float, digits: int, sign: bool = False) -> str:
    """Format a number with a real minus sign; nan as a dash."""
    if math.isnan(value):
        return ABSENT
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    # No "-0.000": it would suggest a direction.
    if float(text) == 0.0:
        text = text.replace("-", "").replace("+", "")
    return text.replace("-", "−")


def value_text(cell: Cell, column: Column, interval: bool = False) -> str:
    """Format as "0.412" or "0.412 [0.380, 0.450]"."""
    if cell.value is None:
        return ""
    mean, low, high, _ = cell.value
    text = number(mean, column.digits)
    if interval and not math.isnan(low):
        text += f" [{number(low, column.digits)}, {number(high, column.digits)}]"
    return text


def change_text(cell: Cell, column: Column, interval: bool = True) -> str:
    """Format as "+0.041 [+0.010, +0.072]*"."""
    if cell.difference is None:
        return ""
    mean, low, high, _ = cell.difference.interval
    if math.isnan(mean):
        return ABSENT
    text = number(mean, column.digits, sign=True)
    if interval and not math.isnan(low):
        text += f" [{number(low, column.digits, True)}, {number(high, column.digits, True)}]"
    return text + (MARK if cell.significant else "")


def effect(cell: Cell, column: Column) -> Literal["better", "worse", "changed", ""]:
    """Return the meaning of a significant difference, "" of another one."""
    if not cell.significant or cell.difference is None:
        return ""
    if column.better is None:
        return "changed"
    rises = cell.difference.interval.mean > 0
    return "better" if rises == (column.better == "higher") else "worse"


def headings(lines: Sequence[Line]) -> list[tuple[str, list[Line]]]:
    """Group lines by heading, in order."""
    groups: list[tuple[str, list[Line]]] = []
    for line in lines:
        if not groups or groups[-1][0] != line.heading:
            groups.append((line.heading, []))
        groups[-1][1].append(line)
    return groups


def main_table(rows: Sequence[Row], measures: Sequence[Measure]) -> Table:
    """Tabulate every row by every measure, with the difference to the unsteered model."""
    base = unsteered(rows)
    lines = tuple(
        Line(
            row.label,
            row.setting,
            row.heading,
            tuple(cell(measure, row, base) for measure in measures),
            n=(len(row.answers), row.groups),
            method=row.method,
            id=row.condition.id,
        )
        for row in rows
    )
    notes = [] if base else ["There is no unsteered condition, so no difference to it."]
    return Table(
        "main",
        "All conditions",
        tuple(map(Column.of, measures)),
        lines,
        notes=tuple(notes),
    ).corrected()


def cell(measure: Measure, row: Row, base: Row | None) -> Cell | None:
    """Measure a row; None where the row has nothing to measure."""
    beside = base.beside(row) if base else []
    if measure.grams:
        texts = measure.texts(row.keyed)
        if not texts:
            return None
        value, missing = (
            estimate.distinct_value(texts, measure.grams),
            len(row.answers) - len(texts),
        )
    else:
        units = measure.units(row.keyed, beside)
        value = estimate.value(measure.statistic, units)
        missing = int((~units.measured).sum())
        judges = set(measure.judges[0])
        if value.n == 0 and not any(judges & set(answer.reasons) for _, answer in row.keyed):
            return None  # not applicable, such as the displacement of a prompt
    change = None
    if measure.tested and base is not None and row is not base:
        change = versus(measure, row, base, base)
        change = change if change.interval.n else None
    return Cell(value, change, missing)


def versus(measure: Measure, row: Row, other: Row, base: Row | None) -> PairedDifference:
    """Compare `row` with `other` on the cases of both; wins are counted against `base`."""
    beside = other.beside(row)
    keys = {key for key, _ in beside}
    answers = [pair for pair in row.keyed if pair[0] in keys]
    against = base.beside(row) if base else []
    if measure.grams:
        generated = {key for key, a in answers if a.generation} & {
            k for k, a in beside if a.generation
        }
        first = measure.texts([pair for pair in answers if pair[0] in generated])
        second = measure.texts([pair for pair in beside if pair[0] in generated])
        return estimate.distinct_difference(first, second, measure.grams)
    return estimate.difference(
        measure.statistic, measure.units(answers, against), measure.units(beside, against)
    )


REFERENCE = "odesteer"


def reference(rows: Sequence[Row], wanted: str | None = None) -> str | None:
    """Return the method that others are compared with: `wanted`, ODESteer, or the last one.

    Raises:
        ValueError: if `wanted` is not in the run.
    """
    ranks = {row.family: method_rank(row.method) for row in steered(rows) if row.method != RANDOM}
    if wanted is not None and wanted not in ranks:
        raise ValueError(
            f"There is no method '{wanted}' in this run to compare with; it has "
            f"{', '.join(ranks) or 'none'}."
        )
    if wanted or REFERENCE in ranks:
        return wanted or REFERENCE
    return max(ranks, key=ranks.__getitem__, default=None)


def at_equal_dose(rows: Sequence[Row], measures: Sequence[Measure], method: str) -> Table | None:
    """Compare a method with each other one that has the same dose, layer and steps.

    Conditions whose doses were matched on validation data to one damage are compared likewise.
    """
    base, lines = unsteered(rows), []
    columns = [measure for measure in measures if measure.tested]
    reference_rows = [row for row in rows if row.family == method]
    for row in reference_rows:
        for other in steered(rows):
            if other.family == method or _setting(row) != _setting(other):
                continue
            cells = tuple(Cell(difference=versus(m, row, other, base)) for m in columns)
            label = f"{row.label} − {other.label}"
            where = row.setting if row.setting == other.setting else "each as chosen"
            first = cells[0].difference
            n = (first.interval.n, first.groups) if first else (0, 0)
            lines.append(Line(label, where, row.heading, cells, n, method=other.method))
    if not lines:
        return None
    title = f"{reference_rows[0].label} against the others at equal dose"
    table = Table(
        "equal-dose", title, tuple(map(Column.of, columns)), tuple(lines),
        versus="the other method of the row",
    )  # fmt: skip
    return table.corrected()


def _setting(row: Row) -> tuple[object, ...]:
    c = row.condition
    return c.layer, c.steps, c.chosen, c.dose, row.heading


COLUMNS = (
    Column("auc", "AUC", "higher", note="chance that a positive row ranks above a negative one"),
    Column("pair_accuracy", "Pair accuracy", "higher",
           note="pairs in which the positive row ranks higher; a tie is half, chance is 0.5"),
    Column("log_loss", "Log-loss", "lower", note="nats; chance is 0.693 for even classes"),
    Column("ece", "Calibration error", "lower", note="ten bins of equal count, even priors"),
)  # fmt: skip


def barrier_table(run: Run) -> Table | None:
    """Tabulate barriers on held-out rows, folds together; None where none is stored."""
    lines = []
    seen = set()
    for name, log_odds, labels, groups in held_out(run):
        condition = run.conditions[name]
        # Doses share a barrier; it is the same numbers again.
        once = (condition.method, log_odds.tobytes())
        if once in seen or len(np.unique(labels)) < 2:
            continue
        seen.add(once)
        quality = binary_quality(log_odds, labels, balanced=True)
        cells = (
            Cell(Interval(quality.auc, NAN, NAN, quality.n)),
            _pairs(log_odds, labels, groups),
            Cell(Interval(quality.log_loss, NAN, NAN, quality.n)),
            Cell(Interval(quality.ece, NAN, NAN, quality.n)),
        )
        where = dict.fromkeys(
            (str(b.get("part", "test")), layer_words(b.get("layer", condition.layer)))
            for b in run.barriers
            if b["condition"] == name
        )
        layer = "; ".join(f"{part}, layer {layer}" for part, layer in where)
        count = len(set(groups)) if groups is not None else len(labels)
        n = (len(labels), count)
        lines.append(Line(name_of(condition), layer, "", cells, n, method=condition.method))
    if not lines:
        return None
    lines.sort(key=lambda line: method_rank(line.method))
    return Table("barriers", "Barriers on held-out rows", COLUMNS, tuple(lines), versus="")


def ranks_pairs(table: Table) -> tuple[str, ...]:
    """Write a sentence on the barriers that rank held-out pairs better than chance."""
    index = [column.key for column in table.columns].index("pair_accuracy")
    cells = [(line, line.cells[index]) for line in table.lines]
    accuracies = [(line, cell.value) for line, cell in cells if cell is not None and cell.value]
    if not accuracies:
        return ()
    above = sum(value.low > 0.5 for _, value in accuracies)
    line, best = max(accuracies, key=lambda each: each[1].mean)
    return (
        f"Held-out pairs: the interval of {above} of {len(accuracies)} barriers is above chance, "
        f"not corrected for their number; the most, picked after the fact, has {line.label} with "
        f"{best.mean:.3f} [{best.low:.3f}, {best.high:.3f}] of {best.n} pairs.",
    )


def held_out(run: Run) -> list[tuple[str, np.ndarray, np.ndarray, list[str] | None]]:
    """Return (condition, log-odds, labels, groups) of test, else of validation rows."""
    barriers = []
    for name in run.conditions:
        stored = [line for line in run.barriers if line["condition"] == name]
        # A benchmark whose test prompts have no answers to rank is measured on its validation part.
        lines = [line for line in stored if line.get("part", "test") == "test"] or stored
        if not lines:
            continue
        log_odds = np.concatenate([np.asarray(b["log_odds"], dtype=float) for b in lines])
        labels = np.concatenate([np.asarray(b["labels"], dtype=float) for b in lines])
        if len(log_odds) != len(labels):
            raise ValueError(
                f"A barrier of '{name}' in '{run.path}' has {len(log_odds)} log-odds and "
                f"{len(labels)} labels; it needs one each."
            )
        groups = (
            [str(g) for b in lines for g in b["groups"]]
            if all("groups" in b for b in lines)
            else None
        )
        barriers.append((name, log_odds, labels, groups))
    return barriers


def _pairs(log_odds: np.ndarray, labels: np.ndarray, groups: Sequence[str] | None) -> Cell | None:
    """Return the pair accuracy: over groups, the mean over their pairs."""
    if groups is None:
        return None
    names, shares = np.asarray(groups), []
    for group in np.unique(names):
        members = names == group
        positive, negative = log_odds[members & (labels == 1)], log_odds[members & (labels == 0)]
        if len(positive) and len(negative):
            wins = 0.5 * (np.sign(positive[:, None] - negative) + 1.0)
            shares.append(float(wins.mean()))
    return Cell(interval(np.array(shares))) if shares else None


MOST_ROWS, MOST_PAIRS = 24, 6
LONGEST = 1_500  # characters of a text that are shown


@dataclass(frozen=True)
class Pair:
    """Case with its prompt, both answers and their scores (None: unscored, and why)."""

    prompt: str
    left: str
    right: str
    before: float | None
    after: float | None
    why: str = ""

    @property
    def change(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True)
class Beside:
    """Texts of a condition beside the unsteered ones, by the change of `score`."""

    label: str
    setting: str
    score: str
    pairs: tuple[Pair, ...]
    of: int


def side_by_side(
    rows: Sequence[Row], measure: Measure, pairs: int = MOST_PAIRS
) -> tuple[Beside, ...]:
    """Pair texts of every steered condition, or of one per method if there are many.

    Args:
        rows: of a run.
        measure: its first judge's score sorts the pairs.
        pairs: number per condition.

    Returns:
        The condition whose texts changed most on average first.
    """
    base, shown = unsteered(rows), _shown(rows)
    if base is None or not measure.judges[0]:
        return ()
    judge = measure.judges[0][0]
    result = []
    for row in shown:
        unsteered_answers = dict(base.beside(row))
        texts = [
            _pair(unsteered_answers[key], answer, judge)
            for key, answer in row.keyed
            if key in unsteered_answers
        ]
        # An unscored text is not a small change: it stands after those that are known.
        texts.sort(key=lambda p: np.inf if p.change is None else -abs(p.change))
        if texts:
            beside = Beside(row.label, row.setting, judge, tuple(texts[:pairs]), len(texts))
            changes = [abs(pair.change) for pair in texts if pair.change is not None]
            result.append((float(np.mean(changes)) if changes else 0.0, beside))
    return tuple(beside for _, beside in sorted(result, key=lambda each: -each[0]))


def _shown(rows: Sequence[Row]) -> list[Row]:
    candidates = [row for row in steered(rows) if row.method != RANDOM]
    if len(candidates) <= MOST_ROWS:
        return candidates
    chosen = [row for row in candidates if row.condition.chosen]
    if chosen:
        return chosen
    # One a method: in the middle of what was tried, neither without effect nor broken.
    by_method: dict[str, list[Row]] = {}
    for row in candidates:
        by_method.setdefault(row.family, []).append(row)
    return [of[len(of) // 2] for of in by_method.values()]


def _pair(before: Answer, after: Answer, judge: str) -> Pair:
    why = "; ".join(
        f"{side}: {answer.reasons.get(judge) or 'not judged'}"
        for side, answer in (("left", before), ("right", after))
        if answer.scores.get(judge) is None
    )
    left, right = _text(before), _text(after)
    scores = before.scores.get(judge), after.scores.get(judge)
    return Pair(_prompt(after.prompt), left, right, *scores, why)


def _prompt(prompt: Any) -> str:
    """Return a prompt as text; of chat messages, the last one's."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
        prompt = prompt[-1].get("content", "")
    return _short(str(prompt))


def _text(answer: Answer) -> str:
    """Return the generation, or the likeliest of given answers."""
    if answer.generation is not None:
        return _short(answer.generation)
    if not answer.choices:
        return ""
    names = list(answer.choices)
    logprobs = np.array([answer.choices[name] for name in names], dtype=float)
    shares = np.exp(logprobs - np.logaddexp.reduce(logprobs))
    best = np.argsort(-shares, kind="stable")[:3]
    return "\n".join(f"{shares[i]:.0%} {_short(names[i])}" for i in best)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
