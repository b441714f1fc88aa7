"""Numba loop of the reduced flow.

The equations are those of `odesteer.ode.reduced.flow`, row by row and in double precision. An
Euler step and a great-circle step from u = (z, sigma) / r go along the same circle

    u(phi) = cos(phi) u + sin(phi) t / |t|

the one until tan(phi) = dt |t| / (n r), the other until phi = dt |t| / (n r); Euler's step also
lengthens r by 1 / cos(phi). On the circle h is a polynomial of degree 2 in cos and sin, so the
place where a row reaches its level is found from five numbers, by bisection.
"""

import math
import warnings
import weakref
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from odesteer.ode.reduced.basis import ReducedBasis
from odesteer.ode.reduced.integrate import Inner, Integration, ReducedResult
from odesteer.ode.solvers import SOLVERS, Solver

# A tangent shorter than this share of q is rounding; see
# `odesteer.ode.barriers.quadratic.is_above_noise`.
_NOISE = 16.0 * float(np.finfo(np.float32).eps)
# So far above its level a row is put, relative to the sizes of h: lifting it to d dimensions in
# single precision rounds.
_ABOVE = 8.0 * float(np.finfo(np.float32).eps)
# Rows longer than the root of this are left as they are, as where squares are single precision.
_LARGEST = float(np.finfo(np.float32).max)
_HALVINGS = 50  # of an angle below pi: to the last digit

_NO_LEVELS = np.empty(0, dtype=np.float32)

# Sums may be taken in any order, which is what lets them use the processor's wide registers; NaN
# and infinity keep their meaning.
RELAXED = {"reassoc", "contract", "nsz", "arcp"}

_SIGNATURE = (
    "void(f4[:,::1], f4[:,::1], f4[::1], f4[::1], f4[::1], f4[:,::1], f8, f4[:,::1], f4[::1], f8, "
    "f4[::1], i8, b1, f4[:,::1], f4[:,::1], b1[::1])"
)


def loop(
    coordinates: Any,
    mixed: Any,
    shrinkage: Any,
    curvature: Any,
    slope: Any,
    gram: Any,
    constant: float,
    length: Any,
    time: Any,
    level: float,
    levels: Any,
    steps: int,
    straight: bool,
    shift: Any,
    change: Any,
    stays: Any,
) -> None:
    """Rows from `coordinates` to `shift`, `change`, `stays`; see `odesteer.ode.reduced.integrate`.

    Written for numba: loops over numbers, no arrays made inside them.

    Args:
        coordinates: Q^T x, [n, m].
        mixed: V^T S^-1 x and V^T S x side by side, [n, 2k]; where S = I, V^T x [n, k].
        shrinkage: stretch^-2 - 1, [r]; the first r coordinates are U^T x.
        curvature, slope: 2 Lambda and beta with a 0 behind them, [k + 1].
        gram: V^T S^2 V, [k, k].
        constant: of h.
        length: ||x||, [n, 1].
        time: [n].
        level: where rows stop, infinite for nowhere; `levels` [n] instead if it has any.
        steps: >= 1.
        straight: Euler's steps; else along great circles.
        shift, change, stays: [n, 1], [n, k], [n]: written.
    """
    n = len(length)
    k = len(slope) - 1
    whitened = mixed.shape[1] > k
    x, q, t, g, w = np.zeros(k + 1), np.zeros(k + 1), np.zeros(k + 1), np.zeros(k), np.zeros(k)
    single = np.zeros(k, dtype=np.float32)
    for i in range(n):
        stays[i] = True
        shift[i, 0] = 0.0
        goal = levels[i] if len(levels) else level
        squared = (1.0 * length[i, 0]) ** 2
        inside = 0.0
        for j in range(k):
            x[j] = mixed[i, j]
            change[i, j] = 0.0
            inside += x[j] * x[j]
        in_y = squared
        for j in range(len(shrinkage)):
            in_y += (1.0 * coordinates[i, j]) ** 2 * shrinkage[j]
        rest = max(in_y - inside, 0.0)
        p = math.sqrt(rest)
        x[k] = p
        radius = math.sqrt(inside + rest)
        dt = 1.0 * time[i] / steps
        if dt == 0.0 or not (radius > 0.0 and squared <= _LARGEST and abs(dt) < math.inf):
            continue
        stretched = 0.0
        if whitened:
            for j in range(k):
                g[j] = 0.0
            for m in range(k):
                for j in range(k):
                    g[j] += x[m] * gram[m, j]
            left = squared
            for j in range(k):
                left += x[j] * (g[j] - 2.0 * mixed[i, k + j])
                w[j] = (mixed[i, k + j] - g[j]) / p if p > 0.0 else 0.0
            stretched = max(left, 0.0) / rest if rest > 0.0 else 0.0
        stops = goal < math.inf
        if stops:
            h = constant
            for j in range(k):
                u = x[j] / radius
                h += (0.5 * curvature[j] * u + slope[j]) * u
            if h >= goal:
                continue
            goal += _ABOVE * (1.0 + abs(goal) + abs(h))
        stays[i] = False
        for _ in range(steps):
            c, size, inverse = 0.0, 0.0, 1.0 / radius
            for j in range(k + 1):
                u = x[j] * inverse
                q[j] = curvature[j] * u + slope[j]
                c += u * q[j]
                size += q[j] * q[j]
            squared_t = 0.0
            for j in range(k + 1):
                t[j] = q[j] - c * inverse * x[j]
                squared_t += t[j] * t[j]
            if squared_t <= _NOISE * _NOISE * size:
                break
            in_y = math.sqrt(squared_t)
            in_a = in_y
            if whitened:
                # Most of the loop's arithmetic, and only a length: single precision is enough.
                for j in range(k):
                    single[j] = 0.0
                for m in range(k):
                    each = np.float32(t[m])
                    for j in range(k):
                        single[j] += each * gram[m, j]
                total = t[k] * t[k] * stretched
                for j in range(k):
                    total += t[j] * (single[j] + 2.0 * t[k] * w[j])
                in_a = math.sqrt(max(total, 0.0))
                if not in_a > 0.0:
                    break
            angle = dt * in_y / (in_a * radius)
            if straight:
                angle = math.atan(angle)
            reached = False
            if stops:
                zz, zt, tt, bz, bt = 0.0, 0.0, 0.0, 0.0, 0.0
                for j in range(k):
                    u, v = x[j] * inverse, t[j] / in_y
                    half = 0.5 * curvature[j]
                    zz += half * u * u
                    zt += half * u * v
                    tt += half * v * v
                    bz += slope[j] * u
                    bt += slope[j] * v
                low, high = 0.0, angle
                for halving in range(_HALVINGS):
                    middle = high if halving == 0 else 0.5 * (low + high)
                    cosine, sine = math.cos(middle), math.sin(middle)
                    h = constant + cosine * (cosine * zz + 2.0 * sine * zt + bz)
                    h += sine * (sine * tt + bt)
                    if halving == 0:
                        reached = h >= goal
                        if not reached:
                            break
                    elif h >= goal:
                        high = middle
                    else:
                        low = middle
                angle = high
            cosine, sine = math.cos(angle), math.sin(angle)
            growth = 1.0 / cosine if straight else 1.0
            along = growth * cosine
            across = growth * sine * radius / in_y
            for j in range(k + 1):
                x[j] = along * x[j] + across * t[j]
            radius *= growth
            if reached:
                break
        s = x[k] / p if p > 0.0 else 1.0
        shift[i, 0] = s - 1.0
        for j in range(k):
            change[i, j] = x[j] - s * mixed[i, j]


class Fixed(NamedTuple):
    """What `loop` needs of a frame."""

    shrinkage: Any
    curvature: Any
    slope: Any
    gram: Any
    constant: float

    @staticmethod
    def of(frame: ReducedBasis) -> "Fixed":
        return Fixed(
            frame.shrinkage.numpy(),
            frame.curvature.numpy(),
            frame.slope.numpy(),
            frame.gram.numpy(),
            float(frame.constant),
        )


_fixed: "weakref.WeakKeyDictionary[ReducedBasis, Fixed]" = weakref.WeakKeyDictionary()


def fixed(frame: ReducedBasis) -> Fixed:
    """The arrays of a frame, made once."""
    found = _fixed.get(frame)
    if found is None:
        found = _fixed[frame] = Fixed.of(frame)
    return found


def levels(course: Integration) -> tuple[float, Any]:
    """`level` and `levels` of `loop`."""
    if isinstance(course.level, Tensor):
        return math.inf, course.level.contiguous().numpy()
    return math.inf if course.level is None else course.level, _NO_LEVELS


def machine_code(signature: str, function: Callable[..., None]) -> Callable[..., None]:
    """`function` compiled, and kept on disk: beside its file, or in numba's cache folder."""
    import numba

    options: Any = {"nogil": True, "fastmath": RELAXED, "error_model": "numpy"}
    try:
        return numba.njit(signature, cache=True, **options)(function)
    except RuntimeError:  # no folder can be written to
        return numba.njit(signature, **options)(function)


@cache
def compiled() -> Callable[..., None] | None:
    """`loop` as machine code; None where numba is not installed, or not usable."""
    if find_spec("numba") is None:
        return None
    try:
        return machine_code(_SIGNATURE, loop)
    except ImportError as error:  # numba asks for certain versions of numpy
        warnings.warn(f"The loop of the ODE is not compiled: {error}.", stacklevel=2)
        return None


def inner(solver: Solver) -> Inner | None:
    """The loop for Euler's or great-circle steps; None for others, or without numba."""
    straight = straight_or_not(solver)
    run = None if straight is None else compiled()
    return None if run is None or straight is None else partial(run_loop, run, straight)


def straight_or_not(solver: Solver) -> bool | None:
    """Whether steps are Euler's or along great circles; None for others."""
    if solver == SOLVERS["euler"]:
        return True
    return False if solver == SOLVERS["great-circle"] else None


def run_loop(
    run: Callable[..., None],
    straight: bool,
    frame: ReducedBasis,
    coordinates: Tensor,
    length: Tensor,
    course: Integration,
) -> ReducedResult:
    """`run`, which is `loop` or what was made of it, on tensors; see `course.through`."""
    mixed = coordinates if frame.mix is None else coordinates @ frame.mix
    constants = fixed(frame)
    n, k = len(coordinates), len(constants.gram)
    shift = torch.empty(n, 1, dtype=torch.float32)
    change = torch.empty(n, k, dtype=torch.float32)
    stays = torch.empty(n, dtype=torch.bool)
    run(
        coordinates.numpy(),
        mixed.numpy(),
        *constants,
        length.numpy(),
        course.time.contiguous().numpy(),
        *levels(course),
        course.steps,
        straight,
        shift.numpy(),
        change.numpy(),
        stays.numpy(),
    )
    return ReducedResult(shift, change, stays)
