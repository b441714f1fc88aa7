"""Rectified flow: a correction predicted from the prompt.

    dx/ds = u(x, s),  x(0) = (a - centre) / scale,  s from 0 to 1
    v(a) = B B^T (mean + spread x(1))

u is learnt on straight lines x_s = (1 - s) x_0 + s x_1 from prompts to corrections, so that
its flow carries the one distribution into the other. B spans the main directions of the
corrections seen in training: what lies outside of them is noise.

Source: Wang et al., "TruthFlow: Truthful LLM Generation via Representation Flow Correction",
ICML 2025, https://arxiv.org/abs/2502.04556; Liu et al., "Flow Straight and Fast: Learning to
Generate and Transfer Data with Rectified Flow", ICLR 2023, https://arxiv.org/abs/2209.03003
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from odesteer.ode.barriers.mlp import Dense
from odesteer.ode.fields.base import GivenField, Reduction, VectorField

# Half periods over the unit of time: slow enough for the midpoint rule's 15 steps.
_FREQUENCIES = 8


class Hourglass(nn.Module):
    """u(x, s): a U-Net of dense layers, [n, d] at times [n, 1] -> [n, d].

    Each layer but the last reads (its input, time features), normalises its output to mean 0
    and variance 1 over the row's own units, and passes it through SiLU. Going up, what went
    down at that width is appended to the input; the last layer also sees x itself.

    Args:
        down: layers that narrow.
        up: layers that widen again, and the last, linear one.
    """

    def __init__(self, down: Sequence[Dense], up: Sequence[Dense]):
        super().__init__()
        self.down = nn.ModuleList(down)
        self.up = nn.ModuleList(up)

    @staticmethod
    def draw(d: int, depth: int, generator: torch.Generator) -> "Hourglass":
        """A random network in float32 of widths d, d/2, ..., d/2^depth and back, which says 0."""
        widths = [d, *(max(8, d // 2**i) for i in range(1, depth + 1))]
        down = [_dense(before, after, generator) for before, after in pairwise(widths)]
        # What is appended doubles the input of every layer going up but the first.
        back = [widths[-1], *(2 * width for width in widths[-2:0:-1])]
        up = [
            _dense(before, after, generator)
            for before, after in zip(back, widths[-2::-1], strict=True)
        ]
        last = _dense(2 * d, d, generator)
        return Hourglass(down, [*up, Dense(0 * last.weight, 0 * last.bias)])

    @property
    def width(self) -> int:
        """d."""
        return cast(Dense, self.up[-1]).bias.shape[0]

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        features = _time_features(time).expand(*x.shape[:-1], 2 * _FREQUENCIES)
        passed = [x]
        for layer in self.down:
            passed.append(_layer(layer, passed[-1], features))
        x = passed.pop()
        *up, last = self.up
        for layer in up:
            x = torch.cat([_layer(layer, x, features), passed.pop()], dim=-1)
        return last(torch.cat([x, features], dim=-1))


def _dense(before: int, after: int, generator: torch.Generator) -> Dense:
    before += 2 * _FREQUENCIES
    numbers = 2.0 * torch.rand(after, before, generator=generator, dtype=torch.float32) - 1.0
    return Dense(numbers / math.sqrt(before), numbers.new_zeros(after))


def _layer(layer: nn.Module, x: Tensor, features: Tensor) -> Tensor:
    x = layer(torch.cat([x, features], dim=-1))
    return silu(layer_norm(x, x.shape[-1:]))


def _time_features(time: Tensor) -> Tensor:
    """[n, 1] in 0..1 -> [n, 2 _FREQUENCIES]."""
    count = torch.arange(1, _FREQUENCIES + 1, dtype=time.dtype, device=time.device)
    angle = math.pi * time * count
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class RectifiedField(VectorField):
    """The correction that a rectified flow predicts, which a row keeps all its way.

    Args:
        flow: u.
        centre: of the prompts, [d].
        scale: of the prompts, [] or a number.
        mean: of the corrections, [d].
        spread: of the corrections, [] or a number.
        basis: B, [d, k] with orthonormal columns.
        points: of time at which the flow is known, >= 2: the midpoint rule goes from each to
            the next.
        prompt_conditioned: a is the activation of the prompt's last token and v is kept for all
            tokens that follow; else each activation predicts its own correction.
    """

    def __init__(
        self,
        flow: Hourglass,
        centre: Tensor,
        scale: Tensor | float,
        mean: Tensor,
        spread: Tensor | float,
        basis: Tensor,
        points: int,
        prompt_conditioned: bool,
    ):
        super().__init__()
        d = flow.width
        if centre.shape != (d,) or mean.shape != (d,) or basis.shape[0] != d or points < 2:
            raise ValueError(
                f"RectifiedField needs centre [{d}], mean [{d}], basis [{d}, k] and points >= 2; "
                f"got {list(centre.shape)}, {list(mean.shape)}, {list(basis.shape)} and {points}."
            )
        self.flow = flow
        self.centre: Tensor
        self.scale: Tensor
        self.mean: Tensor
        self.spread: Tensor
        self.basis: Tensor
        self.register_buffer("centre", centre)
        self.register_buffer("scale", torch.as_tensor(scale, dtype=centre.dtype))
        self.register_buffer("mean", mean)
        self.register_buffer("spread", torch.as_tensor(spread, dtype=centre.dtype))
        self.register_buffer("basis", basis)
        self.points = points
        self.prompt_conditioned = prompt_conditioned

    def forward(self, a: Tensor) -> Tensor:
        x = (a - self.centre) / self.scale
        ds = 1.0 / (self.points - 1)
        for i in range(self.points - 1):
            start, middle = (x.new_full((1,), (i + part) * ds) for part in (0.0, 0.5))
            x = x + ds * self.flow(x + 0.5 * ds * self.flow(x, start), middle)
        return (self.mean + self.spread * x) @ self.basis @ self.basis.mT

    def reversed(self) -> "RectifiedField":
        return RectifiedField(
            self.flow,
            self.centre,
            self.scale,
            -self.mean,
            -self.spread,
            self.basis,
            self.points,
            self.prompt_conditioned,
        )

    def reduce(self, a: Tensor) -> Reduction:
        return Reduction(GivenField(self(a)), a, lambda x: x)

    @property
    def width(self) -> int:
        return self.flow.width
