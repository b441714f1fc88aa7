"""Numba kernels of the reduced flow, for CPUs.

The equations are those of `odesteer.ode.reduced.flow`, row by row and in double precision. An
Euler step and a great-circle step from u = (z, sigma) / r follow the same circle

    u(phi) = cos(phi) u + sin(phi) t / |t|

Euler's step ends at tan(phi) = dt |t| / (n r) and lengthens r by 1 / cos(phi); a great-circle step
ends at phi = dt |t| / (n r). On the circle h is a polynomial of degree 2 in cos and sin, so the
point where a row reaches its level follows from five numbers, by bisection.

`solve_rows` also computes the products, for one or two rows. While a model decodes for one user a
batch is one row: launching eight operations then takes longer than the two thin products, and a
matrix-vector product is no slower here than in a library. With more rows a library's products win,
as they read the matrices once for all rows.
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

from odesteer.ode.barriers.quadratic import ReducedBasis
from odesteer.ode.reduced.integrate import Integration, Integrator, ReducedResult
from odesteer.ode.solvers import SOLVERS, Solver

# A tangent shorter than this share of q is rounding; see
# `odesteer.ode.barriers.quadratic.is_above_noise`.
_NOISE = 16.0 * float(np.finfo(np.float32).eps)
# Margin above the level at which a row stops, relative to the sizes of h: lifting the row to d
# dimensions in single precision rounds.
_ABOVE = 8.0 * float(np.finfo(np.float32).eps)
# Rows longer than the root of this stay, as they do where squares are single precision.
_LARGEST = float(np.finfo(np.float32).max)
_HALVINGS = 50  # of an angle below pi: to the last digit

_BLOCK = 64  # products are summed in parts of this length, which keeps rounding small

_NO_LEVELS = np.empty(0, dtype=np.float32)
_NO_MATRIX = np.empty((0, 0), dtype=np.float32)

# Sums may be reordered, which lets them use the processor's vector registers; NaN and infinity
# keep their meaning.
_RELAXED = {"reassoc", "contract", "nsz", "arcp"}

_SIGNATURE = (
    "void(f4[:,::1], f4[:,::1], f4[::1], f4[::1], f4[::1], f4[:,::1], f8, f4[:,::1], f4[::1], f8, "
    "f4[::1], i8, b1, f4[:,::1], f4[:,::1], b1[::1])"
)
_ROWS_SIGNATURE = (
    "void(f4[:,::1], f4[::1], f4[:,::1], f4[:,::1], f4[:,::1], f4[::1], f4[::1], f4[::1], "
    "f4[:,::1], f8, f4[::1], f8, f4[::1], i8, b1, f4[:,::1])"
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
    """Integrate rows from `coordinates` to `shift`, `change` and `stays`.

    Written for numba: loops over numbers, with no arrays made inside them. The results are those
    of `odesteer.ode.reduced.integrate.ReducedResult`.

    Args:
        coordinates: Q^T x, [n, m].
        mixed: V^T S^-1 x and V^T S x side by side, [n, 2k]; where S = I, V^T x [n, k].
        shrinkage: stretch^-2 - 1, [r]; the first r coordinates are U^T x.
        curvature, slope: 2 Lambda and beta, each followed by a 0, [k + 1].
        gram: V^T S^2 V, [k, k].
        constant: of h.
        length: ||x||, [n, 1].
        time: [n].
        level: where rows stop, infinite for nowhere; replaced by `levels` [n] unless that is empty.
        steps: >= 1.
        straight: Euler's steps; else along great circles.
        shift, change, stays: results, [n, 1], [n, k] and [n].
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


# `loop` as machine code, which numba calls from `solve_rows`; set before that is compiled.
_LOOP: Any = None


def solve_rows(
    a: Any,
    centre: Any,
    projection: Any,
    whitened_projection: Any,
    lift: Any,
    shrinkage: Any,
    curvature: Any,
    slope: Any,
    gram: Any,
    constant: float,
    time: Any,
    level: float,
    levels: Any,
    steps: int,
    straight: bool,
    result: Any,
) -> None:
    """Solve rows a [n, d] into `result`; other arguments as in `loop` and `ReducedBasis`."""
    n, d = a.shape
    m, k = projection.shape[1], lift.shape[0]
    x = np.empty((n, d), dtype=np.float32)
    coordinates = np.zeros((n, m), dtype=np.float32)
    length = np.empty((n, 1), dtype=np.float32)
    part = np.empty(m, dtype=np.float32)
    for i in range(n):
        squared = 0.0
        for j in range(d):
            x[i, j] = a[i, j] - centre[j]
            squared += (1.0 * x[i, j]) * x[i, j]
        length[i, 0] = math.sqrt(squared)
        for start in range(0, d, _BLOCK):
            for column in range(m):
                part[column] = 0.0
            for j in range(start, min(start + _BLOCK, d)):
                each = x[i, j]
                for column in range(m):
                    part[column] += each * projection[j, column]
            for column in range(m):
                coordinates[i, column] += part[column]
    mixed = coordinates
    if whitened_projection.shape[0] > 0:
        mixed = np.zeros((n, 2 * k), dtype=np.float32)
        for i in range(n):
            for row in range(m):
                each = coordinates[i, row]
                for column in range(2 * k):
                    mixed[i, column] += each * whitened_projection[row, column]
    shift = np.empty((n, 1), dtype=np.float32)
    change = np.empty((n, k), dtype=np.float32)
    stays = np.empty(n, dtype=np.bool_)
    _LOOP(
        coordinates,
        mixed,
        shrinkage,
        curvature,
        slope,
        gram,
        constant,
        length,
        time,
        level,
        levels,
        steps,
        straight,
        shift,
        change,
        stays,
    )
    for i in range(n):
        if stays[i]:
            for j in range(d):
                result[i, j] = a[i, j]
            continue
        scale = shift[i, 0]
        # The displacement is summed first, by itself: a is the larger by far.
        for j in range(d):
            x[i, j] = scale * x[i, j]
        for row in range(k):
            each = change[i, row]
            for j in range(d):
                x[i, j] += each * lift[row, j]
        for j in range(d):
            result[i, j] = a[i, j] + x[i, j]


class Constants(NamedTuple):
    """Arrays of a basis that `loop` takes."""

    shrinkage: Any
    curvature: Any
    slope: Any
    gram: Any
    constant: float

    @staticmethod
    def of(basis: ReducedBasis) -> "Constants":
        return Constants(
            basis.shrinkage.numpy(),
            basis.curvature.numpy(),
            basis.slope.numpy(),
            basis.gram.numpy(),
            float(basis.constant),
        )


_constants: "weakref.WeakKeyDictionary[ReducedBasis, Constants]" = weakref.WeakKeyDictionary()


def _constants_of(basis: ReducedBasis) -> Constants:
    """Return the arrays of a basis, made once."""
    constants = _constants.get(basis)
    if constants is None:
        constants = _constants[basis] = Constants.of(basis)
    return constants


def _levels(integration: Integration) -> tuple[float, Any]:
    """Return `level` and `levels` of `loop`."""
    if isinstance(integration.level, Tensor):
        return math.inf, integration.level.contiguous().numpy()
    return math.inf if integration.level is None else integration.level, _NO_LEVELS


def _machine_code(signature: str, function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function, and keep it on disk: beside its file, or in numba's cache folder."""
    import numba

    options: Any = {"nogil": True, "fastmath": _RELAXED, "error_model": "numpy"}
    try:
        return numba.njit(signature, cache=True, **options)(function)
    except RuntimeError:  # no folder can be written to
        return numba.njit(signature, **options)(function)


@cache
def compiled() -> Callable[..., None] | None:
    """Compile `loop`; None where numba is not installed, or not usable."""
    if find_spec("numba") is None:
        return None
    try:
        return _machine_code(_SIGNATURE, loop)
    except ImportError as error:  # numba asks for certain versions of numpy
        warnings.warn(f"The loop of the ODE is not compiled: {error}.", stacklevel=2)
        return None


@cache
def _compiled_rows() -> Callable[..., None]:
    """Compile `solve_rows`, where `loop` can be compiled."""
    global _LOOP
    _LOOP = compiled()
    return _machine_code(_ROWS_SIGNATURE, solve_rows)


def integrator(solver: Solver) -> Integrator | None:
    """Return the loop for Euler's or great-circle steps; None for others, or without numba."""
    straight = is_euler(solver)
    run = None if straight is None else compiled()
    return None if run is None or straight is None else partial(run_loop, run, straight)


def is_euler(solver: Solver) -> bool | None:
    """Return True for Euler's steps, False for great circles and None for other solvers."""
    if solver == SOLVERS["euler"]:
        return True
    return False if solver == SOLVERS["great-circle"] else None


def run_loop(
    run: Callable[..., None],
    straight: bool,
    basis: ReducedBasis,
    coordinates: Tensor,
    length: Tensor,
    integration: Integration,
) -> ReducedResult:
    """Call `loop`, compiled or not, on tensors; see `integrate_reduced`."""
    matrix = basis.whitened_projection
    mixed = coordinates if matrix is None else coordinates @ matrix
    constants = _constants_of(basis)
    n, k = len(coordinates), len(constants.gram)
    shift = torch.empty(n, 1, dtype=torch.float32)
    change = torch.empty(n, k, dtype=torch.float32)
    stays = torch.empty(n, dtype=torch.bool)
    run(
        coordinates.numpy(),
        mixed.numpy(),
        *constants,
        length.numpy(),
        integration.time.contiguous().numpy(),
        *_levels(integration),
        integration.steps,
        straight,
        shift.numpy(),
        change.numpy(),
        stays.numpy(),
    )
    return ReducedResult(shift, change, stays)


_row_constants: "weakref.WeakKeyDictionary[ReducedBasis, Any]" = weakref.WeakKeyDictionary()


def solve_few(basis: ReducedBasis, a: Tensor, integration: Integration) -> Tensor | None:
    """Return a(time) of one or two rows [n, d]; None without numba or for other solvers."""
    straight = is_euler(integration.solver)
    if straight is None or compiled() is None:
        return None
    result = torch.empty_like(a, memory_format=torch.contiguous_format)
    constants = _row_constants.get(basis)
    if constants is None:
        matrix = basis.whitened_projection
        mix = _NO_MATRIX if matrix is None else matrix.contiguous().numpy()
        arrays = (basis.centre.numpy(), basis.projection.numpy(), mix, basis.lift.numpy())
        constants = _row_constants[basis] = (*arrays, *_constants_of(basis))
    _compiled_rows()(
        a.contiguous().numpy(),
        *constants,
        integration.time.contiguous().numpy(),
        *_levels(integration),
        integration.steps,
        straight,
        result.numpy(),
    )
    return result
