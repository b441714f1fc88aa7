"""Figures of barriers: trajectories and reliability.

Figure 2 of the paper (h along the trajectories of held-out negatives), and the calibration of
every barrier on held-out rows.
"""

import matplotlib
import numpy as np

from odesteer.evaluation.report.figures.style import (
    FAINT,
    STYLE_HERE,
    Drawing,
    canvas,
    label_ends,
    look,
)
from odesteer.evaluation.report.rows import method_rank, name_of
from odesteer.evaluation.report.run import Run
from odesteer.evaluation.report.tables import held_out
from odesteer.steering.calibration import reliability


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
