"""Figure of effect against damage over trials.

One line per layer and one point per dose, with the Pareto front, the budget and the chosen trial.
Colours are Okabe and Ito's, which colour-blind readers can tell apart, and each layer has its own
marker, so that the figure also reads in grey.
"""

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from odesteer.common.files import write_whole
from odesteer.common.palette import MARKERS, PALETTE, STYLE
from odesteer.evaluation.selection.result import Trial, Tuned, layer_name

_GREY, _DARK = "#777777", "#222222"


def draw(tuned: Tuned, path: Path) -> Path:
    """Write the figure as a PNG; the file is whole or absent."""
    with matplotlib.rc_context(STYLE):
        # Without pyplot: no window system, and nothing global is changed.
        figure = Figure(figsize=(7.0, 5.2), dpi=160, layout="constrained")
        axes = figure.add_subplot()
        _budget(axes, tuned)
        _trials(axes, tuned)
        _front(axes, tuned)
        _chosen(axes, tuned)
        axes.set(
            xlabel="damage: KL from the unsteered model, 95th percentile over tokens (nats)",
            ylabel="effect, standard deviations of the unsteered read-out\n"
            f"({tuned.wanted.label}, 95 % interval)",
            title=_title(tuned),
        )
        # Below the axes: intervals can reach into every corner.
        figure.legend(loc="outside lower center", ncols=3)
        image = io.BytesIO()
        FigureCanvasAgg(figure).print_png(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, image.getvalue())
    return path


def _title(tuned: Tuned) -> str:
    target = tuned.wanted.target
    if target is None:
        done = "the largest effect within the budget"
    else:
        done = f"{target} {'reached' if tuned.met else 'not reached'}"
    budget = tuned.wanted.budget.replace("<=", "≤")
    return f"{tuned.steering.method}: {done.replace('>=', '≥').replace('<=', '≤')}\n({budget})"


def _budget(axes: Axes, tuned: Tuned) -> None:
    limit = tuned.wanted.max_kl
    damage = [trial.kl_95 for trial in tuned.rows if np.isfinite(trial.kl_95)]
    right = 1.06 * max(damage, default=1.0) or 1.0
    axes.set_xlim(-0.02 * right, right)
    if limit < right:
        axes.axvspan(limit, right, color="#EEEEEE", zorder=0)
        axes.axvline(limit, color=_GREY, linewidth=1.0, linestyle="--", zorder=1)
        axes.annotate(
            f"budget {limit:g}",
            (limit, 1.0),
            (4, -2),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            color=_GREY,
            fontsize=9,
        )


def _trials(axes: Axes, tuned: Tuned) -> None:
    origin = tuned.rows[0]
    steered = [trial for trial in tuned.rows if trial.layer is not None]
    for number, layer in enumerate(dict.fromkeys(trial.layer for trial in steered)):
        colour = PALETTE[number % len(PALETTE)]
        marker = MARKERS[number % len(MARKERS)]
        trials = [trial for trial in steered if trial.layer == layer]
        axes.plot(*_points([origin, *trials]), color=colour, linewidth=1.0, alpha=0.5, zorder=2)
        for trial in trials:
            x, y = trial.kl_95, trial.effect.mean
            axes.errorbar(
                x,
                y,
                yerr=[[max(y - trial.effect.low, 0.0)], [max(trial.effect.high - y, 0.0)]],
                color=colour,
                marker=marker,
                markersize=6,
                markerfacecolor=colour if trial.feasible else "white",
                capsize=2.5,
                linewidth=1.0,
                zorder=3,
            )
        axes.plot([], [], color=colour, marker=marker, label=f"layer {layer_name(layer)}")
    if not all(trial.feasible for trial in steered):
        axes.plot([], [], "o", color=_GREY, markerfacecolor="white", label="beyond the budget")
    axes.plot(*_points([origin]), "o", color=_DARK, markersize=6, zorder=4)
    axes.annotate(
        "unsteered",
        (origin.kl_95, origin.effect.mean),
        (8, -4),
        textcoords="offset points",
        va="top",
        color=_DARK,
        fontsize=9,
    )


def _front(axes: Axes, tuned: Tuned) -> None:
    axes.plot(
        *_points(tuned.pareto),
        color=_DARK,
        linewidth=1.6,
        linestyle=":",
        drawstyle="steps-post",
        label="Pareto front",
        zorder=4,
    )


def _chosen(axes: Axes, tuned: Tuned) -> None:
    chosen = tuned.chosen
    what = (
        "unsteered" if chosen.layer is None else f"layer {layer_name(chosen.layer)}, {chosen.dose}"
    )
    ring: dict[str, Any] = {"color": _DARK, "markerfacecolor": "none", "markeredgewidth": 1.6}
    axes.plot(*_points([chosen]), "o", markersize=14, zorder=5, **ring)
    axes.plot([], [], "o", markersize=9, label=f"chosen: {what}", **ring)


def _points(trials: list[Trial]) -> tuple[list[float], list[float]]:
    return [trial.kl_95 for trial in trials], [trial.effect.mean for trial in trials]
