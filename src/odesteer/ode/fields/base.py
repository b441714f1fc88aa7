"""Vector fields: the right-hand side of da/dt = v(a).

A field maps activations [..., d] to velocities [..., d], each row independently. It may have a
barrier that it raises, and cheaper coordinates in which the same ODE closes (`reduce`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from odesteer.ode.barriers.base import Barrier
from odesteer.ode.barriers.quadratic import QuadraticBarrier, unit_or_zero
from odesteer.ode.reduced.flow import displacement, project


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision for solving activations: float64 stays, others are float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Flow(Protocol):
    """Right-hand side of an ODE in some coordinates, as solvers use it."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """Evaluate dx/dt."""

    def value(self, x: Tensor, /) -> Tensor:
        """Evaluate the barrier h at x."""

    def rotate(self, x: Tensor, time: Tensor, /) -> Tensor:
        """Take a great-circle step, for fields tangent to a sphere."""

    @property
    def spherical(self) -> bool:
        """Whether the flow stays on a sphere, so that `rotate` can be used."""

    def longest(self, x: Tensor, /) -> Tensor | None:
        """Return the longest time of a step that cannot lower h, [..., 1]; None if unknown.

        Of a step of `rotate` where `spherical`, of an Euler step elsewhere.
        """

    def length(self, x: Tensor, /) -> Tensor:
        """Return the length in activation space of a displacement, [..., 1]."""


class Reduction(NamedTuple):
    """ODE in reduced coordinates: its flow, its start, and the map back."""

    flow: Flow
    start: Tensor
    lift: Callable[[Tensor], Tensor]


class VectorField(nn.Module, ABC):
    """Vector field v: [..., d] -> [..., d].

    Attributes:
        unit_speed: ||v|| = 1 wherever v is not 0.
        gated: v is 0 on one side of a gate. A negative dose then follows the reversed
            field, whose gate opens on the other side, instead of this one backwards.
        prompt_conditioned: v depends on the activation of the prompt's last token alone, and is
            the same for all following tokens; `forward` takes that activation.
    """

    unit_speed: bool = False
    gated: bool = False
    prompt_conditioned: bool = False

    def __init__(self, barrier: Barrier | None = None):
        super().__init__()
        self.barrier = barrier

    @abstractmethod
    def forward(self, a: Tensor) -> Tensor:
        """Evaluate v(a)."""

    @abstractmethod
    def reversed(self) -> "VectorField":
        """Return -v, with the barrier -h if there is one."""

    @property
    def width(self) -> int | None:
        """d, or None if any width is accepted."""
        return None if self.barrier is None else self.barrier.width

    def reduce(self, a: Tensor) -> Reduction:
        """Return the same ODE from `a`, in the cheapest coordinates known."""
        return Reduction(self, a, lambda x: x)

    def closed_form(self, a: Tensor, time: float) -> Tensor | None:
        """Return a(time) in closed form, or None if a solver is needed."""
        return None

    def value(self, a: Tensor) -> Tensor:
        """Evaluate the barrier h(a).

        Raises:
            ValueError: if the field has no barrier.
        """
        if self.barrier is None:
            raise ValueError(
                f"{type(self).__name__} has no barrier, so it cannot tell when a target is "
                f"reached; use a strength, or a method with a barrier."
            )
        return self.barrier.value(a)

    def infeasible(self, a: Tensor) -> Tensor:
        """Return where v(a) misses constraints that the field is to satisfy: bool [...]."""
        return torch.zeros_like(a[..., 0], dtype=torch.bool)

    def rotate(self, a: Tensor, time: Tensor) -> Tensor:
        """Move a along its great circle for `time`.

        Raises:
            ValueError: if the flow stays on no sphere.
        """
        sphere = None if self.barrier is None else self.barrier.sphere(a)
        if sphere is None or not self.unit_speed:
            raise ValueError(
                f"The great-circle solver needs a unit-speed field on a sphere; "
                f"{type(self).__name__} has none. Use 'euler', 'heun' or 'rk4'."
            )
        offset, radius = sphere
        angle = torch.where(radius > 0, time / radius, torch.zeros_like(radius))
        circle = angle.cos() * offset + angle.sin() * radius * self(a)
        return a - offset + circle

    @property
    def spherical(self) -> bool:
        return self.unit_speed and self.barrier is not None and self.barrier.spherical

    def longest(self, a: Tensor) -> Tensor | None:
        """Return 2 grad h . v / (L ||v||^2), the bound of Proposition 6; see `Flow.longest`.

        On a sphere of radius r it is 2 grad h . v r^2 / L, as h changes at the rate
        grad h . v r a radian.
        """
        smoothness = None if self.barrier is None else self.barrier.smoothness()
        if self.barrier is None or smoothness is None:
            return None
        v = self(a)
        rise = (self.barrier.gradient(a) * v).sum(dim=-1, keepdim=True).clamp_min(0.0)
        bend = smoothness * v.square().sum(dim=-1, keepdim=True)
        if self.spherical and (sphere := self.barrier.sphere(a)) is not None:
            rise, bend = rise * sphere.radius.square(), smoothness.expand_as(rise)
        straight = bend <= 0
        return (2.0 * rise / bend.masked_fill(straight, 1.0)).masked_fill(straight, torch.inf)

    def length(self, x: Tensor) -> Tensor:
        return x.norm(dim=-1, keepdim=True)


class ZeroField(VectorField):
    """Zero field v = 0: the unsteered model."""

    def forward(self, a: Tensor) -> Tensor:
        return torch.zeros_like(a)

    def reversed(self) -> "ZeroField":
        return self


class ConstantField(VectorField):
    """Constant field v(a) = direction, of any length; one Euler step is exact.

    Args:
        direction: [d].
        barrier: a barrier that it raises, if any.
    """

    def __init__(self, direction: Tensor, barrier: Barrier | None = None):
        super().__init__(barrier)
        self.direction: Tensor
        self.register_buffer("direction", direction)

    def forward(self, a: Tensor) -> Tensor:
        return self.direction.expand_as(a)

    def closed_form(self, a: Tensor, time: float) -> Tensor:
        return torch.add(a, self.direction, alpha=time)

    @property
    def width(self) -> int:
        return self.direction.shape[0]

    def reversed(self) -> "ConstantField":
        return ConstantField(
            -self.direction, None if self.barrier is None else self.barrier.affine(-1.0)
        )


class GivenField(VectorField):
    """Given velocity of each row, kept along its path.

    The reduction (`reduce`) of a field that freezes its velocity at the start.

    Args:
        velocity: [..., d], as the activations.
        barrier: a barrier that it raises, if any.
    """

    def __init__(self, velocity: Tensor, barrier: Barrier | None = None):
        super().__init__(barrier)
        self.velocity = velocity

    def forward(self, a: Tensor) -> Tensor:
        return self.velocity.expand_as(a)

    def reversed(self) -> "GivenField":
        return GivenField(
            -self.velocity, None if self.barrier is None else self.barrier.affine(-1.0)
        )


class GradientField(VectorField):
    """Normalised gradient v = G grad h / ||G grad h||; 0 at critical points of h.

    Along it dh/dt = grad h . v >= 0 (Proposition 2 of ODESteer; ||grad h|| when G = I), so
    time is path length. A quadratic barrier is integrated in k + 1 dimensions.

    Args:
        barrier: h; its `ascent` is G grad h.
    """

    unit_speed = True

    def __init__(self, barrier: Barrier):
        super().__init__(barrier)
        self.barrier: Barrier

    def forward(self, a: Tensor) -> Tensor:
        ascent = self.barrier.ascent(a)
        return unit_or_zero(ascent, ascent.norm(dim=-1, keepdim=True))

    def reversed(self) -> "GradientField":
        return GradientField(self.barrier.affine(-1.0))

    def reduce(self, a: Tensor) -> Reduction:
        barrier = self.barrier
        if not isinstance(barrier, QuadraticBarrier):
            return super().reduce(a)
        if torch.is_grad_enabled() and barrier.basis.shape[1] + 1 >= a.shape[-1]:
            # No smaller, and without a complement of V its length has no gradient.
            return super().reduce(a)
        basis = barrier.reduced_basis
        x = a - basis.centre
        flow, start = project(basis, x @ basis.projection, x.norm(dim=-1, keepdim=True))

        def lift(state: Tensor) -> Tensor:
            shift, change = displacement(start, state)
            return a + shift * x + change @ basis.lift

        return Reduction(flow, start, lift)


class PlainGradientField(VectorField):
    """Plain gradient v = grad h: h rises at the rate ||grad h||^2.

    Args:
        barrier: h.
    """

    def __init__(self, barrier: Barrier):
        super().__init__(barrier)
        self.barrier: Barrier

    def forward(self, a: Tensor) -> Tensor:
        return self.barrier.gradient(a)

    def reversed(self) -> "PlainGradientField":
        return PlainGradientField(self.barrier.affine(-1.0))
