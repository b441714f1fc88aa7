"""Least correction that satisfies several linear inequalities: a small quadratic program.

    min_{u, s}  u . G^-1 u / 2 + price s   subject to  n_i . u >= b_i - s,  s >= 0,  i = 1..m

One slack s is common to all. Its price is a bound: u = sum_i mu_i G n_i, with mu the solution of
the dual

    max_mu  mu . b - mu . K mu / 2   subject to  mu >= 0,  sum_i mu_i <= price,   K_ij = n_i . G n_j

so that s = 0 wherever the constraints can be met with sum mu < price (an exact penalty), and
otherwise s is what the price does not pay for. A very large price finds the smallest s, and of the
corrections with that s the smallest u.

With few constraints every active set is tried, and with it whether the price binds, which is exact
and takes no iteration: no value is read back from the device, and degenerate constraints (equal,
dependent, contradictory) need no special case, since one of their independent subsets is optimal
(Caratheodory's theorem). All 2^m sets share their eliminations: a principal pivot on constraint j
turns the tableau of a set into that of the set with j, where the column of b holds mu_i of the
constraints inside the set and the violation of those outside. Where the price binds, K and b
become K + 1 1^T and b + price, which changes nothing as sum mu = price, and is regular also for
contradictory constraints, for which K is not.

Source: Boyd and Vandenberghe, "Convex Optimization", 2004, section 5.5.3 (the conditions of
Karush, Kuhn and Tucker), https://web.stanford.edu/~boyd/cvxbook; Tucker, "A Combinatorial
Equivalence of Matrices", 1960, for principal pivots; Nocedal and Wright, "Numerical Optimization",
2nd ed., 2006, section 17.2, for exact penalties.
"""

import torch
from torch import Tensor

MOST = 8
"""The largest number of constraints: 2^8 active sets take 64 KB a row."""


def least_correction(gram: Tensor, bound: Tensor, price: Tensor) -> Tensor:
    """Return the multipliers mu of the smallest correction.

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
