"""Overview figure: the effect of every condition on one scale."""

from collections.abc import Sequence

import matplotlib
import numpy as np

from odesteer.evaluation.report.figures.drawing import Drawing
from odesteer.evaluation.report.figures.style import (
    FAINT,
    INK,
    STYLE_HERE,
    canvas,
    look,
    zero_line_down,
)
from odesteer.evaluation.report.table import Line, Table, headings

MOST = 40  # rows that can still be read
LONGEST = 38  # characters of a label
_ROW, _MARGIN = 0.165, 0.75  # inches


def overview_drawing(table: Table, column: int) -> Drawing | None:
    """Paired differences with their intervals, in the order of the main table.

    None where there is nothing to compare, or more than can be read; sweeps have figures of their
    own.
    """
    lines = [line for line in table.lines if _change(line, column) is not None]
    groups = headings(lines)
    rows = len(lines) + len(groups)
    if len(lines) < 2 or rows > MOST:
        return None
    one = table.columns[column]
    with matplotlib.rc_context(STYLE_HERE):
        height = _ROW * rows + _MARGIN
        figure, axes = canvas((4.9, height))
        longest = max(len(text) for group, own in groups for text in (group, *_labels(own)))
        figure.subplots_adjust(
            left=0.03 + min(longest, LONGEST) * 0.0133,
            right=0.97,
            bottom=0.5 / height,
            top=1.0 - 0.1 / height,
        )
        zero_line_down(axes)
        names, place = [], 0
        for heading, own in groups:
            names.append((place, heading, FAINT))
            for line, label in zip(own, _labels(own), strict=True):
                place += 1
                names.append((place, label, INK))
                mean, low, high = _change(line, column) or (np.nan,) * 3
                cell = line.cells[column]
                look_ = look(line.method)
                axes.plot([low, high], [place, place], color=look_.colour, linewidth=1.4)
                # Hollow: not significant. The same is said by the asterisks of the table.
                filled = cell is not None and cell.significant
                axes.plot(mean, place, marker=look_.marker, color=look_.colour, markersize=5,
                          markerfacecolor=look_.colour if filled else "none")  # fmt: skip
            place += 1
        axes.set_yticks([y for y, _, _ in names], [name for _, name, _ in names])
        for tick, (_, _, colour) in zip(axes.get_yticklabels(), names, strict=True):
            tick.set_color(colour)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set(ylim=(rows - 0.4, -0.6), xlabel=f"change of {one.label} {one.arrow}")
    caption = (
        f"Paired difference of {one.label} to the unsteered model with 95 % intervals; a filled "
        f"mark is significant after Holm's correction within the main table."
    )
    return Drawing("overview", f"{one.label} of all conditions", caption, figure)


def _labels(lines: Sequence[Line]) -> list[str]:
    """With the setting where a label alone would stand there twice."""
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
