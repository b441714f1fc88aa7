"""Barrier whose gradient is preconditioned by a metric.

    v ~ G grad h(a),   G = S^2 = Sigma^2p up to scale

grad h . G grad h > 0 for every symmetric positive definite G, so h rises along all of them. G = I
prefers directions in which h changes fast and activations hardly vary; G = Sigma the ones in
which they really do. For two Gaussians of one covariance Sigma, G = Sigma makes the discriminant's
field the mean difference: Sigma Sigma^-1 (mean+ - mean-).

Source: Zhao et al., "ODESteer", ICLR 2026, https://arxiv.org/abs/2602.17560, for the field;
Amari, "Natural Gradient Works Efficiently in Learning", Neural Computation 10, 1998, for
gradients in a metric.
"""

from torch import Tensor

from odesteer.ode.barriers.base import Barrier
from odesteer.ode.whitening import Whitening


class MetricBarrier(Barrier):
    """h as it is, with the ascent S^2 grad h.

    Args:
        barrier: h.
        whitening: y = S^-1 (a - m); the ascent is steepest in y.
    """

    def __init__(self, barrier: Barrier, whitening: Whitening):
        super().__init__()
        self.barrier = barrier
        self.whitening = whitening

    def value(self, a: Tensor) -> Tensor:
        return self.barrier.value(a)

    def gradient(self, a: Tensor) -> Tensor:
        return self.barrier.gradient(a)

    def ascent(self, a: Tensor) -> Tensor:
        return self.whitening.power(self.barrier.gradient(a), 2)

    @property
    def width(self) -> int | None:
        return self.barrier.width

    def affine(self, scale: float, offset: float = 0.0) -> "MetricBarrier":
        return MetricBarrier(self.barrier.affine(scale, offset), self.whitening)
