"""Figures of sweeps over dose, layer or steps.

Figures 3 (CAA by layer), 4 (steps at a fixed T), 5 (T) and 6 (ODESteer by layer) of the paper,
from any run that varies one of them and keeps the others: drawn is the paired difference to the
unsteered model with its interval, a line a method.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from odesteer.evaluation.report.figures.drawing import Drawing
from odesteer.evaluation.report.figures.style import STYLE_HERE, canvas, label_ends, look, zero_line
from odesteer.evaluation.report.rows import Row, amount, dose_words, steered
from odesteer.evaluation.report.table import Column, Table, number
from odesteer.evaluation.statistics.paired_tests import PairedDifference

LEAST = 3  # points that make a curve


class Axis(NamedTuple):
    """What is varied: its value in a row, and all that has to be the same."""

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
    """A figure for everything that the run varies while it keeps the rest."""
    changes = {
        line.id: cell.difference
        for line in table.lines
        if (cell := line.cells[column]) is not None and cell.difference is not None
    }
    unsteered = next((line for line in table.lines if line.method == "none"), None)
    base = unsteered.cells[column] if unsteered else None
    start = float("nan") if base is None or base.value is None else base.value.mean
    found = []
    for axis in AXES:
        for place, (fixed, curves) in enumerate(_curves(axis, rows, changes).items()):
            name = axis.name if place == 0 else f"{axis.name}-{place + 1}"
            found.append(_drawn(axis, fixed, curves, table.columns[column], start, name))
    return found


def _curves(
    axis: Axis, rows: Sequence[Row], changes: Mapping[str, PairedDifference]
) -> dict[tuple[Any, ...], dict[tuple[str, str], list[Point]]]:
    """By what is fixed, by (method, label): points from left to right."""
    found: dict[tuple[Any, ...], dict[tuple[str, str], list[Point]]] = {}
    for row in steered(rows):
        x = axis.value(row)
        if row.condition.chosen or row.condition.id not in changes or x is None:
            continue
        curves = found.setdefault(axis.fixed(row), {})
        curves.setdefault((row.method, row.label), []).append(Point(x, changes[row.condition.id]))
    for fixed, curves in found.items():
        found[fixed] = {
            key: sorted(points)
            for key, points in curves.items()
            if len({point.x for point in points}) >= LEAST
        }
    return {fixed: curves for fixed, curves in found.items() if curves}


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
        for place, ((method, _), points) in enumerate(curves.items()):
            # Intervals at one place are drawn beside each other.
            shift = 0.006 * width * (place - (len(curves) - 1) / 2)
            _curve(axes, method, points, shift)
        axes.set(
            xlabel=_DOSES.get(str(fixed[0]), axis.label) if axis.name == "dose" else axis.label,
            ylabel=f"change of {column.label} {column.arrow}",
        )
        places = sorted({point.x for points in curves.values() for point in points})
        if len(places) <= 10:
            axes.set_xticks(places, [f"{place:g}" for place in places])
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


def _curve(axes: Axes, method: str, points: Sequence[Point], shift: float) -> None:
    colour, marker, line = look(method)
    x = np.array([point.x for point in points]) + shift
    mean, low, high = np.array([point.change.interval[:3] for point in points]).T
    spread = np.nan_to_num(np.stack([mean - low, high - mean]).clip(min=0))
    axes.errorbar(x, mean, yerr=spread, color=colour, fmt="none", capsize=1.5, linewidth=0.8,
                  alpha=0.6, zorder=2)  # fmt: skip
    axes.plot(x, mean, color=colour, marker=marker, linestyle=line, markersize=4.5, linewidth=1.4,
              zorder=3)  # fmt: skip


def _kept(axis: Axis, fixed: tuple[Any, ...]) -> str:
    """What is the same for all points, in words."""
    if axis.name == "dose":
        layer, steps = fixed[1], fixed[2]
        said = [f"layer {layer}" if layer != "None" else "", f"{steps} steps" if steps else ""]
    elif axis.name == "layer":
        said = [fixed[0], f"{fixed[1]} steps" if fixed[1] else ""]
    else:
        said = [fixed[0], f"layer {fixed[1]}" if fixed[1] != "None" else ""]
    known = [words for words in said if words]
    return f" at {', '.join(known)}" if known else ""
