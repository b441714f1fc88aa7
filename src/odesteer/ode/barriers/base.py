"""Barrier interface, linear barriers, Boolean algebra, preconditioning.

    h : R^d -> R,   C = {a : h(a) >= 0} is the desired region

For a method that learns from two classes, h(a) = log p+(a)/p-(a) is the log density ratio of
positive and negative activations.

Source: Zhao et al., "ODESteer: A Unified ODE-Based Steering Framework for LLM
Alignment", ICLR 2026, https://arxiv.org/abs/2602.17560, section 4.

Boolean algebra of barriers.

    "A and B"  h = min(h_A, h_B)   or, smoothly,  -log(e^-h_A + e^-h_B)
    "A or B"   h = max(h_A, h_B)   or, smoothly,   log(e^h_A + e^h_B)
    "not A"    h = -h_A            (`Barrier.affine(-1)`)

min and max are the exact intersection and union of the regions. The smooth forms have a smooth
field and differ from them by at most log(number of parts): soft "and" is below min, so h >= 0
still implies that every part is >= 0.

Preconditioning of the gradient by a metric.

    v ~ G grad h(a),   G = S^2 = Sigma^2p up to scale

grad h . G grad h > 0 for every symmetric positive definite G, so h rises along each such field.
G = I favours directions in which activations hardly vary, G = Sigma those in which they do. For two
Gaussians of one covariance Sigma, G = Sigma makes the discriminant's field the mean difference:
Sigma Sigma^-1 (mean+ - mean-).

Source: Zhao et al., "ODESteer", ICLR 2026, https://arxiv.org/abs/2602.17560, for the field;
Amari, "Natural Gradient Works Efficiently in Learning", Neural Computation 10, 1998, for
gradients in a metric.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from odesteer.ode.whitening import Whitening


def is_learnt(module: nn.Module) -> bool:
    """Return whether gradients are asked for with respect to any of the module's tensors."""
    return any(tensor.requires_grad for tensor in chain(module.parameters(), module.buffers()))


class Sphere(NamedTuple):
    """Sphere that the flow of a barrier stays on, relative to an activation a.

    Attributes:
        offset: a - centre, [..., d].
        radius: radius of curvature of the flow's great circle at a, in units of a, [..., 1].
    """

    offset: Tensor
    radius: Tensor


def reach(change: Tensor, rate: Tensor, growth: Tensor, largest: Tensor | None = None) -> Tensor:
    """Return how far h must be followed to change by `change`, at the least.

    The t at which an h that changes at the rate min(rate + growth t, largest) has done so:
    2 change / (rate + sqrt(rate^2 + 2 growth change)) until the rate is the largest.

    Args:
        change: >= 0, [...].
        rate: of h where it starts, >= 0, [...].
        growth: bound of the rate's own rate, [].
        largest: bound of the rate, []; None for no bound.
    """
    denominator = rate + (rate.square() + 2.0 * growth * change).sqrt()
    growing = torch.where(change > 0, 2.0 * change / denominator, 0.0)
    if largest is None:
        return growing
    end = torch.where(growth > 0, (largest - rate).clamp_min(0.0) / growth, 0.0)
    by_then = (rate + growth * end / 2) * end
    steady = end + torch.where(change > by_then, (change - by_then) / largest, 0.0)
    return torch.where(change > by_then, steady, growing)


class Barrier(nn.Module, ABC):
    """Scalar function h of an activation, positive in the desired region.

    `value` maps [..., d] to [...], `gradient` maps [..., d] to [..., d]; rows are independent.
    Constructor arguments are stored as attributes of the same name, as
    `odesteer.steering.serialization.tree` requires.
    """

    @abstractmethod
    def value(self, a: Tensor) -> Tensor:
        """Evaluate h: [..., d] -> [...]."""

    @abstractmethod
    def gradient(self, a: Tensor) -> Tensor:
        """Evaluate grad h: [..., d] -> [..., d]."""

    def metric(self, x: Tensor) -> Tensor:
        """Return G x for x [..., d], G symmetric positive definite (the identity by default)."""
        return x

    def ascent(self, a: Tensor) -> Tensor:
        """Evaluate G grad h.

        grad h . G grad h > 0 for every symmetric positive definite G, so the ascent raises h as
        the gradient does.
        """
        return self.metric(self.gradient(a))

    def conjuncts(self) -> list["Barrier"]:
        """Return barriers whose minimum is h: the parts of a hard "and", or this one alone."""
        return [self]

    def sphere(self, a: Tensor) -> Sphere | None:
        """Return the sphere that the flow of `ascent` stays on, or None."""
        return None

    def affine(self, scale: float, offset: float = 0.0) -> "Barrier":
        """Return the barrier scale * h + offset; scale -1 is "not"."""
        return AffineBarrier(self, scale, offset)

    @property
    def spherical(self) -> bool:
        """Whether the flow of `ascent` stays on a sphere, see `sphere`."""
        return False

    def lipschitz(self) -> Tensor:
        """Return a bound K of |h(a) - h(b)| / ||a - b|| over all a and b, [].

        Raises:
            ValueError: if none is known.
        """
        raise ValueError(
            f"No Lipschitz bound of a {type(self).__name__} is known. One is for LinearBarrier, "
            f"FourierBarrier, MixtureBarrier, NetworkBarrier and their compositions; for "
            f"QuadraticBarrier and FormBarrier, which have none, ask for `radius`."
        )

    def smoothness(self) -> Tensor | None:
        """Return a bound L of how fast grad h changes, [], or None if none is known.

        ||grad h(a) - grad h(b)|| <= L ||a - b||; where `spherical`, |d2h/dtheta2| <= L along the
        great circles of y, theta in radians.
        """
        return None

    def radius(self, a: Tensor, level: Tensor | float) -> Tensor:
        """Return a distance within which h stays on its side of `level`: [..., d] -> [...].

        A certificate, up to the rounding of h: ||b - a|| < radius implies h(b) >= level if
        h(a) >= level, and h(b) < level otherwise. By default |h(a) - level| / K, the Lipschitz
        margin of Tsuzuku, Sato, Sugiyama, "Lipschitz-Margin Training", NeurIPS 2018,
        https://arxiv.org/abs/1802.04034

        Raises:
            ValueError: if no bound is known.
        """
        return (self.value(a) - level).abs() / self.lipschitz()

    @property
    def width(self) -> int | None:
        """d, or None if any width is accepted."""
        return None

    def forward(self, a: Tensor) -> Tensor:
        return self.value(a)


class LinearBarrier(Barrier):
    """h(a) = weight . a + bias.

    The log density ratio of two Gaussians with one covariance, and the form of a linear probe.
    Its gradient is constant, so one Euler step solves its flow exactly.

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

    def lipschitz(self) -> Tensor:
        return self.weight.norm()

    def smoothness(self) -> Tensor:
        return torch.zeros_like(self.bias)

    @property
    def width(self) -> int:
        return self.weight.shape[0]

    def affine(self, scale: float, offset: float = 0.0) -> "LinearBarrier":
        return LinearBarrier(scale * self.weight, scale * self.bias + offset)


class ModuleBarrier(Barrier):
    """h(a) = module(a) for any torch module R^d -> R; its gradient comes from autograd.

    The module maps [n, d] to [n] or [n, 1], each row independently. `torch.no_grad` and
    `torch.inference_mode` are supported. It cannot be saved: a module is code, and loading a
    steering never runs code.

    Args:
        module: any `torch.nn.Module`.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def value(self, a: Tensor) -> Tensor:
        return self.module(a.reshape(-1, a.shape[-1])).reshape(a.shape[:-1])

    def gradient(self, a: Tensor) -> Tensor:
        if torch.is_grad_enabled() and (a.requires_grad or is_learnt(self)):
            point = a if a.requires_grad else a.detach().requires_grad_(True)
            total = self.value(point).sum()
            (gradient,) = torch.autograd.grad(total, point, create_graph=True)
            return gradient
        # Inference tensors cannot enter autograd: leave inference mode *and* copy.
        with torch.inference_mode(False), torch.enable_grad():
            point = a.detach().clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.value(point).sum(), point)
        return gradient


class AffineBarrier(Barrier):
    """scale * h(a) + offset, for calibration (scale > 0) and negation (scale -1).

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

    def metric(self, x: Tensor) -> Tensor:
        return self.barrier.metric(x)

    def ascent(self, a: Tensor) -> Tensor:
        return self.scale * self.barrier.ascent(a)

    def conjuncts(self) -> list[Barrier]:
        parts = self.barrier.conjuncts()
        if len(parts) == 1 or self.scale < 0:
            return [self]
        return [AffineBarrier(part, self.scale, self.offset) for part in parts]

    def sphere(self, a: Tensor) -> Sphere | None:
        return self.barrier.sphere(a)

    @property
    def spherical(self) -> bool:
        return self.barrier.spherical

    def lipschitz(self) -> Tensor:
        return abs(self.scale) * self.barrier.lipschitz()

    def smoothness(self) -> Tensor | None:
        smoothness = self.barrier.smoothness()
        return None if smoothness is None else abs(self.scale) * smoothness

    def radius(self, a: Tensor, level: Tensor | float) -> Tensor:
        return self.barrier.radius(a, (level - self.offset) / self.scale)

    @property
    def width(self) -> int | None:
        return self.barrier.width

    def affine(self, scale: float, offset: float = 0.0) -> "AffineBarrier":
        return AffineBarrier(self.barrier, scale * self.scale, scale * self.offset + offset)


class _Junction(Barrier):
    """Base of "and" and "or"; with sign -1, "and" is "or" of the negated parts."""

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

    def _weights(self, a: Tensor) -> Tensor:
        """Return the weight of each part's gradient: softmax, or one-hot at the active part."""
        values = self._signed_values(a)
        if self.soft:
            return torch.softmax(values, dim=-1)
        return nn.functional.one_hot(values.argmax(dim=-1), len(self.parts)).to(values.dtype)

    def value(self, a: Tensor) -> Tensor:
        values = self._signed_values(a)
        total = torch.logsumexp(values, dim=-1) if self.soft else values.amax(dim=-1)
        return self.sign * total

    def gradient(self, a: Tensor) -> Tensor:
        gradients = torch.stack([part.gradient(a) for part in self._barriers], dim=-1)
        return (gradients * self._weights(a).unsqueeze(-2)).sum(dim=-1)

    def lipschitz(self) -> Tensor:
        return torch.stack([part.lipschitz() for part in self._barriers]).amax()

    def radius(self, a: Tensor, level: Tensor | float) -> Tensor:
        if self.soft:
            return super().radius(a, level)
        # One part that crosses is enough to leave the side on which all parts are; to come there,
        # all parts on the other side have to cross.
        radii = torch.stack([part.radius(a, level) for part in self._barriers], dim=-1)
        beyond = torch.stack([part.value(a) >= level for part in self._barriers], dim=-1)
        alike = beyond if self.sign < 0 else ~beyond
        last = radii.masked_fill(alike, 0.0).amax(dim=-1)
        return torch.where(alike.all(dim=-1), radii.amin(dim=-1), last)

    def ascent(self, a: Tensor) -> Tensor:
        # A mean of ascents under different metrics need not raise h; the active part's does.
        if self.soft:
            return self.gradient(a)
        ascents = torch.stack([part.ascent(a) for part in self._barriers], dim=-1)
        return (ascents * self._weights(a).unsqueeze(-2)).sum(dim=-1)


class AndBarrier(_Junction):
    """Intersection: -log sum_i e^-h_i (soft) or min_i h_i.

    Args:
        parts: at least one barrier of the same width.
        soft: the smooth form (default) or the minimum.
    """

    sign = -1.0

    def conjuncts(self) -> list[Barrier]:
        if self.soft:
            return [self]
        return [each for part in self._barriers for each in part.conjuncts()]


class OrBarrier(_Junction):
    """Union: log sum_i e^h_i (soft) or max_i h_i.

    Args:
        parts: at least one barrier of the same width.
        soft: the smooth form (default) or the maximum.
    """

    sign = 1.0


class MetricBarrier(Barrier):
    """Barrier h with the preconditioned ascent S^2 grad h.

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

    def metric(self, x: Tensor) -> Tensor:
        return self.whitening.power(x, 2)

    def lipschitz(self) -> Tensor:
        return self.barrier.lipschitz()

    def smoothness(self) -> Tensor | None:
        return self.barrier.smoothness()

    def radius(self, a: Tensor, level: Tensor | float) -> Tensor:
        return self.barrier.radius(a, level)

    @property
    def width(self) -> int | None:
        return self.barrier.width

    def affine(self, scale: float, offset: float = 0.0) -> "MetricBarrier":
        return MetricBarrier(self.barrier.affine(scale, offset), self.whitening)
