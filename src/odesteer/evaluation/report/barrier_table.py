"""Table of barriers as probabilities on held-out rows."""

from collections.abc import Sequence

import numpy as np

from odesteer.evaluation.report.rows import layer_words, method_rank, name_of
from odesteer.evaluation.report.run import Run
from odesteer.evaluation.report.table import Cell, Column, Line, Table
from odesteer.evaluation.statistics.bootstrap import Interval, interval
from odesteer.evaluation.statistics.paired_tests import NAN
from odesteer.steering.calibration import binary_quality

COLUMNS = (
    Column("auc", "AUC", "higher", note="chance that a positive row ranks above a negative one"),
    Column("pair_accuracy", "Pair accuracy", "higher",
           note="pairs in which the positive row ranks higher; a tie is half, chance is 0.5"),
    Column("log_loss", "Log-loss", "lower", note="nats; chance is 0.693 for even classes"),
    Column("ece", "Calibration error", "lower", note="ten bins of equal count, even priors"),
)  # fmt: skip


def barrier_table(run: Run) -> Table | None:
    """Every condition's barrier on held-out rows, folds together; None where none is stored."""
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
    """How many barriers rank held-out pairs better than chance, in a sentence."""
    place = [column.key for column in table.columns].index("pair_accuracy")
    found = [(line, line.cells[place]) for line in table.lines]
    told = [(line, cell.value) for line, cell in found if cell is not None and cell.value]
    if not told:
        return ()
    above = sum(value.low > 0.5 for _, value in told)
    line, best = max(told, key=lambda each: each[1].mean)
    return (
        f"Held-out pairs: the interval of {above} of {len(told)} barriers is above chance, not "
        f"corrected for their number; the most, picked after the fact, has {line.label} with "
        f"{best.mean:.3f} [{best.low:.3f}, {best.high:.3f}] of {best.n} pairs.",
    )


def held_out(run: Run) -> list[tuple[str, np.ndarray, np.ndarray, list[str] | None]]:
    """(condition, log-odds, labels, groups or None): of test rows, else of validation rows."""
    found = []
    for name in run.conditions:
        stored = [line for line in run.barriers if line["condition"] == name]
        # A benchmark whose test prompts have no answers to rank is measured on its validation part.
        own = [line for line in stored if line.get("part", "test") == "test"] or stored
        if not own:
            continue
        log_odds = np.concatenate([np.asarray(b["log_odds"], dtype=float) for b in own])
        labels = np.concatenate([np.asarray(b["labels"], dtype=float) for b in own])
        if len(log_odds) != len(labels):
            raise ValueError(
                f"A barrier of '{name}' in '{run.path}' has {len(log_odds)} log-odds and "
                f"{len(labels)} labels; it needs one each."
            )
        groups = (
            [str(g) for b in own for g in b["groups"]] if all("groups" in b for b in own) else None
        )
        found.append((name, log_odds, labels, groups))
    return found


def _pairs(log_odds: np.ndarray, labels: np.ndarray, groups: Sequence[str] | None) -> Cell | None:
    """Over groups: the mean over their pairs of positive and negative rows."""
    if groups is None:
        return None
    names, shares = np.asarray(groups), []
    for group in np.unique(names):
        own = names == group
        positive, negative = log_odds[own & (labels == 1)], log_odds[own & (labels == 0)]
        if len(positive) and len(negative):
            wins = 0.5 * (np.sign(positive[:, None] - negative) + 1.0)
            shares.append(float(wins.mean()))
    return Cell(interval(np.array(shares))) if shares else None
