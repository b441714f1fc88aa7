"""Pictures of docs/concepts.md: docs/images/concepts-*.png.

    python -m experiments.concept_figures        # some seconds

Three pictures on points of the plane, and the numbers that stand in their titles: one straight
step against ten small ones of the same length; a target against a fixed dose; and "a and b".
Barriers are learnt from one draw of the data, and what is moved is of another.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from experiments.gallery.measure import grid
from experiments.gallery.plot import LEVELS, UNWANTED, WANTED, colours
from experiments.gallery.toy_data import EXTENT, PLANES, moons
from PIL import Image
from torch import Tensor

import odesteer as ods
from odesteer.common.catalogue import STYLE
from odesteer.common.files import write_whole

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
LENGTH = 1.8  # of the way, in the first picture
PROBABILITY, BUDGET = 0.9, 2.5  # of the second
AROUND = 3.6  # length of the way in the third
# The title of a panel, what it shows, ways, and where those end if not at their last point.
Drawn = tuple[str, ods.Steering, Tensor | None, Tensor | None]


def steps_figure() -> None:
    """One straight step and ten small ones, both of length `LENGTH`, from the same points."""
    steering = ods.MixtureODESteer().fit(*moons(400, 0), strength=LENGTH)
    held_out = moons(400, 1)[1]
    drawn: list[Drawn] = []
    for steps, title in ((1, "one step"), (10, "ten steps")):
        one = ods.Steering(steering.field, LENGTH, "euler", steps)
        share = float(PLANES["moons"].desired(one(held_out)).float().mean())
        title = f"{title} of length {LENGTH / steps:g}: {100 * share:.0f} % arrive"
        drawn.append((title, steering, one.trajectory(_spread(held_out, 14)), None))
    _save("steps", drawn, moons(400, 0))


def target_figure() -> None:
    """A fixed dose, and the same field with that dose as the budget of a target."""
    examples = moons(400, 0)
    steering = ods.MixtureODESteer().fit(*examples, strength=BUDGET)
    held_out = moons(400, 1)[1]
    target = steering.with_strength(ods.Target(PROBABILITY, budget=BUDGET))
    drawn: list[Drawn] = []
    for one, title in ((steering, f"dose {BUDGET:g}"), (target, f"until P ≥ {PROBABILITY:g}")):
        moved = one(held_out)
        distance = float((moved - held_out).norm(dim=-1).mean())
        share = float(PLANES["moons"].desired(moved).float().mean())
        surely = float((steering.probability(moved) >= PROBABILITY - 1e-4).float().mean())
        print(f"{title}: {surely:.1%} have P >= {PROBABILITY:g}")
        title = f"{title}: {100 * share:.0f} % arrive, moved {distance:.2f} on average"
        rows = _spread(held_out, 14)
        drawn.append((title, steering, steering.trajectory(rows), one(rows)))
    _save("target", drawn, examples)


def both_figure() -> None:
    """ "To the right", "not into the middle", and both as one barrier."""
    generator = torch.Generator().manual_seed(0)

    def cloud(x: float, y: float, size: float, n: int = 300) -> Tensor:
        return torch.tensor([x, y]) + size * torch.randn(n, 2, generator=generator)

    angle = 2 * torch.pi * torch.rand(300, generator=generator)
    ring = 1.25 * torch.stack([angle.cos(), angle.sin()], dim=-1)
    ring = ring + 0.15 * torch.randn(300, 2, generator=generator)
    right = ods.GaussianODESteer().fit(cloud(1.0, 0.0, 0.6), cloud(-1.0, 0.0, 0.6))
    outside = ods.MixtureODESteer().fit(ring, cloud(0.0, 0.0, 0.3))
    # Off the axis of symmetry, on which a way would have no side to take.
    starts = torch.stack([torch.full((8,), -1.7), torch.linspace(-0.85, 0.95, 8)], dim=-1)
    drawn: list[Drawn] = []
    for one, title in ((right, "a: to the right"), (outside, "b: not the middle")):
        drawn.append((title, one, None, None))
    both = (right & outside).with_strength(AROUND)
    way = ods.Steering(both.field, AROUND, "heun", 60).trajectory(starts)
    drawn.append(("a & b", both, way, None))
    _save("both", drawn, None)


def _spread(rows: Tensor, count: int) -> Tensor:
    """Rows that stand apart, from left to right."""
    order = rows[:, 0].argsort()
    return rows[order[torch.linspace(0, len(rows) - 1, count).long()]]


def _save(name: str, drawn: Sequence[Drawn], examples: tuple[Tensor, Tensor] | None) -> None:
    wide = 9.0 / len(drawn)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(
            1,
            len(drawn),
            figsize=(9.0, wide * EXTENT[1] / EXTENT[0] + 0.3),
            layout="constrained",
            facecolor="white",
        )
        for axes, (title, steering, way, ends) in zip(panels, drawn, strict=True):
            _draw(axes, steering, way, ends, examples)
            axes.set_title(title, fontsize=9.5, color="#333333", loc="left")
        picture = BytesIO()
        figure.savefig(picture, dpi=130, facecolor="white")
        plt.close(figure)
    small = BytesIO()
    # 128 colours are enough for it; written so, the file is a quarter as large.
    few = Image.open(picture).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(small, "PNG", optimize=True)
    write_whole(IMAGES / f"concepts-{name}.png", small.getvalue())
    print(name, [title for title, *_ in drawn], f"{len(small.getvalue()) // 1000} kB")


def _draw(
    axes: Any,
    steering: ods.Steering,
    way: Tensor | None,
    ends: Tensor | None,
    examples: tuple[Tensor, Tensor] | None,
) -> None:
    """h, its boundary, the field, examples, ways and where they end (`ends`, or their last)."""
    points = grid(145, 121)
    x, y = np.moveaxis(points.numpy(), -1, 0)
    h = steering.log_odds(points).numpy()
    cmap, norm = colours()
    axes.contourf(x, y, h, LEVELS, cmap=cmap, norm=norm, extend="both", zorder=0)
    axes.contour(x, y, h, [0.0], colors="#222222", linewidths=1.0, zorder=2)
    for rows, colour in zip(examples or (), (WANTED, UNWANTED), strict=False):
        axes.scatter(*rows[::3].T.numpy(), s=3, color=colour, linewidths=0, alpha=0.6, zorder=1)
    arrows = grid(13, 11)
    with torch.no_grad():
        v = steering.field(arrows).numpy()
    axes.quiver(
        *np.moveaxis(arrows.numpy(), -1, 0),
        *np.moveaxis(v, -1, 0),
        color="#777777",
        angles="xy",
        scale_units="xy",
        scale=5.0,
        width=0.004,
        pivot="middle",
        zorder=3,
    )
    if way is not None:
        for number, track in enumerate(way.movedim(1, 0).numpy()):
            end = track[-1] if ends is None else ends[number].numpy()
            if ends is not None:  # its own way ends there, and not where the fixed dose does
                gone = int(np.linalg.norm(track - end, axis=-1).argmin())
                track = np.concatenate([track[:gone], end[None]]) if gone else track[:1]
            dots = "." if len(track) < 20 else ""
            axes.plot(*track.T, color="#111111", linewidth=0.9, marker=dots, ms=3, zorder=4)
            axes.plot(*track[0], "o", ms=4, mfc="white", mec="#111111", mew=0.7, zorder=5)
            axes.plot(*end, "o", ms=4, color="#111111", mew=0, zorder=5)
    axes.set(xlim=(-EXTENT[0], EXTENT[0]), ylim=(-EXTENT[1], EXTENT[1]), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color="#BBBBBB", linewidth=0.6)


if __name__ == "__main__":
    steps_figure()
    target_figure()
    both_figure()
