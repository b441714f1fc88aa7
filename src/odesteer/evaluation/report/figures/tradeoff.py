"""Figure of effect against damage, with the Pareto front.

Effect (paired difference to the unsteered model) over damage (KL or perplexity), a line a method
and a point a dose. The Pareto front goes through the points of which no other has as much effect
with less damage or more effect with as much.
"""

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from odesteer.evaluation.report.figures.drawing import Drawing
from odesteer.evaluation.report.figures.style import (
    INK,
    STYLE_HERE,
    canvas,
    label_ends,
    look,
    zero_line,
)
from odesteer.evaluation.report.rows import PROMPT, Row, unsteered
from odesteer.evaluation.report.table import Table


class Spot(NamedTuple):
    """One condition: damage and effect with its interval."""

    damage: float
    effect: float
    low: float
    high: float
    method: str
    label: str


def tradeoff_drawing(rows: Sequence[Row], table: Table, effect: int, damage: int) -> Drawing | None:
    """The figure of two columns of the main table; None where fewer than two rows have both."""
    base = unsteered(rows)
    lines = _lines(rows, table, effect, damage)
    spots = [spot for own in lines for spot in own]
    if base is None or len(spots) < 2:
        return None
    column, cost = table.columns[effect], table.columns[damage]
    start = _damage_of_unsteered(table, damage)
    wanted = -1.0 if column.better == "lower" else 1.0
    with matplotlib.rc_context(STYLE_HERE):
        figure, axes = canvas()
        zero_line(axes)
        ends = []
        for own in lines:
            last = own[-1]
            _line(axes, own, start)
            ends.append((last.damage, last.effect, last.label, look(last.method).colour))
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
    """Points on the front of (damage, effect), from least to most damage.

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
    """Spots that differ in their dose alone, from the least to the most damage.

    Where a run varies doses, its lines are shown alone: single conditions, such as those of a
    sweep over layers, would hide them. What was chosen on validation data is one more dose.
    """
    by_id = {line.id: line for line in table.lines if line.source == "run"}
    found: dict[tuple[object, ...], list[Spot]] = {}
    chosen: dict[str, list[Spot]] = {}
    for row in rows:
        one, other = (by_id[row.condition.id].cells[i] for i in (effect, damage))
        if row.method == PROMPT or one is None or other is None:
            continue
        if one.difference is None or other.value is None:
            continue
        mean, low, high, _ = one.difference.interval
        c = row.condition
        spot = Spot(other.value.mean, mean, low, high, row.method, row.label)
        if np.isfinite([spot.damage, spot.effect]).all():
            if c.chosen:
                chosen.setdefault(row.family, []).append(spot)
            else:
                found.setdefault((row.family, repr(c.layer), c.steps), []).append(spot)
    for family, own in chosen.items():
        places = [key for key in found if key[0] == family] or [(family,)]
        found.setdefault(places[0] if len(places) == 1 else (family, "chosen"), []).extend(own)
    lines = [sorted(own, key=lambda spot: spot.damage) for own in found.values()]
    return [own for own in lines if len(own) > 1] or lines


def _damage_of_unsteered(table: Table, damage: int) -> float:
    line = next(line for line in table.lines if line.method == "none" and line.source == "run")
    cell = line.cells[damage]
    return 0.0 if cell is None or cell.value is None else cell.value.mean


def _line(axes: Axes, own: Sequence[Spot], start: float) -> None:
    colour, marker, line = look(own[0].method)
    x = np.array([s.damage for s in own])
    mean, low, high = np.array([[s.effect, s.low, s.high] for s in own]).T
    spread = np.nan_to_num(np.stack([mean - low, high - mean]).clip(min=0))
    axes.errorbar(x, mean, yerr=spread, color=colour, fmt="none", capsize=1.5, linewidth=0.8,
                  alpha=0.6, zorder=2)  # fmt: skip
    axes.plot([start, *x], [0.0, *mean], color=colour, linestyle=line, linewidth=1.3, zorder=3)
    axes.plot(x, mean, color=colour, marker=marker, linestyle="none", markersize=4.5, zorder=3)
