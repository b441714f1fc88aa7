"""Triton launches of the reduced flow, for GPUs.

The projection, the ODE in k + 1 dimensions and the lift are one kernel each, in
`odesteer.ode.reduced.kernels.triton_kernels`. The memory-bound kernels read the basis and the
activations once and write the result; a step is arithmetic in registers instead of a dozen
launches. Activations keep their own type. Nothing is read back from the device, nothing is tuned
at run time and sums have a fixed order: after one call with the same shapes a CUDA graph can
capture the solution, and replays give the same bits.
"""

import weakref
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesteer.ode.barriers.quadratic import ReducedBasis
from odesteer.ode.reduced.integrate import Integration
from odesteer.ode.solvers import SOLVERS

TYPES = (torch.float32, torch.bfloat16, torch.float16)

# The shortest axis of a product on tensor cores.
_SHORTEST = 16


@cache
def runs_on(device: torch.device) -> bool:
    """Return True where the kernels can be compiled: compute capability 8.0 or above."""
    return (
        device.type == "cuda"
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and find_spec("triton") is not None
    )


def solve(basis: ReducedBasis, a: Tensor, integration: Integration) -> Tensor | None:
    """Return a(time) of rows [n, d] in their own type, by Euler's or great-circle steps.

    Returns None for other solvers and types, and where the kernels do not run.
    """
    straight = integration.solver == SOLVERS["euler"]
    supported = straight or integration.solver == SOLVERS["great-circle"]
    supported = supported and a.dtype in TYPES and basis.centre.dtype == torch.float32
    return _launch(basis, a, integration, straight) if supported and runs_on(a.device) else None


class _Constants(NamedTuple):
    """Arrays of a basis that `triton_kernels.flow` takes, padded with zeros from k to K."""

    mix: Tensor | None
    factor: Tensor | None
    curvature: Tensor
    slope: Tensor

    @staticmethod
    def of(basis: ReducedBasis) -> "_Constants":
        k = len(basis.gram)
        padded = _power(k)
        curvature, slope = basis.slope.new_zeros(2, padded)
        curvature[:k], slope[:k] = basis.curvature[:k], basis.slope[:k]
        if basis.whitened_projection is None:
            return _Constants(None, None, curvature, slope)
        # In double precision, once: w p = V^T S x - G z, and G = F F^T by a factorisation that
        # does not square the condition of S V.
        into_z, projected = basis.whitened_projection.double().chunk(2, dim=-1)
        mix = basis.gram.new_zeros(len(into_z), 2, padded)
        mix[:, 0, :k] = into_z
        mix[:, 1, :k] = projected - into_z @ basis.gram.double()
        factor = basis.gram.new_zeros(padded, padded)
        factor[:k, :k] = torch.linalg.qr(basis.lift.mT.double(), mode="r").R.mT
        return _Constants(mix, factor, curvature, slope)


_constants: "weakref.WeakKeyDictionary[ReducedBasis, _Constants]" = weakref.WeakKeyDictionary()


def _launch(basis: ReducedBasis, a: Tensor, integration: Integration, straight: bool) -> Tensor:
    """Launch the three kernels; block sizes follow from n, d, m and k alone."""
    from odesteer.ode.reduced.kernels import triton_kernels

    a = a if a.stride(-1) == 1 else a.contiguous()
    n, d = a.shape
    k, m, r = len(basis.gram), basis.projection.shape[1], len(basis.shrinkage)
    new = partial(torch.empty, dtype=torch.float32, device=a.device)
    result = new(n, d, dtype=a.dtype)
    if n == 0:
        return result
    constants = _constants.get(basis)
    if constants is None:
        constants = _constants[basis] = _Constants.of(basis)
    processors = _processors(a.device)
    # One row is computed alone; more fill the 16 rows of a tensor core's tile, at most 64: these
    # already need 8 warps, or the registers do not hold their sums.
    rows = 1 if n == 1 else min(64, _power(n))
    blocks, warps = _blocks(n, rows), 8 if rows == 64 else 4

    # With few rows, Q is read at full bandwidth only if every processor reads a part of it: d is
    # split until there are two programs for each processor, or 32 dimensions in a split.
    columns, depth = min(64, _power(m)), 32
    bands = max(1, _blocks(m, columns))
    splits = min(128, _blocks(2 * processors, blocks * bands), _blocks(d, depth))
    stretch = depth * _blocks(d, depth * splits)
    splits = _blocks(d, stretch)
    parts = new(splits, n, m + 1)

    # One row a program, until rows outnumber the programs that run concurrently; beyond, 16 rows
    # share their reads of mix and factor, where the state is narrow enough. Block sizes are such
    # that no register spills (compiled for compute capability 9.0, up to K = 256; a whitened basis
    # of K = 512 does spill).
    K = _power(k)
    together = _SHORTEST if n > 8 * processors and K <= 128 else 1
    whole = K <= 64 or (K == 128 and together == 1)
    shift, change, stays = new(n), new(n, k), new(n, dtype=torch.bool)
    levels = integration.level if isinstance(integration.level, Tensor) else None
    level = 0.0 if integration.level is None or levels is not None else float(integration.level)

    # Again enough programs for every processor, but none narrower than a cache line.
    wide = 64 if blocks * _blocks(d, 64) >= 2 * processors else 32

    with torch.cuda.device_of(a):
        triton_kernels.project[(bands, blocks, splits)](
            a,
            basis.centre,
            basis.projection,
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
        triton_kernels.flow[(_blocks(n, together),)](
            parts,
            constants.mix,
            basis.shrinkage,
            constants.factor,
            constants.curvature,
            constants.slope,
            basis.constant,
            integration.time,
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
            integration.steps,
            integration.time.stride(0),
            0 if levels is None else levels.stride(0),
            ROWS=together,
            K=K,
            CHUNK=K if whole else max(_SHORTEST, 4096 // K),
            COLUMNS=min(32, 8192 // K),
            SPLITS=min(_power(splits, 1), max(1, 8192 // (together * K))),
            WHITENED=constants.mix is not None,
            STRAIGHT=straight,
            STOPS=integration.level is not None,
            num_warps=4 if K <= 64 else 8,
        )
        triton_kernels.lift[(blocks, _blocks(d, wide))](
            a,
            basis.centre,
            basis.lift,
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
    """Return the smallest power of two that is at least `count` and `least`."""
    return max(least, 1 << (count - 1).bit_length())


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


@cache
def _processors(device: torch.device) -> int:
    """Return how many processors the device has; 1 where a CPU interprets the kernels."""
    if device.type != "cuda":
        return 1
    count: Any = torch.cuda.get_device_properties(device).multi_processor_count
    return int(count)
