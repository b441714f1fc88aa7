"""Triton launches of the reduced flow.

The entrance product, the ODE in k + 1 dimensions and the exit product are one kernel each,
`odesteer.ode.reduced.kernels.triton_kernels`: what is bound by memory reads the frame and the
activations once
and writes the result, and a step is arithmetic in registers instead of a dozen launches.
Activations go in and come out in their own type. Nothing is read back from the device, nothing
is tuned at run time and sums are taken in one order: after one call with the same shapes a CUDA
graph can hold the passage, and it gives the same bits each time.
"""

import weakref
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesteer.ode.reduced.basis import ReducedBasis
from odesteer.ode.reduced.integrate import Integration
from odesteer.ode.solvers import SOLVERS

TYPES = (torch.float32, torch.bfloat16, torch.float16)

# No axis of a product on tensor cores may be shorter.
_SHORTEST = 16


@cache
def runs_on(device: torch.device) -> bool:
    """True where the kernels can be compiled: triton asks for compute capability 8.0."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and find_spec("triton") is not None
    )


def passage(frame: ReducedBasis, a: Tensor, course: Integration) -> Tensor | None:
    """a(time), [n, d] -> [n, d] in a's own type, by Euler's or great-circle steps.

    None for other solvers and types, and where the kernels do not run.
    """
    straight = course.solver == SOLVERS["euler"]
    known = straight or course.solver == SOLVERS["great-circle"]
    fits = a.dtype in TYPES and frame.centre.dtype == torch.float32
    return _run(frame, a, course, straight) if known and fits and runs_on(a.device) else None


class _Fixed(NamedTuple):
    """What `kernels.flow` needs of a frame; k is filled up with zeros to K."""

    mix: Tensor | None
    factor: Tensor | None
    curvature: Tensor
    slope: Tensor

    @staticmethod
    def of(frame: ReducedBasis) -> "_Fixed":
        k = len(frame.gram)
        filled = _power(k)
        curvature, slope = frame.slope.new_zeros(2, filled)
        curvature[:k], slope[:k] = frame.curvature[:k], frame.slope[:k]
        if frame.mix is None:
            return _Fixed(None, None, curvature, slope)
        # In double precision, once: w p = V^T S x - G z, and G = F F^T by a factorisation that
        # does not square the condition of S V.
        into_z, projected = frame.mix.double().chunk(2, dim=-1)
        mix = frame.mix.new_zeros(len(frame.mix), 2, filled)
        mix[:, 0, :k] = into_z
        mix[:, 1, :k] = projected - into_z @ frame.gram.double()
        factor = frame.gram.new_zeros(filled, filled)
        factor[:k, :k] = torch.linalg.qr(frame.exit.mT.double(), mode="r").R.mT
        return _Fixed(mix, factor, curvature, slope)


_fixed: "weakref.WeakKeyDictionary[ReducedBasis, _Fixed]" = weakref.WeakKeyDictionary()


def _run(frame: ReducedBasis, a: Tensor, course: Integration, straight: bool) -> Tensor:
    """The three launches. The sizes of blocks follow from n, d, m and k alone."""
    from odesteer.ode.reduced.kernels import triton_kernels as kernels

    a = a if a.stride(-1) == 1 else a.contiguous()
    n, d = a.shape
    k, m, r = len(frame.gram), frame.entrance.shape[1], len(frame.shrinkage)
    new = partial(torch.empty, dtype=torch.float32, device=a.device)
    result = new(n, d, dtype=a.dtype)
    if n == 0:
        return result
    fixed = _fixed.get(frame)
    if fixed is None:
        fixed = _fixed[frame] = _Fixed.of(frame)
    processors = _processors(a.device)
    # One row is worked on by itself, more fill the 16 rows of a tensor core's tile, at most 64:
    # that many need 8 warps already, or the registers do not hold their sums.
    rows = 1 if n == 1 else min(64, _power(n))
    blocks, warps = _blocks(n, rows), 8 if rows == 64 else 4

    # Few rows read Q as fast as memory gives it only if every processor asks for a part of it:
    # d is split until there are two programs for each, or until a stretch of it has 32 numbers.
    columns, depth = min(64, _power(m)), 32
    bands = max(1, _blocks(m, columns))
    splits = min(128, _blocks(2 * processors, blocks * bands), _blocks(d, depth))
    stretch = depth * _blocks(d, depth * splits)
    splits = _blocks(d, stretch)
    parts = new(splits, n, m + 1)

    # A row a program, until rows outnumber what the device works on at once; from there 16 share
    # what each reads of mix and factor, where the state is not too wide for that. What a program
    # holds at a time is so much that nothing spills (compiled for compute capability 9.0, up to
    # K = 256; a whitened frame of K = 512 does spill).
    K = _power(k)
    together = _SHORTEST if n > 8 * processors and K <= 128 else 1
    whole = K <= 64 or (K == 128 and together == 1)
    shift, change, stays = new(n), new(n, k), new(n, dtype=torch.bool)
    levels = course.level if isinstance(course.level, Tensor) else None
    level = 0.0 if course.level is None or levels is not None else float(course.level)

    # Again enough programs for every processor, but none narrower than a line of memory.
    wide = 64 if blocks * _blocks(d, 64) >= 2 * processors else 32

    with torch.cuda.device_of(a):
        kernels.enter[(bands, blocks, splits)](
            a,
            frame.centre,
            frame.entrance,
            parts,
            n,
            d,
            m,
            a.stride(0),
            stretch,
            ROWS=rows,
            COLUMNS=columns,
            DEPTH=depth,
            num_warps=warps,
        )
        kernels.flow[(_blocks(n, together),)](
            parts,
            fixed.mix,
            frame.shrinkage,
            fixed.factor,
            fixed.curvature,
            fixed.slope,
            frame.constant,
            course.time,
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
            course.steps,
            course.time.stride(0),
            0 if levels is None else levels.stride(0),
            ROWS=together,
            K=K,
            CHUNK=K if whole else max(_SHORTEST, 4096 // K),
            COLUMNS=min(32, 8192 // K),
            SPLITS=min(_power(splits, 1), max(1, 8192 // (together * K))),
            WHITENED=fixed.mix is not None,
            STRAIGHT=straight,
            STOPS=course.level is not None,
            num_warps=4 if K <= 64 else 8,
        )
        kernels.leave[(blocks, _blocks(d, wide))](
            a,
            frame.centre,
            frame.exit,
            shift,
            change,
            stays,
            result,
            n,
            d,
            k,
            a.stride(0),
            ROWS=rows,
            COLUMNS=wide,
            DEPTH=min(K, 32),
            num_warps=warps,
        )
    return result


def _power(count: int, least: int = _SHORTEST) -> int:
    """The power of two that holds `count`."""
    return max(least, 1 << (count - 1).bit_length())


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


@cache
def _processors(device: torch.device) -> int:
    """How many programs run side by side; one where a CPU interprets them."""
    if device.type != "cuda":
        return 1
    count: Any = torch.cuda.get_device_properties(device).multi_processor_count
    return int(count)
