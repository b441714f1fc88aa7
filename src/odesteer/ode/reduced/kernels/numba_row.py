"""Numba kernel for one or two rows, products included.

While a model decodes for one user a batch is one row: then starting eight operations takes longer
than the two thin products do, and a product of a matrix with a vector is no slower here than in a
library. With more rows a library's products, which read the matrices once for all of them, win.
"""

import math
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odesteer.ode.reduced.basis import ReducedBasis
from odesteer.ode.reduced.integrate import Integration
from odesteer.ode.reduced.kernels import numba_loop as cpu

# Compiled into `passage`, which numba keeps until *this* file changes: touch it with the loop.
_LOOP: Any = cpu.compiled()
_BLOCK = 64  # products are summed in parts of so many, which keeps rounding small

_fixed: "weakref.WeakKeyDictionary[ReducedBasis, Any]" = weakref.WeakKeyDictionary()
_NO_MIX = np.empty((0, 0), dtype=np.float32)
_SIGNATURE = (
    "void(f4[:,::1], f4[::1], f4[:,::1], f4[:,::1], f4[:,::1], f4[::1], f4[::1], f4[::1], "
    "f4[:,::1], f8, f4[::1], f8, f4[::1], i8, b1, f4[:,::1])"
)


def passage(
    a: Any,
    centre: Any,
    entrance: Any,
    mix: Any,
    leaving: Any,
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
    """a [n, d] to result [n, d]; the other arguments as of `cpu.loop` and `ReducedBasis`."""
    n, d = a.shape
    m, k = entrance.shape[1], leaving.shape[0]
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
                    part[column] += each * entrance[j, column]
            for column in range(m):
                coordinates[i, column] += part[column]
    mixed = coordinates
    if mix.shape[0] > 0:
        mixed = np.zeros((n, 2 * k), dtype=np.float32)
        for i in range(n):
            for row in range(m):
                each = coordinates[i, row]
                for column in range(2 * k):
                    mixed[i, column] += each * mix[row, column]
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
        # What is added is summed by itself first: a is the larger by far.
        for j in range(d):
            x[i, j] = scale * x[i, j]
        for row in range(k):
            each = change[i, row]
            for j in range(d):
                x[i, j] += each * leaving[row, j]
        for j in range(d):
            result[i, j] = a[i, j] + x[i, j]


_PASSAGE = cpu.machine_code(_SIGNATURE, passage)


def solve(frame: ReducedBasis, a: Tensor, course: Integration, straight: bool) -> Tensor:
    """a(time) for a [n, d]; see `odesteer.ode.reduced.solve.solve`."""
    result = torch.empty_like(a, memory_format=torch.contiguous_format)
    fixed = _fixed.get(frame)
    if fixed is None:
        mix = _NO_MIX if frame.mix is None else frame.mix.contiguous().numpy()
        fixed = (frame.centre.numpy(), frame.entrance.numpy(), mix, frame.exit.numpy())
        fixed = _fixed[frame] = (*fixed, *cpu.fixed(frame))
    _PASSAGE(
        a.contiguous().numpy(),
        *fixed,
        course.time.contiguous().numpy(),
        *cpu.levels(course),
        course.steps,
        straight,
        result.numpy(),
    )
    return result
