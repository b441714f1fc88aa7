"""Colours, markers and files of figures.

A method looks the same in every report, whatever else is in it, and has its own marker, so that
figures read in grey. Lines are labelled where they end.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from odesteer.common.catalogue import MARKERS, METHOD_COLOURS, PALETTE, STYLE
from odesteer.evaluation.report.measures import PROMPT, RANDOM, UNSTEERED, method_rank

# A page replaces them by its own text and background colours, light or dark.
INK, PAGE = "#101112", "#fefefd"
FAINT = "#808080"  # readable on both
# Dark tones, for which a page has lighter ones by night.
NIGHT = {"#0072b2": "--blue", "#aa4499": "--plum", "#8c6bb1": "--violet"}
SIZE = (4.9, 3.7)  # inches: at a phone's width 9 points are still 9 pixels
STYLE_HERE: dict[Any, Any] = {
    **STYLE,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "svg.fonttype": "path",
    "svg.hashsalt": "odesteer",  # the same figure is the same file
}


class MethodStyle(NamedTuple):
    colour: str
    marker: str
    line: str


def look(method: str) -> MethodStyle:
    """Return colour, marker and line of a method."""
    if method == UNSTEERED:
        return MethodStyle(FAINT, "o", "-")
    if method == PROMPT:
        return MethodStyle(FAINT, "X", ":")
    if method == RANDOM:
        return MethodStyle(FAINT, "s", "--")
    rank = method_rank(method)
    colour = METHOD_COLOURS.get(method, PALETTE[rank % len(PALETTE)])
    return MethodStyle(colour, MARKERS[rank % len(MARKERS)], "-")


def canvas(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    """Make a figure with room for labels on its right, under `STYLE_HERE`."""
    figure = Figure(figsize=size, dpi=160)
    figure.subplots_adjust(left=0.165, right=0.75, bottom=0.14, top=0.95)
    return figure, figure.add_subplot()


def zero_line(axes: Axes) -> None:
    """Draw the horizontal line of no change, which `label_ends` names."""
    axes.axhline(0.0, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)


def zero_line_down(axes: Axes) -> None:
    """Draw the vertical line of no change."""
    axes.axvline(0.0, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]], zero: str = "") -> None:
    """Write names beside the axes, each as near to its line's end as there is room.

    Args:
        axes: with its limits set.
        ends: (x, y, name, colour).
        zero: what the line at 0 is, if it has a name.
    """
    if zero:
        ends = [*ends, (axes.get_xlim()[1], 0.0, zero, FAINT)]
    if not ends:
        return
    figure = axes.figure
    longest = max(len(name) for _, _, name, _ in ends)
    room = 0.3 + 0.066 * longest  # inches, at 8 points
    figure.subplots_adjust(right=min(0.75, 1.0 - room / figure.get_size_inches()[0]))  # type: ignore[union-attr]
    gap = 10.0 / (72.0 * axes.bbox.height / axes.figure.dpi)  # 10 points, as a share of the axes
    low, high = axes.get_ylim()
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])
    heights = [(ends[i][1] - low) / (high - low) for i in order]
    for i, height in enumerate(_apart(heights, gap)):
        x, y, name, colour = ends[order[i]]
        axes.annotate(
            name,
            (x, y),
            (1.05, height),
            xycoords="data",
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            color=INK if colour == FAINT else colour,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.7,
                        "shrinkA": 0, "shrinkB": 3, "relpos": (0.0, 0.5)},
            annotation_clip=False,
        )  # fmt: skip


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move ascending heights as little as sets them `gap` apart, within 0 and 1."""
    blocks: list[list[float]] = []  # [mean of what its members want, how many]
    for height in heights:
        blocks.append([height, 1])
        while len(blocks) > 1 and _bottom(blocks[-1], gap) < _top(blocks[-2], gap) + gap:
            mean, count = blocks.pop()
            below = blocks[-1]
            below[0] = (below[0] * below[1] + mean * count) / (below[1] + count)
            below[1] += count
    positions = [_bottom(block, gap) + gap * i for block in blocks for i in range(int(block[1]))]
    over = max(positions[-1] - 1.0, 0.0)
    return [position - over for position in positions] if over else positions


def _bottom(block: Sequence[float], gap: float) -> float:
    return max(block[0] - gap * (block[1] - 1) / 2, 0.0)


def _top(block: Sequence[float], gap: float) -> float:
    return _bottom(block, gap) + gap * (block[1] - 1)


@dataclass(frozen=True)
class Drawing:
    """Figure with its title and caption.

    Attributes:
        name: of its file.
        title: one line.
        caption: of what is drawn, and how to read it.
        figure: drawn under `STYLE_HERE`.
    """

    name: str
    title: str
    caption: str
    figure: Figure = field(repr=False, compare=False)

    def file(self, kind: str) -> bytes:
        """Return a "png", "pdf" or "svg" file, on a white page."""
        with matplotlib.rc_context(STYLE_HERE):
            out = io.BytesIO()
            # Without dates, the same run gives the same bytes.
            dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
            self.figure.savefig(out, format=kind, facecolor="white", metadata=dates or None)
        return out.getvalue()

    def inline(self, page: str = "figure") -> str:
        """Return an SVG element for an HTML page, in the page's own colours.

        HTML knows SVG without namespaces. Ids begin with `page` and the name, since a page has
        several figures.
        """
        with matplotlib.rc_context(STYLE_HERE):
            out = io.StringIO()
            self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        text = out.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
        text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
        text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{page}-{self.name}-", text)
        text = text.replace(INK, "currentColor").replace(PAGE, "var(--page)")
        for colour, variable in NIGHT.items():
            text = text.replace(colour, f"var({variable})")
        text = re.sub(r"\n\s*", "\n", text)
        size = re.search(r'viewBox="[^"]*"', text)
        assert size is not None  # matplotlib always writes one
        opening = f'<svg {size[0]} role="img" aria-label="{escape(self.title, quote=True)}">'
        return opening + text[text.index(">", text.index("<svg")) + 1 :]
