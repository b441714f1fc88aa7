"""Charts of a run: overview, sweeps, effect against damage.

Sweeps over dose, layer or steps are figures 3 (CAA by layer), 4 (steps at a fixed T), 5 (T) and 6
(ODESteer by layer) of the paper, for any run that varies one of them and keeps the others. They
show the paired difference to the unsteered model with its interval, one line per method.

Effect (paired difference to the unsteered model) over damage (KL or perplexity) has one line per
method and one point per dose. On the Pareto front, no other point has as much effect with less
damage, or more effect with as much.

Barriers have figure 2 of the paper (h along the trajectories of held-out negatives), and their
calibration on held-out rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from odesteer.evaluation.report.figure_style import (
    FAINT,
    INK,
    STYLE_HERE,
    Drawing,
    canvas,
    label_ends,
    look,
    zero_line,
    zero_line_down,
)
from odesteer.evaluation.report.measures import (
    PROMPT,
    Measure,
    Row,
    amount,
    dose_words,
    headline,
    method_rank,
    name_of,
    steered,
    unsteered,
)
from odesteer.evaluation.report.run import Run
from odesteer.evaluation.report.tables import Column, Line, Table, headings, held_out, number
from odesteer.evaluation.statistics import PairedDifference
from odesteer.steering.calibration import reliability


def figures_of(
    run: Run, rows: Sequence[Row], measures: Sequence[Measure], table: Table
) -> tuple[Drawing, ...]:
    """Those whose data the run has; `table` is its main table, with `measures` as columns."""
    effect = list(measures).index(headline(measures))
    costs = [i for i, measure in enumerate(measures) if measure.name in ("kl", "perplexity")]
    drawn: list[Drawing | None] = [overview_drawing(table, effect)]
    drawn += [tradeoff_drawing(rows, table, effect, cost) for cost in costs if cost != effect]
    drawn += sweep_drawings(rows, table, effect)
    return tuple(each for each in drawn if each is not None)


MOST = 40  # rows that can still be read
LONGEST = 38  # characters of a label
_ROW, _MARGIN = 0.165, 0.75  # inches


def overview_drawing(table: Table, column: int) -> Drawing | None:
    """Draw paired differences with their intervals, in the order of the main table.

    None where there is nothing to compare, or more than can be read; sweeps have figures of their
    own.
    """
    lines = [line for line in table.lines if _change(line, column) is not None]
    groups = headings(lines)
    rows = len(lines) + len(groups)
    if len(lines) < 2 or rows > MOST:
        return None
    metric = table.columns[column]
    with matplotlib.rc_context(STYLE_HERE):
        height = _ROW * rows + _MARGIN
        figure, axes = canvas((4.9, height))
        longest = max(len(text) for group, members in groups for text in (group, *_labels(members)))
        figure.subplots_adjust(
            left=0.03 + min(longest, LONGEST) * 0.0133,
            right=0.97,
            bottom=0.5 / height,
            top=1.0 - 0.1 / height,
        )
        zero_line_down(axes)
        names, y = [], 0
        for heading, members in groups:
            names.append((y, heading, FAINT))
            for line, label in zip(members, _labels(members), strict=True):
                y += 1
                names.append((y, label, INK))
                mean, low, high = _change(line, column) or (np.nan,) * 3
                cell = line.cells[column]
                look_ = look(line.method)
                axes.plot([low, high], [y, y], color=look_.colour, linewidth=1.4)
                # Hollow: not significant. The same is said by the asterisks of the table.
                filled = cell is not None and cell.significant
                axes.plot(mean, y, marker=look_.marker, color=look_.colour, markersize=5,
                          markerfacecolor=look_.colour if filled else "none")  # fmt: skip
            y += 1
        axes.set_yticks([y for y, _, _ in names], [name for _, name, _ in names])
        for tick, (_, _, colour) in zip(axes.get_yticklabels(), names, strict=True):
            tick.set_color(colour)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set(ylim=(rows - 0.4, -0.6), xlabel=f"change of {metric.label} {metric.arrow}")
    caption = (
        f"Paired difference of {metric.label} to the unsteered model with 95 % intervals; a filled "
        f"mark is significant after Holm's correction within the main table."
    )
    return Drawing("overview", f"{metric.label} of all conditions", caption, figure)


def _labels(lines: Sequence[Line]) -> list[str]:
    """Return labels, with the setting where a label alone would be ambiguous."""
    plain = [line.label for line in lines]
    full = [
        f"{line.label}, {line.setting}" if plain.count(line.label) > 1 else line.label
        for line in lines
    ]
    return [text if len(text) <= LONGEST else text[: LONGEST - 1] + "…" for text in full]


def _change(line: Line, column: int) -> tuple[float, float, float] | None:
    cell = line.cells[column]
    if cell is None or cell.difference is None or np.isnan(cell.difference.interval.mean):
        return None
    return cell.difference.interval[:3]


LEAST = 3  # points that make a curve


class Axis(NamedTuple):
    """Varied setting: its value in a row, and the settings that stay fixed."""

    name: str
    title: str
    label: str
    value: Callable[[Row], float | None]
    fixed: Callable[[Row], tuple[Any, ...]]


class Point(NamedTuple):
    x: float
    change: PairedDifference


def _layer(row: Row) -> float | None:
    layer = row.condition.layer
    return float(layer) if isinstance(layer, int) else None


def _type(row: Row) -> str:
    return str((row.condition.dose or {}).get("type"))


AXES = (
    Axis("dose", "Dose response", "dose", lambda row: amount(row.condition.dose),
         lambda row: (_type(row), repr(row.condition.layer), row.condition.steps)),
    Axis("layer", "Effect by layer", "layer steered (0-based block)", _layer,
         lambda row: (dose_words(row.condition.dose), row.condition.steps)),
    Axis("steps", "Effect by solver steps", "steps of the solver",
         lambda row: row.condition.steps,
         lambda row: (dose_words(row.condition.dose), repr(row.condition.layer))),
)  # fmt: skip
_DOSES = {
    "angle": "angle: path length / ‖a‖",
    "path-length": "path length",
    "time": "strength T: integration time",
    "target": "budget of the target",
}
_PAPER = {"dose": "Figure 5", "layer": "Figures 3 and 6", "steps": "Figure 4"}


def sweep_drawings(rows: Sequence[Row], table: Table, column: int) -> list[Drawing]:
    """Draw a figure for each setting that the run varies while it keeps the rest."""
    changes = {
        line.id: cell.difference
        for line in table.lines
        if (cell := line.cells[column]) is not None and cell.difference is not None
    }
    unsteered = next((line for line in table.lines if line.method == "none"), None)
    base = unsteered.cells[column] if unsteered else None
    start = float("nan") if base is None or base.value is None else base.value.mean
    drawings = []
    for axis in AXES:
        for i, (fixed, curves) in enumerate(_curves(axis, rows, changes).items()):
            name = axis.name if i == 0 else f"{axis.name}-{i + 1}"
            drawings.append(_drawn(axis, fixed, curves, table.columns[column], start, name))
    return drawings


def _curves(
    axis: Axis, rows: Sequence[Row], changes: Mapping[str, PairedDifference]
) -> dict[tuple[Any, ...], dict[tuple[str, str], list[Point]]]:
    """Return points from left to right, by fixed settings and by (method, label)."""
    groups: dict[tuple[Any, ...], dict[tuple[str, str], list[Point]]] = {}
    for row in steered(rows):
        x = axis.value(row)
        if row.condition.chosen or row.condition.id not in changes or x is None:
            continue
        curves = groups.setdefault(axis.fixed(row), {})
        curves.setdefault((row.method, row.label), []).append(Point(x, changes[row.condition.id]))
    for fixed, curves in groups.items():
        groups[fixed] = {
            key: sorted(points)
            for key, points in curves.items()
            if len({point.x for point in points}) >= LEAST
        }
    return {fixed: curves for fixed, curves in groups.items() if curves}


def _drawn(
    axis: Axis,
    fixed: tuple[Any, ...],
    curves: Mapping[tuple[str, str], list[Point]],
    column: Column,
    start: float,
    name: str,
) -> Drawing:
    with matplotlib.rc_context(STYLE_HERE):
        figure, axes = canvas()
        zero_line(axes)
        width = max(p.x for points in curves.values() for p in points)
        for i, ((method, _), points) in enumerate(curves.items()):
            # Intervals at one place are drawn beside each other.
            shift = 0.006 * width * (i - (len(curves) - 1) / 2)
            x = [point.x + shift for point in points]
            _series(axes, method, x, [point.change.interval[:3] for point in points])
        axes.set(
            xlabel=_DOSES.get(str(fixed[0]), axis.label) if axis.name == "dose" else axis.label,
            ylabel=f"change of {column.label} {column.arrow}",
        )
        ticks = sorted({point.x for points in curves.values() for point in points})
        if len(ticks) <= 10:
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        elif axis.name != "dose":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        label_ends(
            axes,
            [
                (points[-1].x, points[-1].change.interval.mean, label, look(method).colour)
                for (method, label), points in curves.items()
            ],
            zero=f"unsteered {number(start, column.digits)}",
        )
    groups = max(point.change.groups for points in curves.values() for point in points)
    caption = (
        f"{axis.title} ({_PAPER[axis.name]} of the paper){_kept(axis, fixed)}: {column.label}, "
        f"paired difference to the unsteered model with 95 % intervals, {groups} groups."
    )
    return Drawing(name, f"{axis.title}: {column.label}", caption, figure)


def _series(
    axes: Axes, method: str, x: Sequence[float], changes: Sequence[tuple[float, float, float]]
) -> None:
    """Draw (mean, low, high) over x, in the colour, marker and line of the method."""
    colour, marker, line = look(method)
    mean, low, high = np.array(changes).T
    spread = np.nan_to_num(np.stack([mean - low, high - mean]).clip(min=0))
    axes.errorbar(x, mean, yerr=spread, color=colour, fmt="none", capsize=1.5, linewidth=0.8,
                  alpha=0.6, zorder=2)  # fmt: skip
    axes.plot(x, mean, color=colour, marker=marker, linestyle=line, markersize=4.5, linewidth=1.4,
              zorder=3)  # fmt: skip


def _kept(axis: Axis, fixed: tuple[Any, ...]) -> str:
    """Describe the settings that all points share."""
    if axis.name == "dose":
        layer, steps = fixed[1], fixed[2]
        settings = [f"layer {layer}" if layer != "None" else "", f"{steps} steps" if steps else ""]
    elif axis.name == "layer":
        settings = [fixed[0], f"{fixed[1]} steps" if fixed[1] else ""]
    else:
        settings = [fixed[0], f"layer {fixed[1]}" if fixed[1] != "None" else ""]
    words = ", ".join(setting for setting in settings if setting)
    return f" at {words}" if words else ""


class Spot(NamedTuple):
    """Condition with its damage and its effect with interval."""

    damage: float
    effect: float
    low: float
    high: float
    method: str
    label: str


def tradeoff_drawing(rows: Sequence[Row], table: Table, effect: int, damage: int) -> Drawing | None:
    """Draw two columns of the main table; None where fewer than two rows have both."""
    base = unsteered(rows)
    lines = _lines(rows, table, effect, damage)
    spots = [spot for line in lines for spot in line]
    if base is None or len(spots) < 2:
        return None
    column, cost = table.columns[effect], table.columns[damage]
    start = _damage_of_unsteered(table, damage)
    wanted = -1.0 if column.better == "lower" else 1.0
    with matplotlib.rc_context(STYLE_HERE):
        figure, axes = canvas()
        zero_line(axes)
        ends = []
        for line in lines:
            last = line[-1]
            colour, _, style = look(last.method)
            axes.plot([start, line[0].damage], [0.0, line[0].effect], color=colour, linestyle=style)
            _series(axes, last.method, [s.damage for s in line], [s[1:4] for s in line])
            ends.append((last.damage, last.effect, last.label, colour))
        front = pareto([(start, 0.0), *((s.damage, s.effect) for s in spots)], wanted)
        axes.plot(*zip(*front, strict=True), color=INK, linewidth=1.1, linestyle=":", zorder=4,
                  drawstyle="steps-post")  # fmt: skip
        axes.plot(start, 0.0, "o", color=INK, markersize=5, zorder=5)
        axes.set(
            xlabel=f"{cost.label}{' (nats a token)' if cost.key == 'kl' else ''}",
            ylabel=f"change of {column.label} {column.arrow}",
        )
        label_ends(axes, ends, zero="unsteered")
    caption = (
        f"Effect against damage. Each point is a dose, larger ones farther along the line; bars "
        f"are 95 % intervals of the paired difference, the dot is the unsteered model. On the "
        f"dotted line, the Pareto front, no other condition has as much for less {cost.label}."
    )
    name = f"effect-against-{cost.key.split()[0]}"
    return Drawing(name, f"{column.label} against {cost.label}", caption, figure)


def pareto(points: Sequence[tuple[float, float]], wanted: float) -> list[tuple[float, float]]:
    """Return the points on the Pareto front, from least to most damage.

    Args:
        points: (damage, effect).
        wanted: +1 where more effect is better, -1 where less is.
    """
    front: list[tuple[float, float]] = []
    for damage, effect in sorted(points, key=lambda p: (p[0], -wanted * p[1])):
        if not front or wanted * effect > wanted * front[-1][1]:
            front.append((damage, effect))
    return front


def _lines(rows: Sequence[Row], table: Table, effect: int, damage: int) -> list[list[Spot]]:
    """Group spots that differ in their dose alone, from least to most damage.

    If a run varies doses, only those lines are shown: single conditions, such as those of a sweep
    over layers, would hide them. A dose chosen on validation data is one more.
    """
    by_id = {line.id: line for line in table.lines}
    groups: dict[tuple[object, ...], list[Spot]] = {}
    chosen: dict[str, list[Spot]] = {}
    for row in rows:
        change, cost = (by_id[row.condition.id].cells[i] for i in (effect, damage))
        if row.method == PROMPT or change is None or cost is None:
            continue
        if change.difference is None or cost.value is None:
            continue
        c, interval = row.condition, change.difference.interval
        spot = Spot(cost.value.mean, *interval[:3], row.method, row.label)
        if np.isfinite([spot.damage, spot.effect]).all():
            if c.chosen:
                chosen.setdefault(row.family, []).append(spot)
            else:
                groups.setdefault((row.family, repr(c.layer), c.steps), []).append(spot)
    for family, spots in chosen.items():
        keys = [key for key in groups if key[0] == family] or [(family,)]
        groups.setdefault(keys[0] if len(keys) == 1 else (family, "chosen"), []).extend(spots)
    lines = [sorted(spots, key=lambda spot: spot.damage) for spots in groups.values()]
    return [spots for spots in lines if len(spots) > 1] or lines


def _damage_of_unsteered(table: Table, damage: int) -> float:
    line = next(line for line in table.lines if line.method == "none")
    cell = line.cells[damage]
    return 0.0 if cell is None or cell.value is None else cell.value.mean


def flow_drawing(run: Run) -> Drawing | None:
    """Draw h along the path, a band per method; None where no trajectory is stored."""
    paths: dict[str, tuple[np.ndarray, list[np.ndarray]]] = {}
    for line in run.trajectories:
        distance = np.asarray(line["distance"], dtype=float)
        h = np.asarray(line["log_odds"], dtype=float)
        if h.ndim != 2 or len(h) != len(distance):
            raise ValueError(
                f"The trajectory of '{line['condition']}' in '{run.path}' has {len(distance)} "
                f"distances and log-odds of shape {h.shape}; it needs a row of them each."
            )
        kept = paths.setdefault(line["condition"], (distance, []))
        if np.array_equal(kept[0], distance):
            kept[1].append(h)
    if not paths:
        return None
    order = sorted(paths, key=lambda name: method_rank(run.conditions[name].method))
    with matplotlib.rc_context(STYLE_HERE):
        figure, axes = canvas()
        ends = []
        for name in order:
            distance, h = paths[name][0], np.concatenate(paths[name][1], axis=1)
            condition = run.conditions[name]
            colour = look(condition.method).colour
            low, middle, high = np.quantile(h, [0.1, 0.5, 0.9], axis=1)
            axes.plot(distance, middle, color=colour, linewidth=2)
            axes.fill_between(distance, low, high, color=colour, alpha=0.15, linewidth=0)
            ends.append((distance[-1], float(np.median(h[-1])), name_of(condition), colour))
        axes.axhline(0.0, color="#999999", linewidth=0.8)
        axes.set(xlabel="path length / ‖a‖", ylabel="log-odds h(a) of the wanted class")
        label_ends(axes, ends, zero="h = 0")
    rows = max(sum(h.shape[1] for h in arrays) for _, arrays in paths.values())
    caption = (
        f"The barrier along the trajectories of {rows} held-out negatives (Figure 2 of the paper): "
        f"median and 10 to 90 % band of the calibrated log-odds, each by the method's own barrier. "
        f"Above 0 is what is wanted."
    )
    return Drawing("flow", "Barrier along the way", caption, figure)


def calibration_drawing(run: Run) -> Drawing | None:
    """Draw predicted against observed probability; None where no barrier is stored."""
    curves: dict[str, tuple[str, np.ndarray, np.ndarray]] = {}
    for name, log_odds, labels, _ in held_out(run):
        condition = run.conditions[name]
        if len(np.unique(labels)) == 2:
            curves.setdefault(condition.method, (name_of(condition), log_odds, labels))
    if not curves:
        return None
    with matplotlib.rc_context(STYLE_HERE):
        figure, axes = canvas()
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate("dashed: as predicted", (0.99, 0.03), xycoords="axes fraction", ha="right",
                      fontsize=7.5, color=FAINT)  # fmt: skip
        ends = []
        for method in sorted(curves, key=method_rank):
            label, log_odds, labels = curves[method]
            bins = reliability(log_odds, labels, balanced=True)
            x, y = np.array([(b.probability, b.frequency) for b in bins]).T
            # The error of a share of n rows; a bin's weight is what it stands for.
            n = np.array([b.n for b in bins])
            error = 1.96 * np.sqrt(np.clip(y * (1 - y), 1e-12, None) / n)
            colour, marker, line = look(method)
            axes.errorbar(x, y, yerr=[np.minimum(error, y), np.minimum(error, 1 - y)], color=colour,
                          fmt="none", capsize=1.5, linewidth=0.8, alpha=0.6)  # fmt: skip
            axes.plot(x, y, color=colour, marker=marker, linestyle=line, markersize=4.5,
                      linewidth=1.4)  # fmt: skip
            ends.append((float(x[-1]), float(y[-1]), label, colour))
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="P(wanted) by the barrier",
                 ylabel="share that is wanted")  # fmt: skip
        label_ends(axes, ends)
    caption = (
        "Calibration on held-out rows in ten bins of equal count, both classes weighed the same; "
        "bars are 95 % intervals of each share. Above the diagonal a barrier is too timid."
    )
    return Drawing("calibration", "Calibration of the barriers", caption, figure)
