"""Control barrier function (CBF) field: the smallest correction that keeps every h_i >= 0.

    v = v0 + u,  u = argmin u . G^-1 u  subject to  grad h_i . (v0 + u) >= -alpha (h_i - margin)

The min-norm filter of control barrier functions. Where the constraints hold, the nominal field v0
is unchanged; elsewhere they bind, so that along the exact flow

    h_i(T) - margin >= (h_i(0) - margin) e^(-alpha T)

for any v0: a row that starts at or above the margin stays there, and a deficit decays
exponentially. With one barrier

    u = max(0, -alpha (h - margin) - grad h . v0) G grad h / (grad h . G grad h)

and without a nominal field the bound is an equality below the margin, and rows at or above it do
not move. With several, u is the solution of `odesteer.ode.least_correction` in the span of
G grad h_i.

Source: Ames, Xu, Grizzle, Tabuada, "Control Barrier Function Based Quadratic Programs for
Safety Critical Systems", IEEE Transactions on Automatic Control 62, 2017,
https://arxiv.org/abs/1609.06408
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from odesteer.ode.barriers.base import AndBarrier, Barrier
from odesteer.ode.barriers.quadratic import unit_or_zero
from odesteer.ode.fields.base import VectorField, compute_dtype
from odesteer.ode.least_correction import MOST, least_correction

# Price of the common slack without a limit, in units of the row's largest deficit. A larger one
# costs digits where constraints contradict one another; with this one, corrections of more than
# about 1000 deficits count as contradictory.
_PRICE = 1e7
# Part of a constraint's terms that counts as rounding.
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-9}


class SafetyField(VectorField):
    """Nominal field with the smallest correction that respects one barrier or several.

    "Smallest" is in the barrier's metric G (`Barrier.metric`), of several barriers in the mean of
    their metrics. The parts of a hard "and" (`AndBarrier(..., soft=False)`) are constraints of
    their own. At critical points of h, where no u helps, u = 0; near one u is the deficit over
    ||grad h||, which is unbounded. `limit` bounds it, and gives up the guarantee for rows that need
    more. Constraints that contradict one another are all missed by the same s ||G grad h_i||,
    with the smallest s that there is, and the smallest u that attains it; `slack` tells.

    Example:
        >>> import torch
        >>> from odesteer.ode import ConstantField, LinearBarrier
        >>> x, y = (LinearBarrier(torch.eye(2)[i]) for i in range(2))
        >>> field = SafetyField([x, y], alpha=1.0, nominal=ConstantField(-torch.ones(2)))
        >>> field(torch.tensor([[5.0, 5.0], [5.0, 0.0], [0.0, 0.0]]))
        tensor([[-1., -1.],
                [-1.,  0.],
                [ 0.,  0.]])

    Args:
        barrier: h, or up to 8 of them, of which all are to be kept.
        alpha: > 0, the rate at which a deficit may shrink, per unit of time.
        margin: the value of h to keep. Margins of several barriers that differ are written as
            `barrier.affine(1.0, -margin)`.
        nominal: v0; None for 0.
        limit: bound on ||u||, > 0; None for no bound.

    Attributes:
        barrier: h; of several, their minimum.

    Raises:
        ValueError: if alpha or limit is not positive, or for no barriers or too many.
    """

    unit_speed = False
    gated: bool = True

    def __init__(
        self,
        barrier: Barrier | Sequence[Barrier],
        alpha: float,
        margin: float = 0.0,
        nominal: VectorField | None = None,
        limit: float | None = None,
    ):
        if not isinstance(barrier, Barrier):
            barrier = AndBarrier(barrier, soft=False)
        super().__init__(barrier)
        # The parts are in `barrier`; here they are not registered once more.
        self._parts = (*barrier.conjuncts(),)
        if len(self._parts) > MOST:
            raise ValueError(
                f"SafetyField keeps at most {MOST} barriers; got {len(self._parts)}. Join some "
                f"of them smoothly, with AndBarrier or all_of."
            )
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
        nominal = torch.zeros_like(a) if self.nominal is None else self.nominal(a)
        if len(self._parts) > 1:
            return nominal + self._correction(a, nominal)
        barrier = self._parts[0]
        gradient, ascent = barrier.gradient(a), barrier.ascent(a)
        rise = (gradient * nominal).sum(dim=-1, keepdim=True)
        excess = (barrier.value(a) - self.margin).unsqueeze(-1)
        deficit = (-self.alpha * excess - rise).clamp_min(0.0)
        direction = unit_or_zero(ascent, ascent.norm(dim=-1, keepdim=True))
        speed = unit_or_zero(deficit, (gradient * direction).sum(dim=-1, keepdim=True))
        if self.limit is not None:
            speed = speed.clamp_max(min(self.limit, torch.finfo(speed.dtype).max))
        return nominal + speed * direction

    def _correction(self, a: Tensor, nominal: Tensor) -> Tensor:
        """Return u for several constraints; the small problem is solved in float64."""
        normals, least = self._constraints(a)
        ascents = torch.stack([part.metric(normals) for part in self._parts]).mean(dim=0)
        size = ascents.norm(dim=-1, keepdim=True)
        # In units in which mu_i is a speed along G grad h_i, so that ||u|| <= sum mu_i.
        unit, normals = unit_or_zero(ascents, size), unit_or_zero(normals, size)
        least = unit_or_zero(least, size.squeeze(-1))
        unit, normals, least, pace = (x.double() for x in (unit, normals, least, nominal))
        missing = least - (normals @ pace.unsqueeze(-1)).squeeze(-1)
        if self.limit is None:
            price = _PRICE * missing.detach().amax(dim=-1).clamp_min(0.0)
        else:
            price = torch.full_like(missing[..., 0], self.limit)
        speeds = least_correction(normals @ unit.mT, missing, price)
        return (speeds.unsqueeze(-2) @ unit).squeeze(-2).to(a.dtype)

    def _constraints(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return grad h_i [..., m, d] and the least rates of h_i [..., m]."""
        gradients = torch.stack([part.gradient(a) for part in self._parts], dim=-2)
        values = torch.stack([part.value(a) for part in self._parts], dim=-1)
        return gradients, -self.alpha * (values - self.margin)

    def slack(self, a: Tensor) -> Tensor:
        """Return how far the rate of each h_i falls short of what it should be: [..., m].

        In units of h per time; 0, up to rounding exactly, where v respects the constraint. It
        does not at critical points, beyond the limit, and where constraints contradict one another.
        """
        v = self(a)
        gradients, least = self._constraints(a)
        terms = gradients * v.unsqueeze(-2)
        missing = least - terms.sum(dim=-1)
        scale = least.abs() + terms.norm(dim=-1)
        return missing.masked_fill(missing <= _ROUNDING[compute_dtype(a.dtype)] * scale, 0.0)

    def infeasible(self, a: Tensor) -> Tensor:
        return (self.slack(a) > 0).any(dim=-1)

    def reversed(self) -> "SafetyField":
        """Return the filter of -h, or with a nominal field the same filter on its reverse."""
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
