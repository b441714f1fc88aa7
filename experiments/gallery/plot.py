"""Figure of the gallery."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from experiments.gallery.measure import ARROWS, GRID, grid
from experiments.gallery.result import SHOWN, Gallery
from experiments.gallery.toy_data import EXTENT, PLANES
from matplotlib.colors import BoundaryNorm, Colormap, LinearSegmentedColormap
from matplotlib.lines import Line2D
from PIL import Image

from odesteer.common.catalogue import BLUE, STYLE, VERMILION
from odesteer.common.files import write_whole

# Okabe and Ito's blue and vermillion for the classes; pale ones of the same hues for h.
WANTED, UNWANTED = BLUE, VERMILION
LEVELS = np.array([-16.0, -8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0])
COLUMNS = 2  # of methods
WIDTH = 9.0  # inches: shown 900 pixels wide, 8 points are 11 pixels


def gallery_figure(gallery: Gallery, path: Path) -> None:
    """Every method on every plane: barrier, field, and where held-out negatives go.

    Args:
        gallery: what was measured.
        path: the PNG, white behind, so that it can stand on a dark page.
    """
    methods = list(dict.fromkeys(method for method, _ in gallery.panels))
    rows = -(-len(methods) // COLUMNS)
    # All in inches.
    margin, gap, between, title, top, bottom = 0.08, 0.05, 0.22, 0.27, 0.16, 1.13
    width = (WIDTH - 2 * margin - (COLUMNS - 1) * between) / COLUMNS
    side = (width - (len(PLANES) - 1) * gap) / len(PLANES)
    tall = side * EXTENT[1] / EXTENT[0]
    size = (WIDTH, top + rows * (title + tall) + bottom)
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=size, facecolor="white")
        for number, method in enumerate(methods):
            row, column = number % rows, number // rows  # down, then right
            left = margin + column * (width + between)
            under = size[1] - top - row * (title + tall) - title
            figure.text(
                left / size[0],
                (under + 0.06) / size[1],
                method,
                fontsize=10,
                fontweight="bold",
                color="#222222",
            )
            for place, plane in enumerate(PLANES):
                x = left + place * (side + gap)
                box = (x / size[0], (under - tall) / size[1], side / size[0], tall / size[1])
                axes = figure.add_axes(box)
                _draw(axes, gallery, method, plane)
                if row == 0:
                    figure.text(
                        (x + side / 2) / size[0],
                        1.0 - 0.17 / size[1],
                        PLANES[plane].title,
                        ha="center",
                        fontsize=8.5,
                        color="#555555",
                    )
        _legend(figure, size, bottom)
        _save(figure, path, dpi=200)


def method_figure(gallery: Gallery, method: str, path: Path) -> None:
    """One method on every plane, beside each other; arguments as of `gallery_figure`."""
    with plt.rc_context(STYLE):
        tall = WIDTH / len(PLANES) * EXTENT[1] / EXTENT[0]
        figure, axes = plt.subplots(
            1, len(PLANES), figsize=(WIDTH, tall + 0.25), layout="constrained", facecolor="white"
        )
        for ax, (name, plane) in zip(axes, PLANES.items(), strict=True):
            _draw(ax, gallery, method, name)
            ax.set_title(plane.title, fontsize=8.5, color="#555555", loc="center")
        _save(figure, path, dpi=120)


def _save(figure: Any, path: Path, dpi: int) -> None:
    drawn = BytesIO()
    figure.savefig(drawn, dpi=dpi, facecolor="white")
    plt.close(figure)
    # 256 colours are all it has; written so, the file is a quarter as large.
    small = BytesIO()
    quantized = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    quantized.save(small, "PNG", optimize=True)
    write_whole(path, small.getvalue())


def colours() -> tuple[Colormap, BoundaryNorm]:
    """Pale vermillion below h = 0, pale blue above it, white next to it."""
    pale = LinearSegmentedColormap.from_list(
        "barrier", ["#F2B48A", "#FBE3D3", "#FFFFFF", "#D6E8F4", "#8FC1E3"]
    )
    return pale, BoundaryNorm(LEVELS, pale.N, extend="both")


def _draw(axes: Any, gallery: Gallery, method: str, plane: str) -> None:
    panel, outcome = gallery.panels[method, plane], gallery.outcome(method, plane, SHOWN)
    x, y = np.moveaxis(grid(*GRID).numpy(), -1, 0)
    cmap, norm = colours()
    if panel.log_odds is not None:
        axes.contourf(x, y, panel.log_odds, LEVELS, cmap=cmap, norm=norm, extend="both", zorder=0)
        axes.contour(x, y, panel.log_odds, [0.0], colors="#222222", linewidths=1.0, zorder=2)
    wanted = PLANES[plane].desired(grid(*GRID)).numpy().astype(float)
    axes.contour(x, y, wanted, [0.5], colors="#222222", linewidths=0.8, linestyles=":", zorder=2)
    for rows, colour in zip(gallery.examples[plane], (WANTED, UNWANTED), strict=True):
        few = rows[:: max(1, len(rows) // 150)]
        axes.scatter(*few.T, s=2.2, color=colour, linewidths=0, alpha=0.75, zorder=1)
    _arrows(axes, panel.direction)
    for track in np.moveaxis(panel.tracks, 1, 0):
        axes.plot(*track.T, color="#111111", linewidth=0.9, zorder=4, solid_capstyle="round")
        axes.plot(*track[0], "o", ms=2.6, mfc="white", mec="#111111", mew=0.6, zorder=5)
        axes.plot(*track[-1], "o", ms=2.8, color="#111111", mew=0, zorder=5)
    label = f"{100 * outcome.share.mean:.0f} %"
    if outcome.falls_short:
        label += f" at {outcome.moved:.1f}×"
    axes.text(
        0.97,
        0.04,
        label,
        transform=axes.transAxes,
        ha="right",
        fontsize=8,
        fontweight="bold",
        zorder=6,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.2},
    )
    axes.set(xlim=(-EXTENT[0], EXTENT[0]), ylim=(-EXTENT[1], EXTENT[1]), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color="#BBBBBB", linewidth=0.6)


def _arrows(axes: Any, direction: np.ndarray) -> None:
    x, y = np.moveaxis(grid(*ARROWS).numpy(), -1, 0)
    moves = np.linalg.norm(direction, axis=-1) > 0
    axes.quiver(
        x[moves],
        y[moves],
        direction[moves, 0],
        direction[moves, 1],
        color="#777777",
        alpha=0.9,
        angles="xy",
        scale_units="xy",
        scale=4.2,
        width=0.0055,
        headwidth=3.6,
        headlength=3.6,
        headaxislength=3.2,
        pivot="middle",
        zorder=3,
    )


def _legend(figure: Any, size: tuple[float, float], bottom: float) -> None:
    def dot(label: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="none", marker="o", label=label, **style)

    entries: Iterable[Line2D] = (
        dot("wanted examples", color=WANTED, markersize=4, markeredgewidth=0),
        dot("unwanted examples", color=UNWANTED, markersize=4, markeredgewidth=0),
        Line2D([], [], color="#222222", linewidth=1.2, label="learnt boundary, h = 0"),
        Line2D([], [], color="#222222", linewidth=1, linestyle=":", label="true boundary"),
        dot("held-out negative", mfc="white", mec="#111111", mew=0.7, markersize=4),
        Line2D(
            [],
            [],
            color="#111111",
            linewidth=1,
            marker="o",
            markersize=3.5,
            label="its way and end",
        ),
        Line2D(
            [], [], color="#666666", linestyle="none", marker="$→$", markersize=9, label="field v"
        ),
    )
    figure.legend(
        handles=list(entries),
        loc="upper left",
        bbox_to_anchor=(0.0, (bottom - 0.1) / size[1], 0.7, 0.0),
        mode="expand",
        ncols=4,
        fontsize=8,
        handlelength=1.6,
        handletextpad=0.5,
        borderaxespad=0.2,
    )
    bar = figure.add_axes((0.72, (bottom - 0.3) / size[1], 0.26, 0.1 / size[1]))
    cmap, norm = colours()
    # Every colour as wide as the others, although the levels double.
    places = np.arange(len(LEVELS) + 1)
    middles = np.array([-20.0, *((LEVELS[1:] + LEVELS[:-1]) / 2), 20.0])
    bar.imshow(
        cmap(norm(middles))[None],
        aspect="auto",
        extent=(0, len(places), 0, 1),
        interpolation="none",
    )
    named = [0, 2, 5, 8, 10]
    bar.set_xticks(
        [place + 1 for place in named],
        [f"{LEVELS[place]:+g}" if LEVELS[place] else "0" for place in named],
    )
    bar.set(yticks=[])
    bar.tick_params(labelsize=7.5, length=2)
    bar.set_xlabel("calibrated log-odds h", fontsize=8, labelpad=1)
    figure.text(
        0.012,
        0.1 / size[1],
        "Percent: held-out negatives that end inside the true boundary when every method moves "
        f"them equally far on average,\n{SHOWN:g} times their mean distance to it (or as far as "
        "the method goes, where it says so). Every point has a third coordinate,\n+1 or −1 by "
        "the toss of a coin, in place of an activation's many other coordinates. Seen from above, "
        "at +1.",
        fontsize=8,
        color="#333333",
        linespacing=1.3,
    )
