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

# Rows that are in double precision at a time.
CHUNK = 1024


class WhitenedSphere(NamedTuple):
    """The coordinates y, and the rows in them."""

    whitening: Whitening
    expansion: Expansion


def view(
    samples: Samples, p: float, covariance_rank: int, landmarks: int, seed: int
) -> WhitenedSphere:
    """Of all rows, both classes pooled: it carries nothing of the labels.

    More rows than landmarks are worked on in float32, in which the products with them take half
    the time and memory; m is taken away before, in the precision of the samples.
    """
    few = len(samples.labels) <= landmarks
    centre, rows = _centred(samples, torch.float64 if few else torch.float32)
    whitening = whitening_about(centre, rows, p, covariance_rank)
    _to_unit_rows(whitening, rows)
    return WhitenedSphere(whitening, expand(rows, landmarks, seed))


def _centred(samples: Samples, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The mean m [d] of all rows in their precision, and a - m [n, d] in another."""
    parts = (samples.positive, samples.negative)
    n = sum(len(part) for part in parts)
    centre = sum((part.sum(dim=0) for part in parts), torch.zeros_like(parts[0][0])) / n
    rows = parts[0].new_empty(n, parts[0].shape[1], dtype=dtype)
    done = 0
    for part in parts:
        for some in part.split(CHUNK):
            rows[done : done + len(some)] = some - centre
            done += len(some)
    return centre, rows


def _to_unit_rows(whitening: Whitening, rows: Tensor) -> None:
    """a - m becomes y / ||y||, in place: at full size there is one copy of the rows."""
    # A copy: `to` changes a module in place.
    whitening = copy.deepcopy(whitening).to(rows.dtype)
    for some in rows.split(CHUNK):
        y = whitening.power(some, -1)
        norm = y.norm(dim=-1, keepdim=True)
        some.copy_(y / norm.clamp_min(math.sqrt(torch.finfo(y.dtype).tiny)))
