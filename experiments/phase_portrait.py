"""Phase portrait of ODESteer at one layer of SmolLM2-135M: docs/images/portrait.png.

python -m experiments.phase_portrait        # a minute
"""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import TwoSlopeNorm
from matplotlib.ticker import MaxNLocator
from torch import Tensor

import odesteer as ods
from odesteer.common.catalogue import STYLE
from odesteer.evaluation.demo import contrast
from odesteer.models.loading import SMOLLM2, load_model
from odesteer.ode import QuadraticBarrier

IMAGE = Path(__file__).resolve().parent.parent / "docs" / "images" / "portrait.png"
DOSE = ods.Angle(0.45)
EVERY = 6  # of the held-out negatives that are drawn


def main() -> None:
    model, tokenizer = load_model(SMOLLM2)
    fit_set, test_set = contrast()
    steering = ods.fit(model, tokenizer, fit_set, strength=DOSE)
    _, negatives = ods.activations(model, tokenizer, test_set, steering.layer)
    trajectory = steering.trajectory(negatives)[:, ::EVERY]
    barrier: QuadraticBarrier = steering.barrier
    portrait_figure(barrier, negatives, trajectory, *steering.calibration, IMAGE, steering.layer)


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
        figure.savefig(path)
        plt.close(figure)


if __name__ == "__main__":
    main()
