"""How is the integral of da/dt = v(a) taken?

Every solver moves each row by itself, through its own time, forwards or backwards, and can
stop a row where the barrier reaches a level (`level`). Fixed steps are an integer count:
the step is time / steps, never the other way round, so ten steps are ten.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odesteer.ode import tableau as tableaus
from odesteer.ode.field import Flow
from odesteer.ode.tableau import Tableau

# Illinois halvings that bring an event inside a step to float32 precision.
_EVENT_ITERATIONS = 24


class Solver(ABC):
    """Integrates a flow from x for `time`."""

    @abstractmethod
    def step(self, flow: Flow, x: Tensor, dt: Tensor) -> Tensor:
        """One step of signed length dt [..., 1]."""

    @abstractmethod
    def integrate(
        self, flow: Flow, x: Tensor, time: Tensor, steps: int, level: float | None = None
    ) -> Tensor:
        """x(time).

        Args:
            flow: the ODE.
            x: the start, [..., k].
            time: signed, one a row, [...].
            steps: how many fixed steps, >= 1; adaptive solvers choose their own.
            level: stop each row where the barrier reaches this value, inside the step; a
                row that starts there stays.
        """

    def path(self, flow: Flow, x: Tensor, time: Tensor, steps: int) -> Tensor:
        """The states at 0, time/steps, ..., time: [steps + 1, ..., k]."""
        states = [x]
        for _ in range(steps):
            states.append(self.integrate(flow, states[-1], time / steps, 1))
        return torch.stack(states)

    def _until(
        self, flow: Flow, x: Tensor, after: Tensor, dt: Tensor, level: float
    ) -> tuple[Tensor, Tensor]:
        """Cut the step x -> after where the barrier reaches `level`; also which rows are done.

        The step's result is a smooth function of its length: regula falsi with the
        Illinois rule finds the length where h = level. The end of the bracket that has
        h >= level is returned, so the promise holds at the activation itself. The count
        of iterations is fixed and nothing is read back from the device.
        """
        before_h, after_h = flow.value(x) - level, flow.value(after) - level
        there, reached = before_h >= 0, after_h >= 0
        low, high = torch.zeros_like(dt[..., 0]), dt[..., 0]
        f_low, f_high = before_h, after_h
        best = after
        for _ in range(_EVENT_ITERATIONS):
            span = f_high - f_low
            fraction = torch.where(span > 0, -f_low / span, torch.full_like(span, 0.5))
            middle = low + (high - low) * fraction.clamp(0.0, 1.0)
            trial = self.step(flow, x, middle.unsqueeze(-1))
            f = flow.value(trial) - level
            above = f >= 0
            best = torch.where((above & reached).unsqueeze(-1), trial, best)
            # Illinois: halve the weight of an end that stays, so that both close in.
            f_low, f_high = (
                torch.where(above, f_low * 0.5, f),
                torch.where(above, f, f_high * 0.5),
            )
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        result = torch.where(there.unsqueeze(-1), x, best)
        return result, there | reached


@dataclass(frozen=True)
class FixedStep(Solver):
    """Shared by the solvers whose steps are all alike."""

    def integrate(
        self, flow: Flow, x: Tensor, time: Tensor, steps: int, level: float | None = None
    ) -> Tensor:
        if steps < 1:
            raise ValueError(f"A solver needs at least 1 step; got {steps}.")
        dt = (time / steps).unsqueeze(-1)
        done: Tensor | None = None
        for _ in range(steps):
            after = self.step(flow, x, dt)
            if level is None:
                x = after
                continue
            after, stopped = self._until(flow, x, after, dt, level)
            x = after if done is None else torch.where(done.unsqueeze(-1), x, after)
            done = stopped if done is None else done | stopped
        return x


@dataclass(frozen=True)
class RungeKutta(FixedStep):
    """Fixed steps of an explicit Runge-Kutta method.

    Args:
        tableau: the method's coefficients.
    """

    tableau: Tableau

    def step(self, flow: Flow, x: Tensor, dt: Tensor) -> Tensor:
        return _stages(self.tableau, flow, x, dt)[0]


@dataclass(frozen=True)
class GreatCircle(FixedStep):
    """Steps along great circles: the sphere of the barrier is kept to rounding.

    The Lie-Euler method of a flow on a sphere (order 1). Euler leaves the sphere,
    ||a_K||^2 = ||a_0||^2 + T^2/K after K steps of T/K; this does not, at the same cost.
    """

    def step(self, flow: Flow, x: Tensor, dt: Tensor) -> Tensor:
        return flow.turn(x, dt)


@dataclass(frozen=True)
class Adaptive(Solver):
    """Steps of their own size in every row, from an embedded error estimate.

    The error of a step may be `tolerance` times its length (error per unit step), so the
    result is within about `tolerance` times the path length of the exact flow.

    Args:
        tableau: a pair with `b_error`.
        tolerance: > 0, relative to the displacement.
        max_steps: RuntimeError beyond that many.
    """

    tableau: Tableau = tableaus.DOPRI5
    tolerance: float = 1e-5
    max_steps: int = 1000

    def __post_init__(self) -> None:
        if self.tableau.b_error is None or not self.tolerance > 0:
            raise ValueError(
                f"An adaptive solver needs a tableau with b_error and a tolerance > 0; got "
                f"tolerance {self.tolerance}."
            )

    def step(self, flow: Flow, x: Tensor, dt: Tensor) -> Tensor:
        return _stages(self.tableau, flow, x, dt)[0]

    def integrate(
        self, flow: Flow, x: Tensor, time: Tensor, steps: int, level: float | None = None
    ) -> Tensor:
        if steps < 1:
            raise ValueError(f"A solver needs at least 1 step; got {steps}.")
        left = time.unsqueeze(-1).clone()
        dt = left / 10
        # A row is done when less is left than the arithmetic can resolve.
        smallest = left.abs() * torch.finfo(x.dtype).eps
        for _ in range(self.max_steps):
            if not bool((left.abs() > smallest).any()):
                return x
            dt = torch.where(dt.abs() < left.abs(), dt, left)
            after, error = _stages(self.tableau, flow, x, dt)
            allowed = self.tolerance * dt.abs() * _speed(flow, x)
            ratio = flow.length(error) / allowed.clamp_min(torch.finfo(x.dtype).tiny)
            # What rounding makes of the state is not the method's error and cannot shrink.
            noise = 4 * torch.finfo(x.dtype).eps * flow.length(x)
            accepted = ((ratio <= 1) | (flow.length(error) <= noise)) & (left.abs() > smallest)
            if level is not None:
                after, stopped = self._until(flow, x, after, dt, level)
                stopped = accepted & stopped.unsqueeze(-1)
            x = torch.where(accepted, after, x)
            left = torch.where(accepted, left - dt, left)
            if level is not None:
                left = torch.where(stopped, torch.zeros_like(left), left)
            # The error per unit step shrinks with the 4th power for a pair of order 5(4).
            factor = 0.9 * ratio.clamp_min(1e-10) ** (-1.0 / (self.tableau.order - 1))
            dt = dt * factor.clamp(0.2, 5.0)
        raise RuntimeError(
            f"The adaptive solver did not finish in {self.max_steps} steps at tolerance "
            f"{self.tolerance}; the field may not be smooth. Raise the tolerance or take fixed "
            f"steps."
        )


def _speed(flow: Flow, x: Tensor) -> Tensor:
    return flow.length(flow(x))


def _stages(tableau: Tableau, flow: Flow, x: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """One Runge-Kutta step and the difference to the embedded method (0 if there is none)."""
    slopes: list[Tensor] = []
    for row in tableau.a:
        slopes.append(flow(x + dt * _combine(row, slopes) if any(row) else x))
    low = tableau.b if tableau.b_error is None else tableau.b_error
    difference = [b - e for b, e in zip(tableau.b, low, strict=True)]
    error = dt * _combine(difference, slopes) if any(difference) else torch.zeros_like(x)
    return x + dt * _combine(tableau.b, slopes), error


def _combine(coefficients: Sequence[float], slopes: list[Tensor]) -> Tensor:
    terms = [c * slope for c, slope in zip(coefficients, slopes, strict=True) if c != 0.0]
    return sum(terms[1:], terms[0])


SOLVERS: dict[str, Solver] = {
    "euler": RungeKutta(tableaus.EULER),
    "midpoint": RungeKutta(tableaus.MIDPOINT),
    "heun": RungeKutta(tableaus.HEUN),
    "rk4": RungeKutta(tableaus.RK4),
    "rk4-38": RungeKutta(tableaus.RK4_38),
    "great-circle": GreatCircle(),
    "dopri5": Adaptive(),
}
