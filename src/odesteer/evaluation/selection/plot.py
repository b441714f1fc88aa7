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

from odesteer.common.catalogue import MARKERS, PALETTE, STYLE
from odesteer.common.files import write_whole
from odesteer.evaluation.selection.result import Trial, Tuned, layer_name, name_of

_GREY, _DARK = "#777777", "#222222"
_NOTE: dict[str, Any] = {"color": _GREY, "fontsize": 9}


def draw(tuned: Tuned, path: Path) -> Path:
    """Write the figure as a PNG; the file is whole or absent."""
    with matplotlib.rc_context(STYLE):
        # Without pyplot: no window system, and nothing global is changed.
        figure = Figure(figsize=(7.0, 5.2), dpi=160, layout="constrained")
        axes = figure.add_subplot()
        _budget(axes, tuned)
        _trials(axes, tuned)
        front: dict[str, Any] = {
            "color": _DARK,
            "linewidth": 1.6,
            "linestyle": ":",
            "label": "Pareto front",
        }
        axes.plot(*_points(tuned.pareto), drawstyle="steps-post", zorder=4, **front)
        ring: dict[str, Any] = {"color": _DARK, "markerfacecolor": "none", "markeredgewidth": 1.6}
        axes.plot(*_points([tuned.chosen]), "o", markersize=14, zorder=5, **ring)
        axes.plot([], [], "o", markersize=9, label=f"chosen: {name_of(tuned.chosen)}", **ring)
        target, budget = tuned.wanted.target, tuned.wanted.budget
        goal = (
            "the largest effect within the budget"
            if target is None
            else f"{target} {'reached' if tuned.met else 'not reached'}"
        )
        title = f"{tuned.steering.method}: {goal}\n({budget})"
        axes.set(
            xlabel="damage: KL from the unsteered model, 95th percentile over tokens (nats)",
            ylabel="effect, standard deviations of the unsteered read-out\n"
            f"({tuned.wanted.label}, 95 % interval)",
            title=title.replace(">=", "≥").replace("<=", "≤"),
        )
        # Below the axes: intervals can reach into every corner.
        figure.legend(loc="outside lower center", ncols=3)
        image = io.BytesIO()
        FigureCanvasAgg(figure).print_png(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, image.getvalue())
    return path


def _budget(axes: Axes, tuned: Tuned) -> None:
    limit = tuned.wanted.max_kl
    damage = [trial.kl_95 for trial in tuned.rows if np.isfinite(trial.kl_95)]
    right = 1.06 * max(damage, default=1.0) or 1.0
    axes.set_xlim(-0.02 * right, right)
    if limit < right:
        axes.axvspan(limit, right, color="#EEEEEE", zorder=0)
        axes.axvline(limit, color=_GREY, linewidth=1.0, linestyle="--", zorder=1)
        name = f" budget {limit:g}"
        axes.text(limit, 0.99, name, transform=axes.get_xaxis_transform(), va="top", **_NOTE)


def _trials(axes: Axes, tuned: Tuned) -> None:
    origin = tuned.rows[0]
    steered = [trial for trial in tuned.rows if trial.layer is not None]
    for number, layer in enumerate(dict.fromkeys(trial.layer for trial in steered)):
        colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        trials = [trial for trial in steered if trial.layer == layer]
        axes.plot(*_points([origin, *trials]), color=colour, linewidth=1.0, alpha=0.5, zorder=2)
        for trial in trials:
            mean, low, high, _ = trial.effect
            axes.errorbar(
                trial.kl_95,
                mean,
                yerr=[[max(mean - low, 0.0)], [max(high - mean, 0.0)]],
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
    axes.text(origin.kl_95, origin.effect.mean, "  unsteered", va="top", **_NOTE)


def _points(trials: list[Trial]) -> tuple[list[float], list[float]]:
    return [trial.kl_95 for trial in trials], [trial.effect.mean for trial in trials]
