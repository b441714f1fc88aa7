"""Transport maps between distributions.

    v(a) = M(a) - a = grad h(a) where the gate is open and a is inside the support, else 0

A transport map M that is optimal for the squared distance is the gradient of a convex
function psi (Brenier's theorem), so its displacement is the gradient of the barrier
h(a) = psi(a) - ||a||^2 / 2. When M is affine, h is quadratic.

A row keeps the velocity it starts with (displacement interpolation): a(t) = a + t (M(a) - a)
is a straight line, exact with one Euler step, and t = 1 is the whole map.

Source: McCann, "A Convexity Principle for Interacting Gases", Advances in Mathematics 128,
1997, https://doi.org/10.1006/aima.1997.1634
"""

import torch
from torch import Tensor

from odesteer.ode.barriers.base import Barrier
from odesteer.ode.fields.base import GivenField, Reduction, VectorField


class FormBarrier(Barrier):
    """h(a) = x^T M x / 2 + slope . x + constant,  x = a - centre.

    Args:
        centre: [d].
        matrix: M, symmetric [d, d], or its diagonal [d].
        slope: [d].
        constant: [], or a number.
    """

    def __init__(
        self, centre: Tensor, matrix: Tensor, slope: Tensor, constant: Tensor | float = 0.0
    ):
        super().__init__()
        self.centre: Tensor
        self.matrix: Tensor
        self.slope: Tensor
        self.constant: Tensor
        self.register_buffer("centre", centre)
        self.register_buffer("matrix", matrix)
        self.register_buffer("slope", slope)
        self.register_buffer("constant", torch.as_tensor(constant, dtype=slope.dtype))

    def _curved(self, x: Tensor) -> Tensor:
        return x @ self.matrix if self.matrix.dim() == 2 else x * self.matrix

    def value(self, a: Tensor) -> Tensor:
        x = a - self.centre
        return ((self._curved(x) / 2 + self.slope) * x).sum(dim=-1) + self.constant

    def gradient(self, a: Tensor) -> Tensor:
        return self._curved(a - self.centre) + self.slope

    @property
    def width(self) -> int:
        return self.slope.shape[0]

    def affine(self, scale: float, offset: float = 0.0) -> "FormBarrier":
        return FormBarrier(
            self.centre, scale * self.matrix, scale * self.slope, scale * self.constant + offset
        )


class TransportField(VectorField):
    """v = grad h, each row along the straight line on which it starts.

    Args:
        barrier: h, whose gradient is the displacement M(a) - a.
        gate: rows move where this barrier is negative; None moves all.
        low, high: [d]; a coordinate moves where it is between them; None for no bound.
    """

    def __init__(
        self,
        barrier: Barrier,
        gate: Barrier | None = None,
        low: Tensor | None = None,
        high: Tensor | None = None,
    ):
        super().__init__(barrier)
        self.barrier: Barrier
        self.gate = gate
        self.low: Tensor | None
        self.high: Tensor | None
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.one_way = gate is not None

    def forward(self, a: Tensor) -> Tensor:
        v = self.barrier.gradient(a)
        if self.low is not None:
            v = v * (a >= self.low)
        if self.high is not None:
            v = v * (a <= self.high)
        if self.gate is not None:
            v = v * (self.gate.value(a) < 0).unsqueeze(-1)
        return v

    def reversed(self) -> "TransportField":
        gate = None if self.gate is None else self.gate.affine(-1.0)
        return TransportField(self.barrier.affine(-1.0), gate, self.low, self.high)

    def reduce(self, a: Tensor) -> Reduction:
        return Reduction(GivenField(self(a), self.barrier), a, lambda x: x)
