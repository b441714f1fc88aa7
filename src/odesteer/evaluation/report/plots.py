"""Figures from plain numbers."""

import io
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from odesteer.common.files import write_whole
from odesteer.common.palette import METHOD_COLOURS as COLOURS
from odesteer.common.palette import STYLE
from odesteer.ode import QuadraticBarrier

# Figures go to files, for which no window system is needed; a notebook keeps its own backend.
if not os.environ.get("MPLBACKEND") and "matplotlib.pyplot" not in sys.modules:
    matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Of the demo's figures and page.
LABELS = {
    "none": "unsteered",
    "caa": "CAA",
    "iti": "ITI",
    "odesteer-one-step": "one Euler step",
    "odesteer": "ODESteer",
}


def _write(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG and close it; the file is whole or absent."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    plt.close(figure)
    write_whole(path, image.getvalue())


def flow_figure(
    distance: np.ndarray, paths: Mapping[str, np.ndarray], path: Path, layer: int
) -> None:
    """Draw h along the path of held-out negatives (Figure 2 of the paper).

    Args:
        distance: path length over ||a|| at every point, [steps + 1].
        paths: calibrated h of every negative by method, [steps + 1, rows].
        path: the PNG.
        layer: for the title.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
        draw_flow(axes, distance, {LABELS[name]: (COLOURS[name], h) for name, h in paths.items()})
        rows = next(iter(paths.values())).shape[1]
        axes.set(
            title=f"Barrier along the way of {rows} held-out negatives, layer {layer}\n"
            "(median, 10 to 90 % band)",
        )
        axes.legend(loc="upper left")
        _write(figure, path)


def draw_flow(
    axes: Axes, distance: np.ndarray, paths: Mapping[str, tuple[str, np.ndarray]]
) -> None:
    """Draw the median and the 10 to 90 % band of h along the path.

    Args:
        axes: to draw into.
        distance: path length over ||a|| at every point, [steps + 1].
        paths: colour and h of every negative by label, [steps + 1, rows].
    """
    axes.axhline(0.0, color="#999999", linewidth=0.8)
    axes.annotate(
        "desired region, h ≥ 0",
        (1, 0),
        (0, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        color="#777777",
    )
    for label, (colour, h) in paths.items():
        low, middle, high = np.quantile(h, [0.1, 0.5, 0.9], axis=1)
        axes.plot(distance, middle, color=colour, label=label, linewidth=2)
        axes.fill_between(distance, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="path length / ‖a‖", ylabel="log-odds h(a) of the wanted class")


def tradeoff_figure(rows: Sequence[Mapping[str, Any]], unit: str, path: Path) -> None:
    """Draw effect against fluency for each method over doses.

    Args:
        rows: with `method`, `dose`, `perplexity` and `effect` (mean, low, high), the
            unsteered one first.
        unit: of the effect.
        path: the PNG.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
        base = rows[0]
        methods = dict.fromkeys(row["method"] for row in rows[1:])
        # Intervals of methods at one dose overlap; a small shift keeps them apart.
        for number, method in enumerate(methods):
            points = [base, *[row for row in rows if row["method"] == method]]
            shift = 1.0 + 0.006 * (number - (len(methods) - 1) / 2)
            x = np.array([row["perplexity"] for row in points]) * shift
            x[0] = base["perplexity"]
            mean, low, high = np.array([row["effect"][:3] for row in points]).T
            axes.errorbar(
                x[1:],
                mean[1:],
                yerr=np.abs(np.stack([mean - low, high - mean])[:, 1:]),
                color=COLOURS[method],
                fmt="o",
                capsize=2.5,
                linewidth=1.2,
            )
            axes.plot(x, mean, color=COLOURS[method], linewidth=1.8, label=LABELS[method])
            for row, x_, y_ in zip(points[1:], x[1:], mean[1:], strict=True):
                axes.annotate(
                    f"{row['dose']:g}",
                    (x_, y_),
                    # Above for the first method, below for the second: labels at one dose
                    # do not cover each other.
                    (5, (6, 0, -12)[number % 3]),
                    textcoords="offset points",
                    fontsize=8,
                    color=COLOURS[method],
                )
        axes.axhline(base["effect"][0], color=COLOURS["none"], linewidth=0.8, linestyle=":")
        axes.plot(base["perplexity"], base["effect"][0], "o", color=COLOURS["none"], markersize=8)
        axes.annotate(
            "unsteered",
            (base["perplexity"], base["effect"][0]),
            (9, 5),
            textcoords="offset points",
            color=COLOURS["none"],
        )
        axes.set(
            xlabel="perplexity of the text under the unsteered model",
            ylabel=unit,
            title=f"Effect against fluency (n = {base['effect'][3]} prompts, 95 % intervals;\n"
            "numbers are path length / ‖a‖)",
        )
        axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="none")
        _write(figure, path)


def portrait_figure(
    barrier: QuadraticBarrier,
    field_rows: Tensor,
    trajectories: Tensor,
    scale: float,
    offset: float,
    path: Path,
    layer: int,
) -> None:
    """Draw the field in the plane of its two main directions, with real trajectories.

    The plane is spanned by the two directions that hold most of the field at `field_rows`.
    Contours and arrows show h and v on the slice of the sphere through that plane and the
    mean remainder of the rows; the trajectories are activations projected onto the plane.

    Args:
        barrier: h.
        field_rows: activations, [n, d].
        trajectories: [steps + 1, m, d].
        scale, offset: the calibration of h.
        path: the PNG.
        layer: for the title.
    """
    white = barrier.whitening

    def unit(a: Tensor) -> Tensor:
        y = white(a)
        return y / y.norm(dim=-1, keepdim=True)

    gradient, _ = barrier.gradient_in_y(field_rows)
    directions = gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    _, singular, right = torch.linalg.svd(directions, full_matrices=False)
    plane = right[:2]
    if (directions @ plane[0]).mean() < 0:
        plane = torch.stack([-plane[0], plane[1]])
    share = float(singular[:2].square().sum() / singular.square().sum())
    rest = unit(field_rows).mean(dim=0)
    rest = rest - plane.mT @ (plane @ rest)
    rest = rest / rest.norm()

    tracks = (unit(trajectories) @ plane.mT).numpy()
    low, high = tracks.min(axis=(0, 1)), tracks.max(axis=(0, 1))
    margin = 0.08 * (high[0] - low[0])
    low, high = low - margin, np.maximum(high, low + 0.35 * (high[0] - low[0])) + margin
    gx, gy = np.meshgrid(np.linspace(low[0], high[0], 97), np.linspace(low[1], high[1], 65))
    xy = torch.as_tensor(np.stack([gx, gy], axis=-1), dtype=torch.float32)
    squared = xy.square().sum(dim=-1, keepdim=True)
    points = white.power(xy @ plane + (1.0 - squared).clamp_min(1e-3).sqrt() * rest, 1)
    points = points + white.centre
    outside = squared[..., 0].numpy() > 0.995  # no point of the sphere lies there
    h = np.where(outside, np.nan, (scale * barrier.value(points) + offset).numpy())
    arrows = (barrier.gradient_in_y(points)[0] @ plane.mT).numpy()
    arrows[outside] = np.nan

    with plt.rc_context(STYLE):
        height = 1.1 + 5.4 * (high[1] - low[1]) / (high[0] - low[0])
        figure, axes = plt.subplots(figsize=(7.2, min(height, 6.5)), layout="constrained")
        # White is h = 0 and both signs get their own half of the colours.
        bottom, top = min(float(np.nanmin(h)), -1.0), max(float(np.nanmax(h)), 1.0)
        norm = TwoSlopeNorm(0.0, vmin=bottom, vmax=top)
        levels = MaxNLocator(24).tick_values(bottom, top)
        shade = axes.contourf(gx, gy, h, levels=levels, cmap="RdBu", norm=norm, alpha=0.75)
        axes.contour(gx, gy, h, levels=[0.0], colors="black", linewidths=1.2)
        step = slice(4, None, 8)
        length = np.linalg.norm(arrows, axis=-1, keepdims=True)
        short = arrows / np.maximum(length, 1e-12)
        axes.quiver(
            gx[step, step],
            gy[step, step],
            short[step, step, 0],
            short[step, step, 1],
            color="#444444",
            alpha=0.55,
            width=0.0025,
            scale=34,
        )
        for track in tracks.transpose(1, 0, 2):
            axes.plot(track[:, 0], track[:, 1], color="#111111", linewidth=0.9, alpha=0.8)
            axes.plot(*track[0], "o", color="white", markeredgecolor="#111111", markersize=4)
            axes.plot(*track[-1], "o", color="#111111", markersize=3)
        ticks = MaxNLocator(6).tick_values(bottom, top)
        figure.colorbar(shade, label="log-odds h of the wanted class", ticks=ticks)
        axes.set(
            xlabel="main direction of the field",
            ylabel="second direction",
            aspect="equal",
            title=f"Phase portrait at layer {layer}: {tracks.shape[1]} held-out negatives\n"
            f"(○ start, ● end; the plane holds {share:.0%} of the field)",
        )
        _write(figure, path)
