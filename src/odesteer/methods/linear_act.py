"""Linear-AcT: optimal transport of each coordinate by itself.

    M_j(a) = w_j a_j + b_j
    w = sum(y~ x~) / sum(x~^2),  b = mean+ - w mean-,  x~, y~: sorted, centred negatives, positives
    v(a) = M(a) - a where a_j is inside the negatives' range, else 0
    h(a) = sum_j (w_j - 1) a_j^2 / 2 + b_j a_j + const

In one dimension optimal transport sorts: the i-th smallest negative goes to the i-th smallest
positive. M is the least-squares line through those pairs.

Source: Rodriguez et al., "Controlling Language and Diffusion Models by Transporting
Activations", ICLR 2025, https://arxiv.org/abs/2410.23054
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from odesteer.methods.base import Method, MethodInfo
from odesteer.ode import FormBarrier, TransportField, VectorField


@dataclass(frozen=True)
class LinearAcT(Method):
    """Carries every coordinate of the negatives to that of the positives by a line.

    Strength s moves a to a + s (M(a) - a): the lambda of the paper, 1 is the whole map. The
    original pools each text's activations by their mean (`tokens="mean"` when extracting)
    and fits layer after layer, later layers seeing what the earlier ones have moved.

    Args:
        support: leave coordinates outside the negatives' range where they are.
    """

    name: ClassVar[str] = "linear-act"
    incremental: ClassVar[bool] = True
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="w*a + b - a in each coordinate inside the negatives' range",
        barrier="sum_j (w_j - 1) a_j^2 / 2 + b_j a_j",
        exact="straight line a + s (M(a) - a), one Euler step",
        strength="lambda, 1 is the whole map",
        source="Rodriguez et al., ICLR 2025, arXiv 2410.23054",
    )

    support: bool = True

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        levels = max(len(positive), len(negative))
        target, source = quantiles(positive, levels), quantiles(negative, levels)
        above, below = target.mean(dim=0), source.mean(dim=0)
        x, y = source - below, target - above
        power = x.square().sum(dim=0)
        # A coordinate whose negatives are all alike can only be shifted.
        w = torch.where(power > 0, (x * y).sum(dim=0) / power, torch.ones_like(power))
        potential = FormBarrier(below, w - 1.0, above - below)
        middle = potential.value((above + below) / 2)
        bounds = (negative.amin(dim=0), negative.amax(dim=0)) if self.support else (None, None)
        return TransportField(potential.affine(1.0, -float(middle)), None, *bounds)


def quantiles(rows: Tensor, levels: int) -> Tensor:
    """Quantiles of each column at (i + 1/2) / levels: [n, d] -> [levels, d].

    Between order statistics they are interpolated; with levels = n they are the sorted rows.
    """
    ordered = rows.sort(dim=0).values
    position = (torch.arange(levels).to(rows) + 0.5) / levels * len(rows) - 0.5
    position = position.clamp(0.0, len(rows) - 1.0).unsqueeze(-1)
    low = position.floor().long().squeeze(-1)
    high = (low + 1).clamp_max(len(rows) - 1)
    share = position - position.floor()
    return ordered[low] * (1 - share) + ordered[high] * share
