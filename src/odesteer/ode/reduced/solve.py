"""Reduced solution of a batch: project, integrate, lift.

    x = a - m,   (x @ Q, ||x||) -> the flow in k + 1 dimensions -> (shift, change)
    a(T) = a + shift x + change (S V)^T

On a CPU a fresh block of memory costs more than what is written into it (its pages are handed
out one by one), so x has a workspace that each thread keeps, and a batch passes in parts that
fit it: nothing is allocated but the result and what is small.
"""

import threading

import torch
from torch import Tensor

from odesteer.ode.barriers.quadratic import QuadraticBarrier
from odesteer.ode.fields.base import GradientField, VectorField
from odesteer.ode.reduced import kernels as fused
from odesteer.ode.reduced.basis import ReducedBasis
from odesteer.ode.reduced.integrate import Inner, Integration, in_type_of, integrate_reduced

# Values of x in a workspace, 4 MB: with fewer, products are cut small; with more, x is written to
# memory and read again.
WORKSPACE = 1 << 20


class _Kept(threading.local):
    """A thread's workspace by precision, and the view of it that was used last."""

    def __init__(self) -> None:
        self.buffers: dict[torch.dtype, Tensor] = {}
        self.last: Tensor | None = None


_kept = _Kept()


def frame_of(field: VectorField, a: Tensor) -> ReducedBasis | None:
    """The frame in which `solve` solves this field from `a`, if it does; it keeps no gradients."""
    barrier = field.barrier
    if type(field) is not GradientField or not isinstance(barrier, QuadraticBarrier):
        return None
    return None if torch.is_grad_enabled() and a.requires_grad else barrier.frame


def solve(frame: ReducedBasis, a: Tensor, course: Integration) -> Tensor:
    """a(time) along the unit-speed flow of a quadratic barrier: [..., d] -> [..., d].

    Args:
        frame: of the barrier.
        a: in any type; solved in the barrier's precision.
        course: how far, and how; [...] instead of [n].
    """
    rows = a.reshape(-1, a.shape[-1])
    course = course.flat()
    moved = fused.passage(frame, rows, course)
    if moved is not None:
        return moved.view(a.shape)
    rows = rows.to(frame.centre.dtype)
    inner = fused.inner(rows, course.solver) or integrate_reduced
    result = torch.empty_like(rows, memory_format=torch.contiguous_format)
    if a.device.type != "cpu" or rows.numel() <= WORKSPACE:
        _pass(frame, rows, result, course, inner)
        return in_type_of(a, result.view(a.shape))
    part = max(1, WORKSPACE // rows.shape[1])
    for first in range(0, len(rows), part):
        some = slice(first, first + part)
        _pass(frame, rows[some], result[some], course.part(some), inner)
    return in_type_of(a, result.view(a.shape))


def _pass(
    frame: ReducedBasis, a: Tensor, result: Tensor, course: Integration, inner: Inner
) -> None:
    x = torch.sub(a, frame.centre, out=_workspace(a))
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    shift, change, stays = inner(frame, x @ frame.entrance, length, course)
    torch.addcmul(a, x, shift, out=result)
    result.addmm_(change, frame.exit)
    if a.device.type != "cpu":
        torch.where(stays.unsqueeze(-1), a, result, out=result)
    elif bool(stays.any()):
        result[stays] = a[stays]


def _workspace(a: Tensor) -> Tensor:
    """Memory for the values of `a`, on a CPU the thread's own: what it held is lost."""
    if a.device.type != "cpu" or a.numel() > WORKSPACE:
        return torch.empty_like(a, memory_format=torch.contiguous_format)
    last = _kept.last
    if last is not None and last.shape == a.shape and last.dtype == a.dtype:
        return last
    # One made in inference mode could not be written to outside of it.
    with torch.inference_mode(False):
        if a.dtype not in _kept.buffers:
            _kept.buffers[a.dtype] = torch.empty(WORKSPACE, dtype=a.dtype)
        _kept.last = _kept.buffers[a.dtype][: a.numel()].view(a.shape)
    return _kept.last
