"""Reduced solution of a batch: project, integrate, lift.

    x = a - m,   (x @ Q, ||x||) -> the flow in k + 1 dimensions -> (shift, change)
    a(T) = a + shift x + change (S V)^T

On a CPU a fresh block of memory costs more than writing into it (its pages are mapped one by
one), so each thread keeps a workspace for x, and a batch is solved in parts that fit it: only the
result and small tensors are allocated.
"""

import threading

import torch
from torch import Tensor

from odesteer.ode.barriers.base import is_learnt
from odesteer.ode.barriers.quadratic import QuadraticBarrier, ReducedBasis
from odesteer.ode.fields.base import GradientField, VectorField
from odesteer.ode.reduced import kernels
from odesteer.ode.reduced.integrate import Integration, Integrator, cast_like, integrate_reduced

# Values of x in a workspace, 4 MB: with fewer, products are small; with more, x leaves the cache
# before it is read again.
WORKSPACE = 1 << 20


class _Workspaces(threading.local):
    """A thread's workspaces by precision, and the view that was used last."""

    def __init__(self) -> None:
        self.buffers: dict[torch.dtype, Tensor] = {}
        self.last: Tensor | None = None


_workspaces = _Workspaces()


def reduced_basis_of(field: VectorField, a: Tensor) -> ReducedBasis | None:
    """Return the basis for `solve` of a field from `a`; None for other fields or autograd."""
    barrier = field.barrier
    if type(field) is not GradientField or not isinstance(barrier, QuadraticBarrier):
        return None
    if torch.is_grad_enabled() and (a.requires_grad or is_learnt(barrier)):
        return None
    return barrier.reduced_basis


def solve(basis: ReducedBasis, a: Tensor, integration: Integration) -> Tensor:
    """Solve the unit-speed flow of a quadratic barrier: [..., d] -> [..., d].

    Args:
        basis: of the barrier.
        a: in any type; solved in the barrier's precision.
        integration: times, solver and levels, of shape [...] instead of [n].
    """
    rows = a.reshape(-1, a.shape[-1])
    integration = integration.flat()
    moved = kernels.solve(basis, rows, integration)
    if moved is not None:
        return moved.view(a.shape)
    rows = rows.to(basis.centre.dtype)
    integrator = kernels.integrator(rows, integration.solver) or integrate_reduced
    result = torch.empty_like(rows, memory_format=torch.contiguous_format)
    if a.device.type != "cpu" or rows.numel() <= WORKSPACE:
        _solve_part(basis, rows, result, integration, integrator)
        return cast_like(a, result.view(a.shape))
    size = max(1, WORKSPACE // rows.shape[1])
    for first in range(0, len(rows), size):
        part = slice(first, first + size)
        _solve_part(basis, rows[part], result[part], integration.part(part), integrator)
    return cast_like(a, result.view(a.shape))


def _solve_part(
    basis: ReducedBasis, a: Tensor, result: Tensor, integration: Integration, integrator: Integrator
) -> None:
    x = torch.sub(a, basis.centre, out=_workspace(a))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    shift, change, stays = integrator(basis, x @ basis.projection, length, integration)
    torch.addcmul(a, x, shift, out=result)
    result.addmm_(change, basis.lift)
    if a.device.type != "cpu":
        torch.where(stays.unsqueeze(-1), a, result, out=result)
    elif bool(stays.any()):
        result[stays] = a[stays]


def _workspace(a: Tensor) -> Tensor:
    """Return memory shaped like `a`, on a CPU the thread's own: its contents are overwritten."""
    if a.device.type != "cpu" or a.numel() > WORKSPACE:
        return torch.empty_like(a, memory_format=torch.contiguous_format)
    last = _workspaces.last
    if last is not None and last.shape == a.shape and last.dtype == a.dtype:
        return last
    # A tensor made in inference mode could not be written to outside of it.
    with torch.inference_mode(False):
        if a.dtype not in _workspaces.buffers:
            _workspaces.buffers[a.dtype] = torch.empty(WORKSPACE, dtype=a.dtype)
        _workspaces.last = _workspaces.buffers[a.dtype][: a.numel()].view(a.shape)
    return _workspaces.last
