"""Which compiled code solves the flow in k + 1 dimensions, where there is some?

The loop over steps is small: in plain torch most of its time goes into starting operations.
`cpu` compiles it with numba (the extra "fast"), `gpu` with triton, which comes with torch's CUDA
builds. Both do what `odesteer.ode.course.through` does, and the tests compare them with it;
where neither is there, that is what runs.
"""

import torch
from torch import Tensor

from odesteer.ode.course import Inner
from odesteer.ode.fused import cpu
from odesteer.ode.solver import Solver

__all__ = ["inner"]


def inner(a: Tensor, solver: Solver) -> Inner | None:
    """The compiled loop for rows like `a` and this solver; None where there is none."""
    if a.device.type == "cpu" and a.dtype == torch.float32:
        return cpu.inner(solver)
    return None
