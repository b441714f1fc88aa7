"""Compiled kernels of the reduced flow: numba on a CPU, Triton on a GPU.

The loop over steps is small: in plain torch most of its time goes into launching operations.
`numba_kernels` (the extra "fast") compiles it, `triton_launch` also the products around it with
Triton, which comes with torch's CUDA builds. Both compute what `odesteer.ode.reduced.solve` and
`integrate_reduced` do in torch, and the tests compare them; without either, torch runs.
"""

import torch
from torch import Tensor

from odesteer.ode.barriers.quadratic import ReducedBasis
from odesteer.ode.reduced.integrate import Integration, Integrator
from odesteer.ode.reduced.kernels import numba_kernels, triton_launch
from odesteer.ode.solvers import Solver

# Rows up to which one compiled function beats a library's products; see `numba_kernels`.
_FEW = 2


def solve(basis: ReducedBasis, a: Tensor, integration: Integration) -> Tensor | None:
    """Return a(time) of rows [n, d] in their own type; None where no kernel takes them."""
    if triton_launch.runs_on(a.device):
        return triton_launch.solve(basis, a, integration)
    single = a.dtype == basis.centre.dtype == torch.float32
    if a.device.type != "cpu" or not single or len(a) > _FEW:
        return None
    return numba_kernels.solve_few(basis, a, integration)


def integrator(a: Tensor, solver: Solver) -> Integrator | None:
    """Return the compiled loop for rows like `a` and this solver, or None without one."""
    if a.device.type == "cpu" and a.dtype == torch.float32:
        return numba_kernels.integrator(solver)
    return None
