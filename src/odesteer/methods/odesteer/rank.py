"""Rank selection for the field of a kernel machine."""

from collections.abc import Callable

from torch import Tensor

from odesteer.methods.odesteer.kernel_machine import Expansion, KernelMachine
from odesteer.ode import QuadraticBarrier, Whitening
from odesteer.ode.barriers.quadratic import unit_or_zero
from odesteer.ode.reduced.flow import enter

# Looked for among so many, which cost the less to find the fewer they are; then among all.
SIZES = (32, 128, 512, None)
ROWS = 1000


def sufficient_rank(
    expansion: Expansion,
    machine: KernelMachine,
    gamma: float,
    c0: float,
    whitening: Whitening,
    test: Tensor,
    fidelity: float,
) -> int:
    """The smallest rank whose field agrees with the full one on every test row (of more than
    1,000, on about so many of them).

    Args:
        expansion: of the unit rows y.
        machine: learnt without the test rows.
        gamma, c0: its kernel's.
        whitening: the coordinates y.
        test: indices of rows.
        fidelity: the least cosine between the fields.
    """
    test = test[:: max(1, len(test) // ROWS)]
    y = expansion.rows[test].double()
    field = _field(expansion, machine, gamma, c0, whitening, test)
    # On the unit sphere: the direction of the field does not depend on ||y||.
    a = whitening.centre + whitening.power(y, 1)
    for size in SIZES:
        barrier = QuadraticBarrier.from_kernel(
            machine.support, machine.weights, gamma, c0, 0.0, whitening, size
        )
        agrees = _agreement(barrier, a, field, fidelity)
        low, high = 0, len(barrier.curvature)
        if size is None or agrees(high):
            break
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if agrees(middle) else (middle + 1, high)
    return low


def _agreement(
    barrier: QuadraticBarrier, a: Tensor, field: Tensor, fidelity: float
) -> Callable[[int], bool]:
    """Whether the barrier's unit field at a rank is the given one everywhere, in k + 1 numbers."""
    frame = barrier.frame
    x = a - frame.centre
    flow, start = enter(frame, x @ frame.entrance, x.norm(dim=-1, keepdim=True))
    length = start[:, -1]
    projected, along = field @ frame.exit.mT, (field * x).sum(dim=-1)

    def agrees(rank: int) -> bool:
        velocity = flow._replace(frame=barrier.truncated(rank).frame)(start)
        scaling = unit_or_zero(velocity[:, -1:], length.unsqueeze(-1))
        moved = velocity[:, :-1] - scaling * start[:, :-1]
        cosine = (moved * projected).sum(dim=-1) + scaling[:, 0] * along
        return bool((cosine >= fidelity).all())

    return agrees


def _field(
    expansion: Expansion,
    machine: KernelMachine,
    gamma: float,
    c0: float,
    whitening: Whitening,
    test: Tensor,
) -> Tensor:
    """The unit field of the whole machine, from its kernel: [test, d]."""
    # In the rows' own precision: a cosine of 0.999 needs no more.
    y, support = expansion.rows[test], machine.support
    slopes = (gamma * expansion.cross[test] + c0) * (2 * gamma * machine.weights)
    gradient = (slopes @ support).double()
    y = y.double()
    tangent = gradient - (gradient * y).sum(dim=-1, keepdim=True) * y
    moved = whitening.power(tangent, 1)
    return unit_or_zero(moved, moved.norm(dim=-1, keepdim=True))
