"""Barrier interface, linear and affine barriers.

    h : R^d -> R,   C = {a : h(a) >= 0} is the region where we want activations to be

A steering method that reads its data as two classes has h(a) = log p+(a)/p-(a), the
log density ratio of the positive and the negative activations.

Source: Zhao et al., "ODESteer: A Unified ODE-Based Steering Framework for LLM
Alignment", ICLR 2026, https://arxiv.org/abs/2602.17560, section 4.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Sphere(NamedTuple):
    """The sphere that a barrier's own flow stays on, seen from one activation.

    `offset` [..., d] is a - centre; `radius` [..., 1] is the radius of curvature of the
    flow's great circle there, in units of a.
    """

    offset: Tensor
    radius: Tensor


class Barrier(nn.Module, ABC):
    """A scalar function h of an activation, positive where we want to be.

    `value` maps [..., d] to [...], `gradient` maps [..., d] to [..., d]; rows never
    influence one another. Constructor arguments are stored under their own names, which
    is all that `odesteer.steering.serialization.tree` needs to write and read any barrier.
    """

    @abstractmethod
    def value(self, a: Tensor) -> Tensor:
        """h(a): [..., d] -> [...]."""

    @abstractmethod
    def gradient(self, a: Tensor) -> Tensor:
        """grad h(a): [..., d] -> [..., d]."""

    def ascent(self, a: Tensor) -> Tensor:
        """G grad h(a) for the barrier's own metric G (the identity unless it says otherwise).

        grad h . G grad h > 0 for every symmetric positive definite G, so following the
        ascent raises h exactly as following the gradient does.
        """
        return self.gradient(a)

    def sphere(self, a: Tensor) -> Sphere | None:
        """The sphere the flow of `ascent` stays on, or None if it stays on none."""
        return None

    def affine(self, scale: float, offset: float = 0.0) -> "Barrier":
        """The barrier scale * h + offset; scale -1 is "not"."""
        return AffineBarrier(self, scale, offset)

    @property
    def width(self) -> int | None:
        """d, or None where any width will do."""
        return None

    def forward(self, a: Tensor) -> Tensor:
        return self.value(a)


class LinearBarrier(Barrier):
    """h(a) = weight . a + bias.

    The log density ratio of two Gaussians with one covariance, and what a linear probe
    learns. Its gradient is constant, so one Euler step solves its flow exactly.

    Args:
        weight: [d].
        bias: [], or a number.
    """

    def __init__(self, weight: Tensor, bias: Tensor | float = 0.0):
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.as_tensor(bias, dtype=weight.dtype))

    def value(self, a: Tensor) -> Tensor:
        return a @ self.weight + self.bias

    def gradient(self, a: Tensor) -> Tensor:
        return self.weight.expand_as(a)

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    def affine(self, scale: float, offset: float = 0.0) -> "LinearBarrier":
        return LinearBarrier(scale * self.weight, scale * self.bias + offset)


class ModuleBarrier(Barrier):
    """h(a) = module(a) for any torch module R^d -> R; its gradient comes from autograd.

    The module maps [n, d] to [n] or [n, 1] and must treat rows independently. It works
    under `torch.no_grad` and `torch.inference_mode` too. It cannot be saved: a module is
    code, and loading a steering never runs code.

    Args:
        module: any `torch.nn.Module`.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def value(self, a: Tensor) -> Tensor:
        return self.module(a.reshape(-1, a.shape[-1])).reshape(a.shape[:-1])

    def gradient(self, a: Tensor) -> Tensor:
        # Inference tensors cannot enter autograd: leave inference mode *and* copy.
        with torch.inference_mode(False), torch.enable_grad():
            point = a.detach().clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.value(point).sum(), point)
        return gradient


class AffineBarrier(Barrier):
    """scale * h(a) + offset: calibration (scale > 0) and negation (scale -1).

    Args:
        barrier: h.
        scale: any number but 0.
        offset: any number.
    """

    def __init__(self, barrier: Barrier, scale: float, offset: float = 0.0):
        super().__init__()
        if scale == 0:
            raise ValueError("An AffineBarrier with scale 0 is constant and has no gradient.")
        self.barrier = barrier
        self.scale = float(scale)
        self.offset = float(offset)

    def value(self, a: Tensor) -> Tensor:
        return self.scale * self.barrier.value(a) + self.offset

    def gradient(self, a: Tensor) -> Tensor:
        return self.scale * self.barrier.gradient(a)

    def ascent(self, a: Tensor) -> Tensor:
        return self.scale * self.barrier.ascent(a)

    def sphere(self, a: Tensor) -> Sphere | None:
        return self.barrier.sphere(a)

    @property
    def width(self) -> int | None:
        return self.barrier.width

    def affine(self, scale: float, offset: float = 0.0) -> "AffineBarrier":
        return AffineBarrier(self.barrier, scale * self.scale, scale * self.offset + offset)
