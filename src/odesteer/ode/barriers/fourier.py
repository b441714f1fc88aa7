"""Barrier of random Fourier features.

    h(a) = w . phi(a) + b,   phi(a) = sqrt(2/D) cos(W a + offset)
    grad h = -sqrt(2/D) W^T (w * sin(W a + offset))

The rows of W are N(0, 1/bandwidth^2), so phi . phi approximates a Gaussian kernel.

Source: Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NeurIPS 2007,
https://papers.nips.cc/paper/3182-random-features-for-large-scale-kernel-machines.
"""

import math

import torch
from torch import Tensor

from odesteer.ode.barriers.base import Barrier


class FourierBarrier(Barrier):
    """h(a) = coef . sqrt(2/D) cos(frequency a + offset) + bias.

    Args:
        frequency: W, [D, d].
        offset: [D], in 0..2 pi.
        coef: w, [D].
        bias: b, [] or a number.
    """

    def __init__(self, frequency: Tensor, offset: Tensor, coef: Tensor, bias: Tensor | float):
        super().__init__()
        self.frequency: Tensor
        self.offset: Tensor
        self.coef: Tensor
        self.bias: Tensor
        self.register_buffer("frequency", frequency)
        self.register_buffer("offset", offset)
        self.register_buffer("coef", coef)
        self.register_buffer("bias", torch.as_tensor(bias, dtype=coef.dtype))

    @property
    def _amplitude(self) -> float:
        return math.sqrt(2.0 / self.offset.shape[0])

    @property
    def width(self) -> int:
        return self.frequency.shape[1]

    def features(self, a: Tensor) -> Tensor:
        """phi(a): [..., d] -> [..., D]."""
        return self._amplitude * torch.cos(a @ self.frequency.mT + self.offset)

    def value(self, a: Tensor) -> Tensor:
        return self.features(a) @ self.coef + self.bias

    def gradient(self, a: Tensor) -> Tensor:
        phase = torch.sin(a @ self.frequency.mT + self.offset)
        return -self._amplitude * (self.coef * phase) @ self.frequency
