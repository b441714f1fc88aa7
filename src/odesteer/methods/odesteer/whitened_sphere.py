"""Whitened sphere: the coordinates and landmarks of ODESteer.

y = Sigma^-p (a - m) / ||Sigma^-p (a - m)||
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from odesteer.methods.estimators import whitening_about
from odesteer.methods.odesteer.kernel_machine import Expansion, expand
from odesteer.methods.samples import Samples
from odesteer.ode import Whitening

# Rows in double precision at a time.
CHUNK = 1024


class WhitenedSphere(NamedTuple):
    """Coordinates y, and the rows in them."""

    whitening: Whitening
    expansion: Expansion


def whiten(
    samples: Samples, p: float, covariance_rank: int, landmarks: int, seed: int
) -> WhitenedSphere:
    """Whiten all rows, both classes pooled, so that no labels leak into a fold.

    More rows than landmarks are held in float32, in which their products take half the time and
    memory; m is subtracted before, in the precision of the samples.
    """
    exact = len(samples.labels) <= landmarks
    centre, rows = _centred(samples, torch.float64 if exact else torch.float32)
    whitening = whitening_about(centre, rows, p, covariance_rank)
    _to_unit_rows(whitening, rows)
    return WhitenedSphere(whitening, expand(rows, landmarks, seed))


def _centred(samples: Samples, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the mean m [d] of all rows in their precision, and a - m [n, d] in `dtype`."""
    parts = (samples.positive, samples.negative)
    n = sum(len(part) for part in parts)
    centre = sum((part.sum(dim=0) for part in parts), torch.zeros_like(parts[0][0])) / n
    rows = parts[0].new_empty(n, parts[0].shape[1], dtype=dtype)
    done = 0
    for part in parts:
        for chunk in part.split(CHUNK):
            rows[done : done + len(chunk)] = chunk - centre
            done += len(chunk)
    return centre, rows


def _to_unit_rows(whitening: Whitening, rows: Tensor) -> None:
    """Replace a - m by y / ||y||, in place, to hold the rows in memory only once."""
    # Copied, as `to` changes a module in place.
    whitening = copy.deepcopy(whitening).to(rows.dtype)
    for chunk in rows.split(CHUNK):
        y = whitening.power(chunk, -1)
        norm = y.norm(dim=-1, keepdim=True)
        chunk.copy_(y / norm.clamp_min(math.sqrt(torch.finfo(y.dtype).tiny)))
