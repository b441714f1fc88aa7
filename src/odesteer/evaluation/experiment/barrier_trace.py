"""Barrier values of held-out activations along their trajectories."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from odesteer.ode import Angle, Dose
from odesteer.steering import Steering

NEGATIVES = 100  # as many as the paper's Figure 2 follows
POINTS = 10  # of the way, and its beginning
FAR = Angle(0.3)


def measured(
    steering: Steering, positive: Tensor, negative: Tensor, groups: Sequence[str]
) -> dict[str, Any]:
    """Calibrated log-odds of positive [n, d] and negative [m, d] rows, which come in that order."""
    return {
        "log_odds": [*steering.log_odds(positive).tolist(), *steering.log_odds(negative).tolist()],
        "labels": [1] * len(positive) + [0] * len(negative),
        "groups": list(groups),
    }


def along(steering: Steering, negative: Tensor, dose: Dose | None) -> dict[str, Any]:
    """The log-odds of the first negatives [m, d] when a part k / 10 of the dose is spent.

    `dose` is a condition's; None, where none is asked for, follows every method as far (`FAR`).

        distance    mean_i sum_k ||a_i(k) - a_i(k - 1)|| / ||a_i||

    Every part of the dose is an integration of its own, with the method's steps: what a steering
    with so small a dose would do.
    """
    rows = negative[:NEGATIVES].float()
    whole = FAR if dose is None else dose
    parts = [whole.scaled(k / POINTS) for k in range(1, POINTS + 1)]
    way = torch.stack([rows, *(steering.with_strength(part)(rows) for part in parts)])
    lengths = way.diff(dim=0).norm(dim=-1) / rows.norm(dim=-1)
    distance = torch.cat([lengths.new_zeros(1), lengths.mean(dim=1).cumsum(dim=0)])
    return {
        "distance": distance.tolist(),
        "log_odds": [steering.log_odds(points).tolist() for points in way],
    }
