"""Comparison of all methods on two-dimensional data.

Every method, fitted with its defaults on the planes of `experiments.gallery.toy_data`, and the
share of held-out negatives that end in the desired region when all methods move them equally far:
the same mean of ||a(T) - a|| over all of them, whether a method moves each a little or some
a lot.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from experiments.gallery.result import DOSES, PERFECT, SHOWN, UNSTEERED, Gallery, Outcome, Panel
from experiments.gallery.toy_data import EXTENT, PLANES, Plane, lift
from torch import Tensor

from odesteer.evaluation.statistics import Interval, interval
from odesteer.fitting.dose_search import match_displacement
from odesteer.methods import METHODS, Method, PaperODESteer, RandomDirection, find_method
from odesteer.methods.base import platt
from odesteer.ode import Time
from odesteer.steering import Steering

LEAST_POINTS = 40
GRID, ARROWS = (145, 121), (11, 9)  # columns and rows of points where h and v are drawn
TRACKS, TRACK_POINTS = 8, 13
# 2,000 draws give the ends of an interval to about a tenth of its width, in a second for all.
DRAWS = 2000

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Scene:
    """A plane with data drawn: what to learn from, what to check with, what to move."""

    plane: Plane
    positive: Tensor
    negative: Tensor
    check: tuple[Tensor, Tensor]
    held_out: Tensor

    @classmethod
    def draw(cls, plane: Plane, points: int, seed: int) -> "Scene":
        """Three draws that share no point; a seed shares none with another seed."""
        sets = []
        for part in range(3):
            own = 3 * seed + part
            sets.append([lift(rows, own) for rows in plane.draw(points, own)])
        (positive, negative), (above, below), (_, held_out) = sets
        return cls(plane, positive, negative, (above, below), held_out)

    @property
    def distance(self) -> Tensor:
        """Of the held-out negatives to the desired region, [n]."""
        return self.plane.distance(self.held_out[:, :2])

    def share(self, rows: Tensor) -> Interval:
        """How many rows are in the desired region."""
        return interval(self.plane.desired(rows[:, :2]).numpy(), draws=DRAWS)


def check(names: Sequence[str] | None, points: int) -> list[str]:
    """The names of the methods to draw: those that move whole activations.

    Args:
        names: of `METHODS` or other packages; None for all of ours that learn.
        points: see `Gallery`.

    Raises:
        ValueError: for a name that is no method, or is one for attention heads; for too few
            points.
    """
    if points < LEAST_POINTS:
        raise ValueError(f"The gallery needs at least {LEAST_POINTS} points; got {points}.")
    if names is None:
        # A direction that is drawn says how lucky one draw was, and nothing of a method.
        names = [
            name
            for name, method in METHODS.items()
            if method.site == "residual" and method is not RandomDirection
        ]
    for name in names:
        if find_method(name).site != "residual":
            raise ValueError(f"{name} moves attention heads, and a plane has none; leave it out.")
    shown = [name for name in dict.fromkeys(names) if name != UNSTEERED]
    if not shown:
        raise ValueError(f"'{UNSTEERED}' is always in the table; name a method to compare it with.")
    return shown


def run(
    names: Sequence[str] | None = None,
    points: int = 400,
    seed: int = 0,
    progress: Progress | None = None,
) -> Gallery:
    """The whole measurement; deterministic on one machine.

    Args:
        names: of `METHODS` or other packages; None for all of ours that learn.
        points: see `Gallery`.
        seed: of the data; a method's own seed is its default.
        progress: called with (fits done, fits in all).

    Raises:
        ValueError: see `check`.
    """
    shown = check(names, points)
    scenes = {name: Scene.draw(plane, points, seed) for name, plane in PLANES.items()}
    distances = {name: float(scene.distance.mean()) for name, scene in scenes.items()}
    outcomes = [
        Outcome(UNSTEERED, plane, dose, 0.0, None, scene.share(scene.held_out))
        for plane, scene in scenes.items()
        for dose in DOSES
    ]
    panels: dict[tuple[str, str], Panel] = {}
    for method in shown:
        for plane, scene in scenes.items():
            if progress is not None:
                progress(len(panels), len(shown) * len(scenes))
            steering = fit(find_method(method)(), scene)
            for dose in DOSES:
                found = match_displacement(steering, scene.held_out, dose * distances[plane])
                steering = steering.with_strength(Time(found.strength))
                share = scene.share(steering(scene.held_out))
                moved = found.displacement / distances[plane]
                outcomes.append(Outcome(method, plane, dose, moved, found.strength, share))
                if dose == SHOWN:
                    panels[method, plane] = _panel(steering, scene)
    outcomes += [_perfect(plane, dose, scenes[plane]) for plane in scenes for dose in DOSES]
    if progress is not None:
        progress(len(panels), len(panels))
    examples = {
        name: (scene.positive[:, :2].numpy(), scene.negative[:, :2].numpy())
        for name, scene in scenes.items()
    }
    return Gallery(points, seed, distances, examples, outcomes, panels)


def fit(method: Method, scene: Scene) -> Steering:
    """The method on the scene's data, calibrated on a fresh draw of it."""
    if isinstance(method, PaperODESteer):
        # 8,000 buckets for the 10 products of three coordinates and a constant take minutes;
        # 512 hold the same kernel.
        method = replace(method, components=512)
    positive, negative = scene.positive, scene.negative
    if method.needs_pairs:
        count = min(len(positive), len(negative))
        positive, negative = positive[:count], negative[:count]
    # Data is free here, so the calibration needs no folds, which would train everything six
    # times. It warns where a barrier cannot tell the classes apart, which is what we show.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steering = method.fit(positive, negative, calibrate=False)
        if steering.field.barrier is None:
            return steering
        values = torch.cat([steering.log_odds(rows) for rows in scene.check]).double().numpy()
        labels = np.repeat([1, 0], [len(rows) for rows in scene.check])
        return steering.replace(calibration=platt(values, labels, method.name)[0])


def _perfect(plane: str, dose: float, scene: Scene) -> Outcome:
    """The nearest ones go straight to the region, for as long as the displacement lasts."""
    distance = scene.distance
    unit = distance.mean()
    spent = distance.sort().values.cumsum(dim=0) / len(distance)
    affordable = int((spent <= 1.0001 * dose * unit).sum())
    arrives = np.arange(len(distance)) < affordable
    moved = float(spent[affordable - 1] / unit) if affordable else 0.0
    return Outcome(PERFECT, plane, dose, moved, None, interval(arrives, draws=DRAWS))


def grid(columns: int, rows: int) -> Tensor:
    """The centres of so many tiles of the plane, lowest first: [rows, columns, 2]."""
    x, y = (
        extent * (torch.arange(count) * 2.0 + 1.0 - count) / count
        for extent, count in zip(EXTENT, (columns, rows), strict=True)
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def _panel(steering: Steering, scene: Scene) -> Panel:
    fine, coarse = lift(grid(*GRID), None), lift(grid(*ARROWS), None)
    log_odds = None if steering.field.barrier is None else steering.log_odds(fine).numpy()
    with torch.no_grad():
        velocity = steering.field(coarse)[..., :2]
    length = velocity.norm(dim=-1, keepdim=True)
    # A direction made of rounding is none.
    still = length <= 1e-4 * length.max().clamp_min(1e-12)
    direction = torch.where(still, torch.zeros_like(velocity), velocity / length)
    return Panel(log_odds, direction.numpy(), _tracks(steering, _spread_out(scene.held_out)))


def _tracks(steering: Steering, rows: Tensor) -> np.ndarray:
    """The solver's own way; for one exact step, where smaller doses would have led."""
    if steering.steps > 1:
        return steering.trajectory(rows)[..., :2].numpy()
    parts = torch.linspace(0.0, 1.0, TRACK_POINTS).tolist()
    way = [steering.with_strength(steering.dose.scaled(part))(rows) for part in parts]
    return torch.stack(way)[..., :2].numpy()


def _spread_out(rows: Tensor) -> Tensor:
    """TRACKS of the rows at z = +1, each as far as can be from those before it."""
    above = rows[rows[:, 2] > 0]
    # Not the outliers, which would come first.
    neighbours = torch.cdist(above, above).sort(dim=1).values[:, min(10, len(above) - 1)]
    typical = above[neighbours.argsort()[: -(-3 * len(above) // 4)]]
    chosen = [0]
    while len(chosen) < min(TRACKS, len(typical)):
        distance = torch.cdist(typical, typical[chosen]).min(dim=1).values
        chosen.append(int(distance.argmax()))
    return typical[chosen]
