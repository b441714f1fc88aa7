"""Polynomial kernel logistic regression and the rank of its field.

log p(positive | y) / p(negative | y) = sum_i w_i (gamma x_i . y + c0)^2 + b

The kernel is exact: an eigendecomposition of the Gram matrix of the landmarks (all rows,
or a random subset when there are many: the Nystroem method) gives features whose inner
products are the kernel, and an ordinary regularised logistic regression on them is the
kernel machine. x_i . y is computed once, since the kernel of every gamma is a function of it.

Source: Zhu and Hastie, "Kernel Logistic Regression and the Import Vector Machine", 2005,
https://doi.org/10.1198/106186005X25619; Williams and Seeger, "Using the Nystroem Method to
Speed Up Kernel Machines", NeurIPS 2000.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from odesteer.methods.odesteer.logistic import regress
from odesteer.ode import QuadraticBarrier, Whitening
from odesteer.ode.barriers.quadratic import unit_or_zero
from odesteer.ode.reduced.flow import project

Folds = Sequence[tuple[np.ndarray, np.ndarray]]


class KernelMachine(NamedTuple):
    """sum_i weights_i (gamma support_i . y + c0)^2 + bias."""

    support: Tensor
    weights: Tensor
    bias: float


class Expansion(NamedTuple):
    """Rows and their inner products with the landmarks.

    Attributes:
        rows: [n, d] of unit length.
        support: the landmarks, [m, d]; all rows where there are few.
        cross: rows . support, [n, m].
        gram: support . support, [m, m].
    """

    rows: Tensor
    support: Tensor
    cross: Tensor
    gram: Tensor


class Machines(NamedTuple):
    """Kernel machines on one expansion, one a column.

    `weights` of the landmarks [m, c], `bias` [c], `log_odds` of every row [n, c].
    """

    weights: Tensor
    bias: Tensor
    log_odds: np.ndarray

    def machine(self, expansion: Expansion, column: int) -> KernelMachine:
        weights = self.weights[:, column].to(expansion.support)
        return KernelMachine(expansion.support, weights, float(self.bias[column]))


def expand(rows: Tensor, landmarks: int, seed: int) -> Expansion:
    """Unit rows [n, d] on at most so many of them."""
    if len(rows) <= landmarks:
        gram = rows @ rows.mT
        return Expansion(rows, rows, gram, gram)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(len(rows), generator=generator)[:landmarks].to(rows.device)
    support = rows[index]
    cross = rows @ support.mT
    gram = cross[index]
    return Expansion(rows, support, cross, (gram + gram.mT) / 2)


def fit_machines(
    expansion: Expansion,
    labels: np.ndarray,
    gamma: float,
    c0: float,
    used: Tensor,
    C: Sequence[float],
) -> Machines:
    """The kernel machines of labels [n], 0 or 1: one a column of `used` [n, c] and a C [c]."""
    values, vectors = torch.linalg.eigh((gamma * expansion.gram + c0).square())
    # Below are features that rounding made. Single precision leaves out a few of the kernel's
    # too; they are so short that the penalty lets them do nothing.
    exact = values.dtype == torch.float64
    kept = values > (1e-10 if exact else 1e-6) * values[-1]
    to_weights = vectors[:, kept] / values[kept].sqrt()
    kernel = (gamma * expansion.cross).add_(c0).square_()
    strengths = torch.tensor(list(C), dtype=torch.float32)
    found = regress(kernel, to_weights, torch.as_tensor(labels).to(kernel.device), used, strengths)
    weights = to_weights @ found.weight
    return Machines(weights, found.bias, found.log_odds.double().cpu().numpy())


def fit_machine(
    rows: Tensor, labels: np.ndarray, gamma: float, C: float, c0: float, landmarks: int, seed: int
) -> KernelMachine:
    """The kernel machine of unit rows [n, d] and labels 0 or 1."""
    expansion = expand(rows, landmarks, seed)
    everything = torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device)
    return fit_machines(expansion, labels, gamma, c0, everything, (C,)).machine(expansion, 0)


def fit_folds(
    expansion: Expansion,
    labels: np.ndarray,
    folds: Folds,
    gamma: float,
    Cs: Sequence[float],
    c0: float,
) -> Machines:
    """Machines without each fold's test rows, and then one with all rows, for every C.

    Column C * (folds + 1) + fold. The landmarks are shared: features depend on the rows and
    not on the labels, and an exact machine's solution lies in the span of its own rows.
    """
    used = torch.zeros(len(labels), len(folds) + 1, dtype=torch.bool)
    for column, (fit, _) in enumerate(folds):
        used[fit, column] = True
    used[:, -1] = True
    every_C = np.repeat(Cs, len(folds) + 1)
    used = used.repeat(1, len(Cs)).to(expansion.rows.device)
    return fit_machines(expansion, labels, gamma, c0, used, every_C.tolist())


def held_out_log_odds(machines: Machines, folds: Folds, choice: int) -> np.ndarray:
    """Of `fit_folds` at the C of that index: each row's by the fold without it, [n].

    NaN for rows that no fold tests.
    """
    out = np.full(len(machines.log_odds), np.nan)
    for column, (_, test) in enumerate(folds, start=choice * (len(folds) + 1)):
        out[test] = machines.log_odds[test, column]
    return out


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
    basis = barrier.reduced_basis
    x = a - basis.centre
    flow, start = project(basis, x @ basis.projection, x.norm(dim=-1, keepdim=True))
    length = start[:, -1]
    projected, along = field @ basis.lift.mT, (field * x).sum(dim=-1)

    def agrees(rank: int) -> bool:
        velocity = flow._replace(basis=barrier.truncated(rank).reduced_basis)(start)
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
