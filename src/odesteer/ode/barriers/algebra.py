"""Boolean algebra of barriers.

    "A and B"  h = min(h_A, h_B)   or, smoothly,  -log(e^-h_A + e^-h_B)
    "A or B"   h = max(h_A, h_B)   or, smoothly,   log(e^h_A + e^h_B)
    "not A"    h = -h_A            (`Barrier.affine(-1)`)

min and max describe the intersection and the union of the regions exactly; the smooth
forms have one field everywhere and differ from them by at most log(number of parts):
soft "and" is below min, so h >= 0 still implies that every part is >= 0.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from odesteer.ode.barriers.base import Barrier


class _Junction(Barrier):
    """Shared by "and" and "or": with sign -1 an "and" is an "or" of the negated parts."""

    sign: float

    def __init__(self, parts: Sequence[Barrier], soft: bool = True):
        super().__init__()
        if not parts:
            raise ValueError(f"{type(self).__name__} needs at least one barrier; got none.")
        self.parts = nn.ModuleList(parts)
        self.soft = bool(soft)

    @property
    def _barriers(self) -> list[Barrier]:
        return cast("list[Barrier]", list(self.parts))

    @property
    def width(self) -> int | None:
        return next((p.width for p in self._barriers if p.width is not None), None)

    def _signed_values(self, a: Tensor) -> Tensor:
        return torch.stack([self.sign * part.value(a) for part in self._barriers], dim=-1)

    def _shares(self, a: Tensor) -> Tensor:
        """How much each part's gradient counts: softmax, or one-hot at the active part."""
        values = self._signed_values(a)
        if self.soft:
            return torch.softmax(values, dim=-1)
        return nn.functional.one_hot(values.argmax(dim=-1), len(self.parts)).to(values.dtype)

    def value(self, a: Tensor) -> Tensor:
        values = self._signed_values(a)
        joined = torch.logsumexp(values, dim=-1) if self.soft else values.amax(dim=-1)
        return self.sign * joined

    def gradient(self, a: Tensor) -> Tensor:
        gradients = torch.stack([part.gradient(a) for part in self._barriers], dim=-1)
        return (gradients * self._shares(a).unsqueeze(-2)).sum(dim=-1)

    def ascent(self, a: Tensor) -> Tensor:
        # A blend of ascents under different metrics need not raise h; one part's own does.
        if self.soft:
            return self.gradient(a)
        ascents = torch.stack([part.ascent(a) for part in self._barriers], dim=-1)
        return (ascents * self._shares(a).unsqueeze(-2)).sum(dim=-1)


class AndBarrier(_Junction):
    """All parts at once: -log sum_i e^-h_i (soft) or min_i h_i.

    Args:
        parts: at least one barrier of the same width.
        soft: the smooth form (default) or the minimum.
    """

    sign = -1.0


class OrBarrier(_Junction):
    """Any part: log sum_i e^h_i (soft) or max_i h_i.

    Args:
        parts: at least one barrier of the same width.
        soft: the smooth form (default) or the maximum.
    """

    sign = 1.0
