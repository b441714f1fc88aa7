"""Control barrier function (CBF) field: the least correction that keeps h >= 0.

    v = v0 + u,  u = argmin ||u||^2  subject to  grad h . (v0 + u) >= -alpha (h - margin)
    u = max(0, -alpha (h - margin) - grad h . v0) grad h / ||grad h||^2

The min-norm filter of a control barrier function. Where the constraint holds by itself the
nominal field v0 is left alone; elsewhere it binds, so that along the exact flow

    h(T) - margin >= (h(0) - margin) e^(-alpha T)

whatever v0 is: a row that starts at or above the margin never leaves it, and a deficit
shrinks exponentially. Without a nominal field this is an equality below the margin, and rows
at or above it do not move at all.

Source: Ames, Xu, Grizzle, Tabuada, "Control Barrier Function Based Quadratic Programs for
Safety Critical Systems", IEEE Transactions on Automatic Control 62, 2017,
https://arxiv.org/abs/1609.06408
"""

import torch
from torch import Tensor

from odesteer.ode.barriers.base import Barrier
from odesteer.ode.barriers.quadratic import unit_or_zero
from odesteer.ode.fields.base import VectorField


class SafetyField(VectorField):
    """The nominal field with the smallest change that respects the barrier.

    "Smallest" is in the metric of the barrier's `ascent`: with G = I it is the formula above,
    otherwise grad h becomes G grad h and ||grad h||^2 becomes grad h . G grad h. At critical
    points of h, where no u helps, u = 0; near one u is as large as the deficit over
    ||grad h||, which has no bound of its own. `limit` gives it one, and takes the promise
    away from the rows that need more.

    Args:
        barrier: h.
        alpha: > 0, the rate at which a deficit may shrink, per unit of time.
        margin: the value of h to keep.
        nominal: v0; None is 0.
        limit: the longest u, > 0; None: any.

    Raises:
        ValueError: if alpha or limit is not positive.
    """

    unit_speed = False
    gated: bool = True

    def __init__(
        self,
        barrier: Barrier,
        alpha: float,
        margin: float = 0.0,
        nominal: VectorField | None = None,
        limit: float | None = None,
    ):
        super().__init__(barrier)
        if not alpha > 0 or not (limit is None or limit > 0):
            raise ValueError(
                f"SafetyField needs alpha > 0 and limit > 0 or None; got {alpha} and {limit}."
            )
        self.barrier: Barrier
        self.alpha = float(alpha)
        self.margin = float(margin)
        self.nominal = nominal
        self.limit = None if limit is None else float(limit)

    def forward(self, a: Tensor) -> Tensor:
        gradient, ascent = self.barrier.gradient(a), self.barrier.ascent(a)
        nominal = torch.zeros_like(a) if self.nominal is None else self.nominal(a)
        rise = (gradient * nominal).sum(dim=-1, keepdim=True)
        excess = (self.barrier.value(a) - self.margin).unsqueeze(-1)
        missing = (-self.alpha * excess - rise).clamp_min(0.0)
        direction = unit_or_zero(ascent, ascent.norm(dim=-1, keepdim=True))
        speed = unit_or_zero(missing, (gradient * direction).sum(dim=-1, keepdim=True))
        if self.limit is not None:
            speed = speed.clamp_max(min(self.limit, torch.finfo(speed.dtype).max))
        return nominal + speed * direction

    def reversed(self) -> "SafetyField":
        """Without a nominal field, the filter of -h; with one, the same guard on its reverse."""
        barrier, nominal = self.barrier, self.nominal
        if nominal is None:
            barrier = barrier.affine(-1.0)
        else:
            nominal = nominal.reversed()
        return SafetyField(barrier, self.alpha, self.margin, nominal, self.limit)

    @property
    def width(self) -> int | None:
        nominal = None if self.nominal is None else self.nominal.width
        return nominal if self.barrier.width is None else self.barrier.width
