"""Fields of maps: rotation towards a direction, transport between distributions.

Rotation of an activation towards a direction.

    v(a) = gamma ||a|| u,  u = unit vector of theta - (theta.a^) a^,   where theta.a < 0, else 0
    gamma = pi sigmoid(angle(a)),   h(a) = theta.a^,   a^ = a / ||a||

u lies in the plane of a and theta, which is the plane of a and its reflection in the
hyperplane theta.a = 0. A row keeps its initial plane and gamma, so its path is a great circle:
a(t) = cos(t gamma) a + sin(t gamma) ||a|| u, and t = 1 rotates it by gamma.

Source: Pham and Nguyen, "Householder Pseudo-Rotation: A Novel Approach to Activation Editing
in LLMs with Direction-Magnitude Perspective", EMNLP 2024, https://arxiv.org/abs/2409.10053

Transport maps between distributions.

    v(a) = M(a) - a = grad h(a) where the gate is open and a is inside the support, else 0

A transport map M that is optimal for the squared distance is the gradient of a convex
function psi (Brenier's theorem), so its displacement is the gradient of the barrier
h(a) = psi(a) - ||a||^2 / 2. When M is affine, h is quadratic.

A row keeps its initial velocity (displacement interpolation): a(t) = a + t (M(a) - a) is a straight
line, exact with one Euler step, and t = 1 is the whole map.

Source: McCann, "A Convexity Principle for Interacting Gases", Advances in Mathematics 128,
1997, https://doi.org/10.1006/aima.1997.1634
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesteer.ode.barriers.base import Barrier, is_learnt, reach
from odesteer.ode.barriers.mlp import Network
from odesteer.ode.barriers.quadratic import QuadraticBarrier, is_above_noise, unit_or_zero
from odesteer.ode.fields.base import GivenField, Reduction, VectorField
from odesteer.ode.whitening import Whitening


class PlaneFlow(NamedTuple):
    """Rotation at constant speed, in coordinates (x1, x2) of a(t) = x1 a + x2 ||a|| u.

    Attributes:
        speed: gamma, [..., 1]; 0 for rows that stay.
        radius: ||a||, [..., 1].
        cosine, sine: theta.a^ and theta.u, [...].
    """

    speed: Tensor
    radius: Tensor
    cosine: Tensor
    sine: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.speed * torch.stack([-x[..., 1], x[..., 0]], dim=-1)

    @property
    def spherical(self) -> bool:
        return True

    def longest(self, _x: Tensor) -> None:
        """No bound is known."""

    def value(self, x: Tensor) -> Tensor:
        """Return h, [..., 2] -> [...]."""
        return (self.cosine * x[..., 0] + self.sine * x[..., 1]) / x.norm(dim=-1)

    def rotate(self, x: Tensor, time: Tensor) -> Tensor:
        """Rotate x by gamma `time` [..., 1], exactly."""
        angle = self.speed * time
        return angle.cos() * x + angle.sin() * torch.stack([-x[..., 1], x[..., 0]], dim=-1)

    def length(self, x: Tensor) -> Tensor:
        return self.radius * x.norm(dim=-1, keepdim=True)


class RotationField(VectorField):
    """Rotation towards `theta` of rows on the negative side of a probe through the origin.

    `reversed()` is the mirrored field: with the reflection H = I - 2 theta theta^T it is H v(H a).
    It rotates away from theta where theta.a > 0, by the angle of the mirror image. (`angle` was
    trained to give these rows themselves no angle.)

    Args:
        theta: [d], of length 1.
        angle: [d] -> 1; a row rotates by pi sigmoid(angle(a)) in unit time.
        mirrored: whether the field is reversed.

    Raises:
        ValueError: if theta is not of length 1, or `angle` does not map [d] to one number.
    """

    gated = True

    def __init__(self, theta: Tensor, angle: Network, mirrored: bool = False):
        fits = angle.width == len(theta) and angle.outputs == 1
        if not fits or not abs(float(theta.norm()) - 1.0) < 1e-3:
            raise ValueError(
                f"RotationField needs theta [d] of length 1 and a network [d] -> 1; got "
                f"{list(theta.shape)} of length {float(theta.norm()):.4g} and [{angle.width}] -> "
                f"{angle.outputs}."
            )
        # The cosine to theta is the quadratic barrier without curvature, on the sphere about 0.
        towards = theta.new_full((1,), -1.0 if mirrored else 1.0)
        centre, flat = torch.zeros_like(theta), torch.zeros_like(towards)
        super().__init__(
            QuadraticBarrier(Whitening(centre), theta.unsqueeze(1), flat, towards, 0.0)
        )
        self.barrier: QuadraticBarrier
        self.theta: Tensor
        self.register_buffer("theta", theta)
        self.angle = angle
        self.mirrored = mirrored

    def _plane(self, a: Tensor) -> tuple[PlaneFlow, Tensor]:
        """Return the flow of each row, and its u [..., d]."""
        radius = a.norm(dim=-1, keepdim=True)
        unit = unit_or_zero(a, radius)
        theta = -self.theta if self.mirrored else self.theta
        cosine = (unit @ theta).unsqueeze(-1)
        tangent = theta - cosine * unit
        length = tangent.norm(dim=-1, keepdim=True)
        # Near theta the difference above is mostly rounding; a second projection makes u orthogonal
        # to a, so that ||a|| is kept there too. On theta itself there is no plane of rotation.
        u = unit_or_zero(tangent, length)
        u = u - (u * unit).sum(dim=-1, keepdim=True) * unit
        u = unit_or_zero(u, u.norm(dim=-1, keepdim=True))
        rotates = (cosine < 0) & is_above_noise(length, theta)
        image = a - 2.0 * (a @ theta).unsqueeze(-1) * theta if self.mirrored else a
        speed = math.pi * torch.sigmoid(self.angle(image)) * rotates
        return PlaneFlow(speed, radius, cosine[..., 0], u @ theta), u

    def forward(self, a: Tensor) -> Tensor:
        flow, u = self._plane(a)
        return flow.speed * flow.radius * u

    def reversed(self) -> "RotationField":
        return RotationField(self.theta, self.angle, not self.mirrored)

    def reduce(self, a: Tensor) -> Reduction:
        flow, u = self._plane(a)
        start = torch.cat([torch.ones_like(flow.radius), torch.zeros_like(flow.radius)], dim=-1)
        return Reduction(flow, start, lambda x: x[..., :1] * a + x[..., 1:] * flow.radius * u)


class FormBarrier(Barrier):
    """Quadratic form h(a) = x^T M x / 2 + slope . x + constant,  x = a - centre.

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
        self._smoothness: Tensor | None = None

    def _apply(self, *args: Any, **kwargs: Any) -> "FormBarrier":
        super()._apply(*args, **kwargs)
        self._smoothness = None
        return self

    def smoothness(self) -> Tensor:
        """Return the spectral norm of M, the Hessian; computed once."""
        if self._smoothness is not None and not is_learnt(self):
            return self._smoothness
        # No inference tensor, which a later backward pass could not use.
        with torch.inference_mode(False), torch.no_grad():
            values = self.matrix
            if values.dim() == 2:
                values = torch.linalg.eigvalsh((values + values.mT) / 2)
            self._smoothness = values.abs().amax()
        return self._smoothness

    def radius(self, a: Tensor, level: Tensor | float) -> Tensor:
        """Return the distance at which a rate of ||grad h|| + ||M|| t may have changed h so."""
        change, rate = (self.value(a) - level).abs(), self.gradient(a).norm(dim=-1)
        return reach(change, rate, self.smoothness())

    def _product(self, x: Tensor) -> Tensor:
        return x @ self.matrix if self.matrix.dim() == 2 else x * self.matrix

    def value(self, a: Tensor) -> Tensor:
        x = a - self.centre
        return ((self._product(x) / 2 + self.slope) * x).sum(dim=-1) + self.constant

    def gradient(self, a: Tensor) -> Tensor:
        return self._product(a - self.centre) + self.slope

    @property
    def width(self) -> int:
        return self.slope.shape[0]

    def affine(self, scale: float, offset: float = 0.0) -> "FormBarrier":
        return FormBarrier(
            self.centre, scale * self.matrix, scale * self.slope, scale * self.constant + offset
        )


class TransportField(VectorField):
    """Gradient field v = grad h, each row along its initial straight line.

    Args:
        barrier: h, whose gradient is the displacement M(a) - a.
        gate: rows move where this barrier is negative; None: everywhere.
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
        self.gated = gate is not None

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
