"""Control barrier function (CBF) field: the smallest correction that keeps every h_i >= 0.

    v = v0 + u,  u = argmin u . G^-1 u  subject to  grad h_i . (v0 + u) >= -alpha (h_i - margin)

The min-norm filter of control barrier functions. Where the constraints hold, the nominal field v0
is unchanged; elsewhere they bind, so that along the exact flow

    h_i(T) - margin >= (h_i(0) - margin) e^(-alpha T)

for any v0: a row that starts at or above the margin stays there, and a deficit decays
exponentially. With one barrier

    u = max(0, -alpha (h - margin) - grad h . v0) G grad h / (grad h . G grad h)

and without a nominal field the bound is an equality below the margin, and rows at or above it do
not move. With several, u is that of `least_correction` in the span of G grad h_i.

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

MOST = 8
"""The largest number of constraints: 2^8 active sets take 64 KB a row."""
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


def least_correction(gram: Tensor, bound: Tensor, price: Tensor) -> Tensor:
    """Return the multipliers mu of the least correction under linear inequalities.

        min_{u, s}  u . G^-1 u / 2 + price s   subject to  n_i . u >= b_i - s,  s >= 0,  i = 1..m

    One slack s is common to all. Its price is a bound: u = sum_i mu_i G n_i, with mu the solution
    of the dual

        max_mu  mu . b - mu . K mu / 2   subject to  mu >= 0,  sum_i mu_i <= price,
                               K_ij = n_i . G n_j

    so that s = 0 wherever the constraints can be met with sum mu < price (an exact penalty), and
    otherwise s is what the price does not pay for. A very large price finds the smallest s, and of
    the corrections with that s the smallest u.

    With few constraints every active set is tried, and with it whether the price binds, which is
    exact and takes no iteration: no value is read back from the device, and degenerate constraints
    (equal, dependent, contradictory) need no special case, since one of their independent subsets
    is optimal (Caratheodory's theorem). All 2^m sets share their eliminations: a principal pivot on
    constraint j turns the tableau of a set into that of the set with j, where the column of b holds
    mu_i of the constraints inside the set and the violation of those outside. Where the price
    binds, K and b become K + 1 1^T and b + price, which changes nothing as sum mu = price, and is
    regular also for contradictory constraints, for which K is not.

    Source: Boyd and Vandenberghe, "Convex Optimization", 2004, section 5.5.3 (the conditions of
    Karush, Kuhn and Tucker), https://web.stanford.edu/~boyd/cvxbook; Tucker, "A Combinatorial
    Equivalence of Matrices", 1960, for principal pivots; Nocedal and Wright, "Numerical
    Optimization", 2nd ed., 2006, section 17.2, for exact penalties.

    Rows are independent, gradients pass, and a row all of whose bounds are <= 0 gets exact zeros.

    Args:
        gram: K, symmetric positive semi-definite, [..., m, m], with a diagonal of order 1.
        bound: b, [..., m].
        price: >= 0, [...].

    Returns:
        mu, [..., m].
    """
    m = bound.shape[-1]
    price, one = price.unsqueeze(-1), torch.ones_like(bound)
    # Two problems side by side: the price does not bind, and it does.
    columns = torch.stack(
        [
            torch.stack([bound, torch.zeros_like(bound)], dim=-1),
            torch.stack([bound + price, one], dim=-1),
        ]
    )
    gram = torch.stack([gram, gram + 1.0])
    smallest = 16 * m * torch.finfo(bound.dtype).eps * gram.diagonal(dim1=-2, dim2=-1)
    table = torch.cat([gram, columns], dim=-1).unsqueeze(-3)  # [2, ..., sets, m, m + 2]
    regular = torch.ones_like(table[..., 0, 0], dtype=torch.bool)
    for j in range(m):
        pivot, others = table[..., j : j + 1, :1], table[..., 1:]
        usable = pivot > smallest[..., j, None, None, None]
        row = others[..., j : j + 1, :] / pivot.masked_fill(~usable, 1.0)
        rest = others - table[..., :1] * row
        within = torch.cat([rest[..., :j, :], row, rest[..., j + 1 :, :]], dim=-2)
        table = torch.cat([others, within], dim=-3)
        regular = torch.cat([regular, regular & usable[..., 0, 0]], dim=-1)
    sets = torch.arange(2**m, device=bound.device).unsqueeze(-1)
    inside = (sets >> torch.arange(m, device=bound.device)) & 1  # [sets, m]
    sign, inside = 2 * inside - 1, inside.to(bound.dtype)
    # mu inside a set and violations outside: without slack, and what one unit of slack takes off.
    (free, bought), relief = table[..., 0], table[1, ..., 1]
    total, unit = (bought * inside).sum(dim=-1), (relief * inside).sum(dim=-1)
    slack = (total - price) / unit.masked_fill(unit <= 0, 1.0)
    bought = bought - slack.unsqueeze(-1) * relief
    # Of a solution every entry is >= 0; the set whose smallest is largest is one up to rounding.
    unspent = price - (free * inside).sum(dim=-1)
    scores = torch.cat(
        [
            torch.minimum((sign * free).amin(dim=-1), unspent).masked_fill(~regular[0], -torch.inf),
            torch.minimum((sign * bought).amin(dim=-1), slack).masked_fill(
                ~regular[1] | (unit <= 0), -torch.inf
            ),
        ],
        dim=-1,
    )
    multipliers = torch.cat([free * inside, bought * inside], dim=-2)
    best = scores.argmax(dim=-1)[..., None, None].expand(*bound.shape[:-1], 1, m)
    chosen = multipliers.gather(-2, best).squeeze(-2)
    return torch.where((bound > 0).any(dim=-1, keepdim=True), chosen.clamp_min(0.0), 0.0)
