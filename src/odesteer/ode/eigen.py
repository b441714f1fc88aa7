"""Leading eigenpairs of a symmetric matrix.

    span{Q, M Q, M^2 Q, ...} -> T = Q^T M Q = W theta W^T -> M (Q W) = (Q W) theta

Block Lanczos with a random start and full reorthogonalisation. M is given by its products, so it
need not be formed. A pair has converged when its residual ||M v - theta v|| is small; the basis
grows until all have, or until the dense decomposition is cheaper.

Source: Golub and Underwood, "The block Lanczos method for computing eigenvalues", 1977; Musco
and Musco, "Randomized Block Krylov Methods", NeurIPS 2015, https://arxiv.org/abs/1504.05477.
"""

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 32
# ||M v - theta v|| over |theta|.
TOLERANCE = 1e-4


def largest_eigenpairs(
    product: Callable[[Tensor], Tensor], start: Tensor, count: int
) -> tuple[Tensor, Tensor] | None:
    """Compute eigenvalues [count], largest magnitude first, and eigenvectors [d, count].

    Args:
        product: [d, b] -> M [d, b], M symmetric.
        start: any tensor [d, ...] of the precision and device to work in.
        count: number of pairs.

    Returns:
        None if more than a third of all directions would be needed: decompose M instead.
    """
    d, eps = start.shape[0], torch.finfo(start.dtype).eps
    limit, check = d // 3, 4 * count
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(d, BLOCK, generator=generator, dtype=torch.float64).to(start)
    basis, image = start.new_empty(d, limit), start.new_empty(d, limit)
    size = 0
    while size + BLOCK <= limit:
        block = _orthonormal(block, basis[:, :size])
        moved = product(block)
        basis[:, size : size + BLOCK], image[:, size : size + BLOCK] = block, moved
        block, size = moved, size + BLOCK
        if size < check:
            continue
        Q, MQ = basis[:, :size], image[:, :size]
        form = Q.mT @ MQ
        values, rotation = torch.linalg.eigh((form + form.mT) / 2)
        order = values.abs().argsort(descending=True)[:count]
        values, rotation = values[order], rotation[:, order]
        vectors = Q @ rotation
        residual = (MQ @ rotation - vectors * values).norm(dim=0)
        # An error within a group of nearly equal eigenvalues hardly changes M.
        tolerance = TOLERANCE * values.abs() + 64 * eps * values.abs().max()
        if bool((residual <= tolerance).all()):
            return values, vectors
        check = size + size // 4
    return None


def _orthonormal(block: Tensor, basis: Tensor) -> Tensor:
    """Return orthonormal columns that are also orthogonal to the basis."""
    for _ in range(2):  # twice is enough (Kahan)
        block = block - basis @ (basis.mT @ block)
        block = torch.linalg.qr(block).Q
    return block
