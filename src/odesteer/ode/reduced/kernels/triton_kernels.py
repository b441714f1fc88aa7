"""Triton kernels of the reduced flow; importing this module needs Triton.

    project  partial sums of x @ Q and of ||x||^2, x = a - m, each program over a split of d
    flow     sum of the parts, the ODE in k + 1 dimensions, (shift, change, stays)
    lift     a + shift x + change (S V)^T, or a itself where a row stays

Activations are read and written in their own type; everything between is float32. Letters are
those of `odesteer.ode.reduced.flow` and `odesteer.ode.reduced.kernels.numba_kernels.loop`. Rows
are the first axis, and scalars of a row are [ROWS, 1]. Capitals are compile-time constants.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl

# Constants stand to the right of tensors: Triton 3.7.1's interpreter takes them only there.
# A tangent shorter than this share of q is rounding; see
# `odesteer.ode.barriers.quadratic.is_above_noise`.
_NOISE = tl.constexpr(16.0 * 2.0**-23)
# Margin above the level at which a row stops, relative to the sizes of h: single precision rounds
# in the products with d, here, and when the row is lifted. (Four times that of the numba loop,
# which computes in double precision.)
_ABOVE = tl.constexpr(32.0 * 2.0**-23)
_HALVINGS = tl.constexpr(26)  # of a step: to the last digit of a share of it

# Sizes that change from call to call: no recompilation where they are 1 or divisible by 16.
_LOOSE = ("n", "splits", "steps")


@triton.jit
def _product(x, matrix, ROWS: tl.constexpr):
    """Multiply x [ROWS, j] by a matrix [j, c], in single precision.

    One row is a weighted sum. Several go to the tensor cores, each number split into two of 11
    bits ("tf32x3"): the error is below 2^-21 of the product, as in float32, and the three passes
    are several times faster than float32 without tensor cores.
    """
    if ROWS == 1:
        result = tl.sum(tl.trans(x) * matrix, axis=0)[None, :]
    else:
        result = tl.dot(x, matrix, input_precision="tf32x3")
    return result


@triton.jit
def _total(x):
    """Sum each row, [ROWS, 1]."""
    return tl.sum(x, axis=1)[:, None]


@triton.jit(do_not_specialize=_LOOSE)
def project(
    a,
    centre,
    projection,
    parts,
    n,
    d,
    m,
    stride,
    stretch,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Compute partial sums of [x @ Q, ||x||^2] of a [n, d]: `parts` [splits, n, m + 1].

    Programs: (bands of Q's columns, blocks of rows, splits of d), so that programs which read the
    same rows run side by side. `stretch`, a multiple of DEPTH, is the number of dimensions in a
    split; `stride` is the row stride of a.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    split = tl.program_id(2)
    product = tl.zeros([ROWS, COLUMNS], tl.float32)
    squared = tl.zeros([ROWS, 1], tl.float32)
    for start in range(split * stretch, (split + 1) * stretch, DEPTH):
        i = start + tl.arange(0, DEPTH)
        m_i = tl.load(centre + i, mask=i < d, other=0.0)[None, :]
        here = (row < n) & (i < d)[None, :]
        x = tl.load(a + row * stride + i[None, :], mask=here, other=0.0).to(tl.float32) - m_i
        inside = (i < d)[:, None] & (column < m)
        q = tl.load(projection + i[:, None] * m + column, mask=inside, other=0.0)
        product += _product(x, q, ROWS)
        squared += _total(x * x)
    out = parts + (split * n + row) * (m + 1)
    tl.store(out + column, product, mask=(row < n) & (column < m))
    if tl.program_id(0) == 0:
        tl.store(out + m, squared, mask=row < n)


@triton.jit
def _gathered(parts, row, column, n, m, splits, ROWS: tl.constexpr, SPLITS: tl.constexpr):
    """Sum columns [c] of the rows [ROWS, 1] of `parts` over splits: [ROWS, c]."""
    total = tl.zeros([ROWS, column.shape[0]], tl.float32)
    here = (row < n) & (column <= m)[None, :]
    for first in range(0, splits, SPLITS):  # SPLITS loads are in flight together
        split = first + tl.arange(0, SPLITS)[:, None, None]
        at = (split * n + row[None, :, :]) * (m + 1) + column[None, None, :]
        inside = (split < splits) & here[None, :, :]
        total += tl.sum(tl.load(parts + at, mask=inside, other=0.0), axis=0)
    return total


@triton.jit
def _squared_in_a(z, factor, k, ROWS: tl.constexpr, K: tl.constexpr, CHUNK: tl.constexpr):
    """Compute z . G z of each row, as ||z F||^2 with G = F F^T."""
    at = factor + tl.arange(0, K)[:, None] * K + tl.arange(0, CHUNK)[None, :]
    if CHUNK == K:  # small: stays in registers from step to step
        along = _product(z, tl.load(at), ROWS)
        total = _total(along * along)
    else:
        total = tl.zeros([ROWS, 1], tl.float32)
        for first in range(0, k, CHUNK):
            along = _product(z, tl.load(at + first), ROWS)
            total += _total(along * along)
    return total


@triton.jit(do_not_specialize=_LOOSE)
def flow(
    parts,
    mix,
    shrinkage,
    factor,
    curvature,
    slope,
    constant,
    time,
    levels,
    level,
    shift,
    change,
    stays,
    n,
    m,
    k,
    r,
    splits,
    steps,
    time_stride,
    level_stride,
    ROWS: tl.constexpr,
    K: tl.constexpr,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,
    WHITENED: tl.constexpr,
    STRAIGHT: tl.constexpr,
    STOPS: tl.constexpr,
):
    """Integrate `parts` to `shift` [n], `change` [n, k] and `stays` [n].

    Programs: blocks of rows.

    Args:
        mix: [m, 2K]; Q^T x @ mix is z and w p, side by side.
        shrinkage: stretch^-2 - 1, [r].
        factor: F with F F^T = V^T S^2 V, [K, K].
        curvature, slope: 2 Lambda and beta, [K], padded with zeros from k.
        constant: of h, [1].
        time, levels: [n], with strides `time_stride` and `level_stride`; without `levels`,
            `level` for all rows. Read only where rows stop (STOPS).
        STRAIGHT: Euler's steps; else along great circles.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    j = tl.arange(0, K)[None, :]
    here = row < n

    # The state (z, sigma), and what the length in a depends on.
    squared = _gathered(parts, row, m + tl.arange(0, 1), n, m, splits, ROWS, SPLITS)
    in_y_squared = squared
    w = tl.zeros([ROWS, K], tl.float32)
    if WHITENED:
        z = tl.zeros([ROWS, K], tl.float32)
        for first in range(0, m, COLUMNS):
            i = first + tl.arange(0, COLUMNS)
            coordinates = _gathered(parts, row, i, n, m, splits, ROWS, SPLITS)
            coordinates = tl.where(i[None, :] < m, coordinates, 0.0)
            shrunk = tl.load(shrinkage + i, mask=i < r, other=0.0)[None, :]
            in_y_squared += _total(coordinates * coordinates * shrunk)
            at, inside = mix + i[:, None] * (2 * K) + j, (i < m)[:, None]
            z += _product(coordinates, tl.load(at, mask=inside, other=0.0), ROWS)
            w += _product(coordinates, tl.load(at + K, mask=inside, other=0.0), ROWS)
    else:
        z = _gathered(parts, row, tl.arange(0, K), n, m, splits, ROWS, SPLITS)
        z = tl.where(j < k, z, 0.0)
    within = _total(z * z)
    rest = tl.maximum(in_y_squared - within, 0.0)
    p = tl.sqrt(rest)
    stretched = rest
    if WHITENED:
        left = squared - _squared_in_a(z, factor, k, ROWS, K, CHUNK) - 2.0 * _total(z * w)
        stretched = tl.where(rest > 0.0, tl.maximum(left, 0.0) / rest, 0.0)
        w = tl.where(p > 0.0, w / p, 0.0)

    twice_lambda = tl.load(curvature + j)
    beta = tl.load(slope + j)
    dt = tl.load(time + row * time_stride, mask=here, other=0.0) / steps
    total = within + rest
    active = here & (dt != 0.0) & (tl.abs(dt) < float("inf"))
    active = active & (total > 0.0) & (total < float("inf"))
    goal = tl.full([ROWS, 1], float("inf"), tl.float32)
    const = tl.load(constant)
    if STOPS:
        if levels is None:
            goal = tl.full([ROWS, 1], 0.0, tl.float32) + level
        else:
            goal = tl.load(levels + row * level_stride, mask=here, other=0.0)
        u = z / tl.sqrt(total)
        h = const + _total((0.5 * twice_lambda * u + beta) * u)
        active = active & (goal > h)
        goal += (1.0 + tl.abs(goal) + tl.abs(h)) * _ABOVE

    # Displacement of (z, p): small numbers, whose rounding is small too.
    dz = tl.zeros([ROWS, K], tl.float32)
    dp = tl.zeros([ROWS, 1], tl.float32)
    moved = tl.zeros([ROWS, 1], tl.int1)
    for _ in range(steps):
        z_now, sigma = z + dz, p + dp
        radius = tl.sqrt(_total(z_now * z_now) + sigma * sigma)
        u, v = z_now / radius, sigma / radius
        q = twice_lambda * u + beta
        c = _total(u * q)
        t = q - c * u
        t_sigma = -c * v
        in_y_squared = _total(t * t) + t_sigma * t_sigma
        active = active & (in_y_squared > _total(q * q) * (_NOISE * _NOISE))
        in_y = tl.sqrt(in_y_squared)
        in_a = in_y
        if WHITENED:
            in_a_squared = _squared_in_a(t, factor, k, ROWS, K, CHUNK)
            in_a_squared += 2.0 * t_sigma * _total(w * t) + t_sigma * t_sigma * stretched
            in_a = tl.sqrt(tl.maximum(in_a_squared, 0.0))
            active = active & (in_a > 0.0)
        t, t_sigma = t / in_y, t_sigma / in_y
        # Euler: the tangent of the angle; else the angle.
        way = dt * in_y / (in_a * radius)
        reached = tl.zeros([ROWS, 1], tl.int1)
        if STOPS:
            half = 0.5 * twice_lambda
            uu, ut, tt = _total(half * u * u), _total(half * u * t), _total(half * t * t)
            bu, bt = _total(beta * u), _total(beta * t)
            cosine, sine = _turned(way, STRAIGHT)
            reached = active & (_height(cosine, sine, uu, ut, tt, bu, bt, const) >= goal)
            if tl.max(tl.max(reached.to(tl.int32), axis=1), axis=0) > 0:
                low, high = way * 0.0, way
                for _halving in range(_HALVINGS):
                    middle = 0.5 * (low + high)
                    cosine, sine = _turned(middle, STRAIGHT)
                    above = _height(cosine, sine, uu, ut, tt, bu, bt, const) >= goal
                    high = tl.where(above, middle, high)
                    low = tl.where(above, low, middle)
                way = tl.where(reached, high, way)
        if STRAIGHT:
            along, across = way * 0.0, way * radius
        else:
            half_sine = tl.sin(0.5 * way)
            along, across = -2.0 * half_sine * half_sine, tl.sin(way) * radius  # cosine - 1
        dz += tl.where(active, along * z_now + across * t, 0.0)
        dp += tl.where(active, along * sigma + across * t_sigma, 0.0)
        moved = moved | active
        active = active & ~reached

    s_less_one = tl.where(moved & (p > 0.0), dp / p, 0.0)
    tl.store(shift + row, s_less_one, mask=here)
    tl.store(change + row * k + j, dz - s_less_one * z, mask=here & (j < k))
    tl.store(stays + row, moved == 0, mask=here)


@triton.jit
def _turned(way, STRAIGHT: tl.constexpr):
    """Return cosine and sine of a step's angle; `way` is its tangent or the angle."""
    if STRAIGHT:
        cosine = 1.0 / tl.sqrt(1.0 + way * way)
        sine = way * cosine
    else:
        cosine, sine = tl.cos(way), tl.sin(way)
    return cosine, sine


@triton.jit
def _height(cosine, sine, uu, ut, tt, bu, bt, const):
    """Evaluate h at cosine u + sine t, from its five numbers."""
    h = const + cosine * (cosine * uu + 2.0 * sine * ut + bu)
    return h + sine * (sine * tt + bt)


@triton.jit(do_not_specialize=_LOOSE)
def lift(
    a,
    centre,
    lift_matrix,
    shift,
    change,
    stays,
    result,
    n,
    d,
    k,
    stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Lift shift, change and stays to `result` [n, d].

    Programs: (blocks of rows, blocks of d).
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    i = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    moved = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, k, DEPTH):
        j = first + tl.arange(0, DEPTH)
        valid = (row < n) & (j < k)[None, :]
        z = tl.load(change + row * k + j[None, :], mask=valid, other=0.0)
        inside = (j < k)[:, None] & (i < d)
        out = tl.load(lift_matrix + j[:, None].to(tl.int64) * d + i, mask=inside, other=0.0)
        moved += _product(z, out, ROWS)
    here = (row < n) & (i < d)
    before = tl.load(a + row * stride + i, mask=here, other=0.0)
    old = before.to(tl.float32)
    x = old - tl.load(centre + i, mask=i < d, other=0.0)
    moved += tl.load(shift + row, mask=row < n, other=0.0) * x
    stay = tl.load(stays + row, mask=row < n, other=1) != 0
    after = (old + moved).to(before.dtype)
    # A value beyond the type's range (float16 ends at 65,504) stays as it was.
    stay = stay | (tl.abs(after.to(tl.float32)) == float("inf"))
    tl.store(result + row * d + i, tl.where(stay, before, after), mask=here)
