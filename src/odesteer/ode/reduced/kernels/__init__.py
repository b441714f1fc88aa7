"""Compiled kernels of the reduced flow: numba on a CPU, triton on a GPU.

The loop over steps is small: in plain torch most of its time goes into starting operations.
`cpu` compiles it with numba (the extra "fast"), `gpu` the passage around it too with triton,
which comes with torch's CUDA builds. Both do what `odesteer.ode.reduced.solve` and
`odesteer.ode.reduced.integrate.integrate_reduced` do in torch, and the tests compare them with it;
where neither is there, that is what runs.
"""

import torch
from torch import Tensor

from odesteer.ode.reduced.basis import ReducedBasis
from odesteer.ode.reduced.integrate import Inner, Integration
from odesteer.ode.reduced.kernels import numba_loop as cpu
from odesteer.ode.reduced.kernels import triton_launch as gpu
from odesteer.ode.solvers import Solver

__all__ = ["inner", "passage"]

# Rows up to which one piece of compiled code beats a library's products; see `row`.
_FEW = 2


def passage(frame: ReducedBasis, a: Tensor, course: Integration) -> Tensor | None:
    """All the way from a [n, d] to a(time), in a's own type; None where nothing compiled does."""
    if gpu.runs_on(a.device):
        return gpu.passage(frame, a, course)
    return _few_rows(frame, a, course) if a.device.type == "cpu" else None


def inner(a: Tensor, solver: Solver) -> Inner | None:
    """The compiled loop for rows like `a` and this solver; None where there is none."""
    if a.device.type == "cpu" and a.dtype == torch.float32:
        return cpu.inner(solver)
    return None


def _few_rows(frame: ReducedBasis, a: Tensor, course: Integration) -> Tensor | None:
    single = a.dtype == frame.centre.dtype == torch.float32
    if not single or len(a) > _FEW:
        return None
    straight = cpu.straight_or_not(course.solver)
    if straight is None or cpu.compiled() is None:
        return None
    from odesteer.ode.reduced.kernels import numba_row as row  # numba is there

    return row.solve(frame, a, course, straight)
