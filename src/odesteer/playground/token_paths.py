"""Paths of activations and barrier values behind a text."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from odesteer.ode import Target, as_dose
from odesteer.playground.side_by_side import GeneratedText
from odesteer.steering import LayerSteering

_POINTS = 9  # of a straight path
GRID, ARROWS = (48, 34), (11, 8)


@dataclass(frozen=True)
class TokenPaths:
    """Paths of all tokens of a text.

    Attributes:
        points: [p, n, d].
        length: path length so far over ||a||, [p, n].
        h: calibrated log-odds, [p, n]; None where the method has no barrier.
    """

    points: Tensor
    length: np.ndarray
    h: np.ndarray | None


@dataclass(frozen=True)
class PhasePortrait:
    """h and v on a plane through the mean of the activations.

    Attributes:
        tracks: the paths on that plane, [p, n, 2].
        low, high: corners of the drawn area, [2].
        h: on a grid of GRID's size, bottom row first, [rows, columns]; None without a barrier.
        arrow_starts, arrows: points at which v was evaluated, and its direction, [k, 2].
        share: of the squared displacements that the plane holds, 0 to 1.
    """

    tracks: np.ndarray
    low: np.ndarray
    high: np.ndarray
    h: np.ndarray | None
    arrow_starts: np.ndarray
    arrows: np.ndarray
    share: float


def token_paths(text: GeneratedText, part: LayerSteering) -> TokenPaths:
    """Trace the activations of a text of at least one token under its steering."""
    start, end = torch.stack(text.starts), torch.stack(text.ends)
    points = _points(start, end, part)
    norm = start.norm(dim=-1).clamp_min(1e-12)
    steps = points.diff(dim=0).norm(dim=-1) / norm
    length = torch.cat([torch.zeros_like(steps[:1]), steps.cumsum(dim=0)])
    h = part.log_odds(points).numpy() if part.field.barrier is not None else None
    return TokenPaths(points, length.numpy(), h)


def _points(start: Tensor, end: Tensor, part: LayerSteering) -> Tensor:
    moved = (end != start).any(dim=-1)
    # A velocity that was read from the prompt is constant along the path.
    if part.steps == 1 or part.field.prompt_conditioned or not bool(moved.any()):
        shares = torch.linspace(0.0, 1.0, _POINTS).view(-1, 1, 1)
        return torch.lerp(start, end, shares)
    dose = part.dose
    if not isinstance(dose, Target):
        points = part.trajectory(start)
        missed = (points[-1] - end).norm(dim=-1) > 0.05 * (end - start).norm(dim=-1)
        if bool((missed & moved).any()):  # a second aim acted at this layer too
            return torch.lerp(start, end, torch.linspace(0.0, 1.0, len(points)).view(-1, 1, 1))
        return torch.where(moved[None, :, None], points, start)
    points = part.with_strength(as_dose(dose.budget)).trajectory(start)
    # A row that has reached its displacement stays where it stopped.
    gone = (points - start).norm(dim=-1) >= (end - start).norm(dim=-1) - 1e-6
    stopped = gone.cummax(dim=0).values
    return torch.where(stopped[..., None], end, points)


def phase_portrait(paths: TokenPaths, part: LayerSteering) -> PhasePortrait:
    """Project onto the mean displacement and the direction of most other variance."""
    start, shift = paths.points[0], paths.points[-1] - paths.points[0]
    first, second = _plane(start, shift)
    plane = torch.stack([first, second])
    tracks = (paths.points @ plane.mT).numpy()
    low, high = tracks.min(axis=(0, 1)), tracks.max(axis=(0, 1))
    middle, half = (low + high) / 2, (high - low) / 2
    half = 1.15 * np.maximum(half, 0.35 * half.max() + 1e-6)
    low, high = middle - half, middle + half
    centre = start.mean(dim=0)
    centre = centre - plane.mT @ (plane @ centre)

    def lifted(columns: int, rows: int) -> tuple[np.ndarray, Tensor]:
        x = low[0] + (high[0] - low[0]) * (np.arange(columns) + 0.5) / columns
        y = low[1] + (high[1] - low[1]) * (np.arange(rows) + 0.5) / rows
        at = np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32)
        return at, torch.as_tensor(at) @ plane + centre

    h = None
    if part.field.barrier is not None:
        h = part.log_odds(lifted(*GRID)[1]).numpy()
    at, points = lifted(*ARROWS)
    arrows = np.zeros_like(at)
    if not part.field.prompt_conditioned:
        arrows = (part.velocity(points).float() @ plane.mT).numpy()
    total = float(shift.square().sum())
    share = float((shift @ plane.mT).square().sum()) / total if total > 0 else 0.0
    return PhasePortrait(tracks, low, high, h, at.reshape(-1, 2), arrows.reshape(-1, 2), share)


def _plane(start: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return two orthonormal directions [d]."""
    spread = start - start.mean(dim=0)
    mean = shift.mean(dim=0)
    if float(mean.norm()) == 0.0:
        mean = torch.linalg.svd(spread + 1e-6, full_matrices=False)[2][0]
    first = mean / mean.norm()
    rest = torch.cat([spread, shift])
    rest = rest - torch.outer(rest @ first, first)
    second = torch.linalg.svd(rest, full_matrices=False)[2][0]
    second = second - first * (first @ second)
    return first, second / second.norm().clamp_min(1e-12)
