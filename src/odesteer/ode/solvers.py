"""Solvers of da/dt = v(a): Runge-Kutta with fixed or adaptive steps, great circles.

Every solver moves each row independently, through its own time, forwards or backwards, and can
stop a row where the barrier reaches a level (`level`). Fixed steps are an integer count: the
step is time / steps, never the other way round, so ten steps are ten.

Fixed steps pass gradients to the activation, the time, the level and the field's tensors
(discretise, then optimise). Where a row stops at a level, the length t of its last step is the
solution of h(step(x, t)) = level, so that dt = -dh / (dh/dt) by the implicit function theorem.

Source: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 2nd ed., 1993,
chapters II.1 and II.5.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from odesteer.ode.fields.base import Flow

# Each at least halves the bracket and, once close, doubles the digits.
_EVENT_ITERATIONS = 10
# Of a certified step whose length has no bound.
_HALVINGS = 10
# Margin above the level at which a row stops, in roundings relative to the sizes of h: h is
# computed anew from the activation, and P from h.
_ABOVE = 6


@dataclass(frozen=True)
class Tableau:
    """Butcher tableau of an explicit Runge-Kutta method.

        k_i = v(a + dt sum_j A_ij k_j),   a(t + dt) = a + dt sum_i b_i k_i

    Args:
        a: row i holds the i coefficients of stage i (the first row is empty).
        b: weights of the stages.
        order: the order of the method; the caller vouches for it.
        b_error: weights of an embedded method of order - 1, for step size control.

    Raises:
        ValueError: if the method is not explicit.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    b_error: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.a) != len(self.b) or any(len(row) != i for i, row in enumerate(self.a)):
            raise ValueError(
                f"An explicit tableau has {len(self.b)} rows of 0, 1, 2, ... coefficients; got "
                f"rows of {[len(row) for row in self.a]}."
            )


EULER = Tableau(a=((),), b=(1.0,), order=1)
"""Euler's method, explicit. Order 1, one stage."""

MIDPOINT = Tableau(a=((), (0.5,)), b=(0.0, 1.0), order=2)
"""Explicit midpoint rule, also called modified Euler. Order 2, two stages."""

HEUN = Tableau(a=((), (1.0,)), b=(0.5, 0.5), order=2)
"""Heun's method of order 2, also called the explicit trapezoidal rule or improved Euler.

Two stages. Not Heun's third-order method, nor Ralston's, which some texts call Heun's.
"""

RK4 = Tableau(a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4)
"""The classical Runge-Kutta method. Order 4, four stages."""

RK4_38 = Tableau(
    a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), b=(1 / 8, 3 / 8, 3 / 8, 1 / 8), order=4
)
"""Kutta's 3/8 rule. Order 4, four stages; smaller error constants than the classical method."""

DOPRI5 = Tableau(
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    order=5,
    b_error=(
        5179 / 57600,
        0.0,
        7571 / 16695,
        393 / 640,
        -92097 / 339200,
        187 / 2100,
        1 / 40,
    ),
)
"""Dormand-Prince 5(4), as in MATLAB's ode45: order 5 with an embedded method of order 4.

Seven stages; the last one, first-same-as-last, is not reused here.
"""


class Solver(ABC):
    """Solver of dx/dt = flow(x), x(0) = x.

    Attributes:
        adaptive: whether the number of steps depends on the rows, which no CUDA graph allows.
    """

    adaptive: ClassVar[bool] = False

    @abstractmethod
    def step(self, flow: Flow, x: Tensor, dt: Tensor) -> Tensor:
        """Take one step of signed length dt [..., 1]."""

    @abstractmethod
    def integrate(
        self,
        flow: Flow,
        x: Tensor,
        time: Tensor,
        steps: int,
        level: Tensor | float | None = None,
        taken: Tensor | None = None,
    ) -> Tensor:
        """Return x(time).

        Args:
            flow: the ODE.
            x: the start, [..., k].
            time: signed time of each row, [...].
            steps: number of fixed steps, >= 1; ignored by adaptive solvers.
            level: stop each row where the barrier reaches this value (one for all rows, or one for
                each [...]), inside the step; a row that starts there stays.
            taken: integers [...], to which the steps that each row took are added.
        """

    def path(self, flow: Flow, x: Tensor, time: Tensor, steps: int) -> Tensor:
        """Return the states at 0, time/steps, ..., time: [steps + 1, ..., k]."""
        states = [x]
        for _ in range(steps):
            states.append(self.integrate(flow, states[-1], time / steps, 1))
        return torch.stack(states)

    def _stop(
        self, flow: Flow, x: Tensor, dt: Tensor, level: Tensor | float, crossed: Tensor
    ) -> Tensor:
        """Return the state at which rows that cross `level` within dt [..., 1] are at it."""
        if not torch.is_grad_enabled():
            return self._locate(flow, x, dt, level)[0]
        with torch.no_grad():
            length = self._locate(flow, x, dt, level)[1].where(crossed.unsqueeze(-1), 0.0)
        along = length.clone().requires_grad_(True)
        end = flow.value(self.step(flow, x.detach(), along))
        (rate,) = torch.autograd.grad(end.sum(), along)
        rate = rate.masked_fill(~crossed.unsqueeze(-1) | (rate == 0), 1.0)
        excess = flow.value(self.step(flow, x, length)) - level
        excess = excess.where(crossed, 0.0).unsqueeze(-1)  # a level may be infinite
        # Of value `length`, and of the gradient that the implicit function theorem gives.
        return self.step(flow, x, length - (excess - excess.detach()) / rate)

    def _locate(
        self, flow: Flow, x: Tensor, dt: Tensor, level: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Step from x to where the barrier is at `level`, for rows that cross within dt [..., 1].

        Returns:
            state, and the length of the step to it [..., 1].

        The step's result is a smooth function of its length; Ridders' method finds the length
        where h = level. Of the bracket's ends the one with h >= level is returned, so that the
        bound holds at the activation itself. The number of iterations is fixed and nothing is read
        back from the device.

        Source: Ridders, "A new algorithm for computing a single root of a real continuous
        function", IEEE Transactions on Circuits and Systems 26, 1979.
        """

        def move(length: Tensor) -> tuple[Tensor, Tensor]:
            state = self.step(flow, x, length)
            return state, (flow.value(state) - level).unsqueeze(-1)

        low, high = torch.zeros_like(dt), dt
        # A guess that is exact may round to just below the level; this lifts it above.
        nudge = 4 * torch.finfo(dt.dtype).eps * dt
        f_low = (flow.value(x) - level).unsqueeze(-1)
        best, f_high = move(dt)
        for _ in range(_EVENT_ITERATIONS):
            middle = (low + high) / 2
            state, f_middle = move(middle)
            curve = (f_middle.square() - f_low * f_high).clamp_min(0.0).sqrt()
            shift = torch.where(curve > 0, f_middle / curve, torch.zeros_like(curve))
            guess = middle - (middle - low) * shift + nudge
            guess_state, f_guess = move(guess)
            points = ((middle, f_middle, state), (guess, f_guess, guess_state))
            for length, f, moved in points:
                # Either point may tighten either end; signs and not sizes decide.
                nearer = (f >= 0) & ((length - low).abs() <= (high - low).abs())
                best, high = torch.where(nearer, moved, best), torch.where(nearer, length, high)
                f_high = torch.where(nearer, f, f_high)
                farther = (f < 0) & ((length - high).abs() <= (high - low).abs())
                low, f_low = torch.where(farther, length, low), torch.where(farther, f, f_low)
        return best, high


@dataclass(frozen=True)
class FixedStep(Solver):
    """Base of the solvers with steps of equal length."""

    def integrate(
        self,
        flow: Flow,
        x: Tensor,
        time: Tensor,
        steps: int,
        level: Tensor | float | None = None,
        taken: Tensor | None = None,
    ) -> Tensor:
        if steps < 1:
            raise ValueError(f"A solver needs at least 1 step; got {steps}.")
        dt = (time / steps).unsqueeze(-1)
        if level is None:
            if taken is not None:
                taken += steps * (time != 0)
            for _ in range(steps):
                x = self.step(flow, x, dt)
            return x
        value = flow.value(x)
        done, level = value >= level, _above(level, value)
        crossed = torch.zeros_like(done)
        for _ in range(steps):
            if taken is not None:
                taken += ~done & (time != 0)
            after = self.step(flow, x, dt)
            # A row that crosses the level stays at the start of that step.
            crossed = crossed | (~done & (flow.value(after) >= level))
            done = done | crossed
            x = torch.where(done.unsqueeze(-1), x, after)
        return torch.where(crossed.unsqueeze(-1), self._stop(flow, x, dt, level, crossed), x)


@dataclass(frozen=True)
class RungeKutta(FixedStep):
    """Explicit Runge-Kutta method with fixed steps.

    Args:
        tableau: the method's coefficients.
    """

    tableau: Tableau

    def step(self, flow: Flow, x: Tensor, dt: Tensor) -> Tensor:
        return _stages(self.tableau, flow, x, dt)[0]


@dataclass(frozen=True)
class GreatCircle(FixedStep):
    """Lie-Euler method on a sphere: steps along great circles, order 1.

    It stays on the barrier's sphere to rounding. Euler's method leaves it, with
    ||a_K||^2 = ||a_0||^2 + T^2/K after K steps of T/K, at the same cost.
    """

    def step(self, flow: Flow, x: Tensor, dt: Tensor) -> Tensor:
        return flow.rotate(x, dt)


@dataclass(frozen=True)
class Certified(FixedStep):
    """Steps that do not lower h: along great circles on a sphere, Euler's elsewhere.

    A step is cut to the length for which Proposition 6 of the theory shows that h does not fall,
    2 ||grad h|| / L, where the barrier's `smoothness` L is known. Where it is not, and with
    `gamma`, the step is halved until the condition holds at its end, up to 10 times. Whatever the
    cause (rounding, too), a row whose step would break the condition stays where it is. So a row
    may not travel its whole time. With a negative time h does not rise.

    Args:
        gamma: None: h(a+) >= h(a). In (0, 1]: h(a+) >= (1 - gamma) h(a) where h(a) >= 0, so that a
            field which lowers h leaves the region h >= 0 in no step, whatever the sign of the time;
            elsewhere h(a+) >= h(a). That h(a+) >= (1 - gamma) h(a) also where h(a) < 0, no
            shortening of a step can bring about; `holds` checks it.

    Raises:
        ValueError: if gamma is not in (0, 1].

    Source: Agrawal and Sreenath, "Discrete Control Barrier Functions for Safety-Critical Control
    of Discrete Systems with Application to Bipedal Robot Navigation", RSS 2017,
    https://www.roboticsproceedings.org/rss13/p73.html, for the condition with gamma; Nesterov,
    "Introductory Lectures on Convex Optimization", 2004, section 1.2, for the bound.
    """

    gamma: float | None = None

    def __post_init__(self) -> None:
        if self.gamma is not None and not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"gamma must be in (0, 1], or None; got {self.gamma}.")

    def holds(self, values: Tensor) -> Tensor:
        """Return where h_(k+1) >= (1 - gamma) h_k along a path: [n + 1, ...] -> bool [n, ...].

        Without gamma: where h_(k+1) >= h_k.
        """
        return values[1:] >= (1.0 - (self.gamma or 0.0)) * values[:-1]

    def step(self, flow: Flow, x: Tensor, dt: Tensor) -> Tensor:
        before = flow.value(x)
        slack = 0.0 if self.gamma is None else self.gamma * before.clamp_min(0.0)
        sign = dt.squeeze(-1).sign() if self.gamma is None else 1.0

        def allowed(state: Tensor) -> Tensor:
            return (sign * (flow.value(state) - before) + slack >= 0).unsqueeze(-1)

        velocity = None if flow.spherical else flow(x)

        def move(length: Tensor) -> Tensor:
            return flow.rotate(x, length) if velocity is None else x + length * velocity

        longest = flow.longest(x) if self.gamma is None else None
        if longest is not None:
            dt = torch.minimum(torch.maximum(dt, -longest), longest)
        after = move(dt)
        for _ in range(_HALVINGS if longest is None else 0):
            dt = torch.where(allowed(after), dt, dt / 2)
            after = move(dt)
        return torch.where(allowed(after), after, x)


@dataclass(frozen=True)
class Adaptive(Solver):
    """Adaptive steps in each row, from an embedded error estimate.

    The error of a step may be `tolerance` times its length (error per unit step), so the
    result is within about `tolerance` times the path length of the exact flow.

    Args:
        tableau: a pair with `b_error`.
        tolerance: > 0, relative to the displacement.
        max_steps: RuntimeError beyond this number.
    """

    adaptive: ClassVar[bool] = True
    tableau: Tableau = DOPRI5
    tolerance: float = 1e-5
    max_steps: int = 1000

    def __post_init__(self) -> None:
        if self.tableau.b_error is None or not self.tolerance > 0:
            raise ValueError(
                f"An adaptive solver needs a tableau with b_error and a tolerance > 0; got "
                f"tolerance {self.tolerance}."
            )

    @property
    def _error_weights(self) -> list[float]:
        """Coefficients of the error estimate: b minus b_error."""
        pairs = zip(self.tableau.b, self.tableau.b_error or self.tableau.b, strict=True)
        return [b - error for b, error in pairs]

    def step(self, flow: Flow, x: Tensor, dt: Tensor) -> Tensor:
        return _stages(self.tableau, flow, x, dt)[0]

    def integrate(
        self,
        flow: Flow,
        x: Tensor,
        time: Tensor,
        steps: int,
        level: Tensor | float | None = None,
        taken: Tensor | None = None,
    ) -> Tensor:
        if steps < 1:
            raise ValueError(f"A solver needs at least 1 step; got {steps}.")
        left = time.unsqueeze(-1).clone()
        dt = left / 10
        # A row is done when the remaining time is below the precision.
        smallest = left.abs() * torch.finfo(x.dtype).eps
        # Where the field is not smooth (it reverses at a maximum of h) no step is small enough for
        # the tolerance: such rows go on in steps of this length.
        shortest = left.abs() / 250
        stays = torch.zeros_like(left, dtype=torch.bool)
        if level is not None:
            value = flow.value(x)
            stays, level = (value >= level).unsqueeze(-1), _above(level, value)
        crossed = torch.zeros_like(stays)
        for _ in range(self.max_steps):
            active = (left.abs() > smallest) & ~stays & ~crossed
            if not bool(active.any()):
                break
            if taken is not None:
                taken += active.squeeze(-1)
            dt = torch.where(active & (dt.abs() > left.abs()), left, dt)
            after, slopes = _stages(self.tableau, flow, x, dt)
            size = flow.length(dt * _combine(self._error_weights, slopes))
            allowed = self.tolerance * dt.abs() * flow.length(flow(x))
            ratio = size / allowed.clamp_min(torch.finfo(x.dtype).tiny)
            # NaN counts as accepted: an overflowing row must not stop the others.
            accepted = active & (~(ratio > 1) | (dt.abs() <= shortest))
            if level is not None:
                # Stays at the start of the step, and keeps its length.
                crosses = accepted & (flow.value(after) >= level).unsqueeze(-1)
                crossed, accepted = crossed | crosses, accepted & ~crosses
            x = torch.where(accepted, after, x)
            left = torch.where(accepted, left - dt, left)
            # The error per unit step shrinks with the 4th power for a pair of order 5(4).
            factor = 0.9 * ratio.clamp_min(1e-10) ** (-1.0 / (self.tableau.order - 1))
            longer = dt * factor.clamp(0.2, 5.0)
            longer = torch.where(longer.abs() < shortest, shortest * dt.sign(), longer)
            dt = torch.where(active & ~crossed, longer, dt)
        else:
            self._give_up()
        if level is None:
            return x
        return torch.where(crossed, self._stop(flow, x, dt, level, crossed.squeeze(-1)), x)

    def _give_up(self) -> None:
        raise RuntimeError(
            f"The adaptive solver did not finish in {self.max_steps} steps at tolerance "
            f"{self.tolerance}; the field may not be smooth. Raise the tolerance or take fixed "
            f"steps."
        )


def _above(level: Tensor | float, value: Tensor) -> Tensor:
    """Raise `level` for rows with h = value [...], so that h >= level holds after rounding."""
    size = level.abs() if isinstance(level, Tensor) else abs(level)
    return level + _ABOVE * torch.finfo(value.dtype).eps * (1.0 + value.abs() + size)


def _stages(tableau: Tableau, flow: Flow, x: Tensor, dt: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Take one Runge-Kutta step; return it and the slopes of its stages."""
    slopes: list[Tensor] = []
    for row in tableau.a:
        slopes.append(flow(x + dt * _combine(row, slopes) if any(row) else x))
    return x + dt * _combine(tableau.b, slopes), slopes


def _combine(coefficients: Sequence[float], slopes: list[Tensor]) -> Tensor:
    pairs = zip(coefficients, slopes, strict=True)
    terms = [slope if c == 1.0 else c * slope for c, slope in pairs if c != 0.0]
    return sum(terms[1:], terms[0])


SOLVERS: dict[str, Solver] = {
    "euler": RungeKutta(EULER),
    "midpoint": RungeKutta(MIDPOINT),
    "heun": RungeKutta(HEUN),
    "rk4": RungeKutta(RK4),
    "rk4-38": RungeKutta(RK4_38),
    "great-circle": GreatCircle(),
    "certified": Certified(),
    "dopri5": Adaptive(),
}
