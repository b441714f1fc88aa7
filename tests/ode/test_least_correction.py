"""The least correction is that of a reference solver of quadratic programs.

`python -m tests.ode.test_least_correction 100000` compares that many random problems.
"""

import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor

from odesteer.ode.fields.cbf import MOST, least_correction

SIZES = ((1, 4), (2, 6), (2, 2), (3, 5), (4, 3), (5, 8), (6, 5), (8, 16), (8, 5), (8, 3))
PRICE = 1e7
# A correction this much longer than the largest bound counts as none: the feasible set is a sliver
# of less than 1/ALMOST radians, and u is as sensitive to its normals.
ALMOST = 1e3


def problems(m: int, d: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random unit normals [n, m, d] and bounds [n, m], four fifths of them degenerate."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    normals, bounds = normal(n, m, d), normal(n, m)
    if m > 1:
        normals[::5, 1] = normals[::5, 0]  # equal, every other one with equal bounds
        bounds[::10, 1] = bounds[::10, 0]
        normals[1::5, 1] = -normals[1::5, 0]  # opposite
        normals[2::5, -1] = normals[2::5, :-1].sum(dim=1)  # dependent
        bounds[2::10, -1] = bounds[2::10, :-1].sum(dim=1)
        normals[3::5, 1] = normals[3::5, 0] + 1e-3 * normal(len(normals[3::5]), d)  # nearly equal
    return normals / normals.norm(dim=-1, keepdim=True), bounds


def reference(normals: np.ndarray, bounds: np.ndarray) -> np.ndarray | None:
    """Return the shortest u with normals u >= bounds, or None if there is none.

    A least-distance problem, by non-negative least squares: Lawson and Hanson, "Solving Least
    Squares Problems", 1974, chapter 23, https://doi.org/10.1137/1.9781611971217
    """
    target = np.append(np.zeros(normals.shape[1]), 1.0)
    matrix = np.vstack([normals.T, bounds])
    residual = matrix @ nnls(matrix, target, maxiter=2000)[0] - target
    return None if np.linalg.norm(residual) < 1e-9 else -residual[:-1] / residual[-1]


def corrections(normals: Tensor, bounds: Tensor, price: float = PRICE) -> Tensor:
    prices = price * bounds.amax(dim=-1).clamp_min(0.0)
    speeds = least_correction(normals @ normals.mT, bounds, prices)
    return (speeds.unsqueeze(-2) @ normals).squeeze(-2)


def errors(rounds: int, n: int) -> Iterator[tuple[float, bool]]:
    """Return the error of each problem, relative to max(1, u), and whether it is well feasible."""
    for seed in range(rounds):
        for m, d in SIZES:
            normals, bounds = problems(m, d, n, 1000 * seed + 10 * m + d)
            found = corrections(normals, bounds).numpy()
            for g, b, u in zip(normals.numpy(), bounds.numpy(), found, strict=True):
                expected = reference(g, b)
                if expected is None or np.abs(expected).max() > ALMOST * b.max() > 0:
                    yield 0.0, False
                else:
                    size = max(1.0, np.abs(expected).max())
                    yield float(np.abs(u - expected).max() / size), True


def test_it_is_the_smallest_that_satisfies_all_constraints() -> None:
    found = list(errors(1, 100))
    assert max(error for error, _ in found) < 1e-8
    assert 100 < sum(not feasible for _, feasible in found) < 500


def test_of_contradictory_constraints_it_misses_all_by_the_least_common_slack() -> None:
    compared = 0
    for m, d in ((4, 3), (8, 3)):
        normals, bounds = problems(m, d, 60, seed=m)
        missed = (bounds - (normals @ corrections(normals, bounds).unsqueeze(-1)).squeeze(-1)).amax(
            dim=-1
        )
        for g, b, slack in zip(normals.numpy(), bounds.numpy(), missed, strict=True):
            if reference(g, b) is not None:
                continue
            compared += 1
            least = linprog(
                np.append(np.zeros(d), 1.0),
                A_ub=np.column_stack([-g, -np.ones(m)]),
                b_ub=-b,
                bounds=[(None, None)] * d + [(0, None)],
            )
            assert float(slack) == pytest.approx(least.fun, abs=1e-6)
    assert compared > 30


def test_the_price_bounds_the_correction_and_binds_only_where_it_must() -> None:
    normals, bounds = problems(4, 5, 400, seed=1)
    speeds = [
        least_correction(normals @ normals.mT, bounds, torch.full((400,), price).double())
        for price in (0.5, 1e6)
    ]
    dear = speeds[1].sum(dim=-1)
    assert float(speeds[0].sum(dim=-1).max()) <= 0.5 * (1 + 1e-12)
    cheap = dear < 0.499
    assert 20 < int(cheap.sum()) < 380
    torch.testing.assert_close(
        *((s.unsqueeze(-2) @ normals).squeeze(-2)[cheap] for s in speeds), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("m", [1, 2, MOST])
def test_rows_without_a_deficit_get_exact_zeros_and_rows_are_independent(m: int) -> None:
    normals, bounds = problems(m, 6, 40, seed=2)
    bounds[::2] = -bounds[::2].abs()
    bounds[0] = 0.0
    price = torch.full((40,), 1e3).double()
    speeds = least_correction(normals @ normals.mT, bounds, price)
    assert torch.equal(speeds[::2], torch.zeros_like(speeds[::2]))
    one = least_correction(normals[5] @ normals[5].mT, bounds[5], price[5])
    torch.testing.assert_close(one, speeds[5], rtol=1e-12, atol=1e-12)
    folded = [x.reshape(4, 10, *x.shape[1:]) for x in (normals @ normals.mT, bounds, price)]
    torch.testing.assert_close(least_correction(*folded).reshape(40, m), speeds)


def test_its_gradient_is_that_of_finite_differences() -> None:
    normals, bounds = problems(4, 6, 20, seed=3)
    generic = slice(4, None, 5)  # at degenerate problems it has a kink
    normals, bounds = normals[generic].requires_grad_(True), bounds[generic].requires_grad_(True)

    def solve(normals: Tensor, bounds: Tensor) -> Tensor:
        price = torch.full(bounds.shape[:-1], 100.0).double()
        return least_correction(normals @ normals.mT, bounds, price)

    assert torch.autograd.gradcheck(solve, (normals, bounds))


def test_it_reads_no_value_back_from_the_device() -> None:
    gram, bound, price = (torch.empty(shape, device="meta") for shape in ((9, 5, 5), (9, 5), (9,)))
    assert least_correction(gram, bound, price).shape == (9, 5)


if __name__ == "__main__":
    wanted = int(sys.argv[1])
    tried = list(errors(max(1, wanted // (250 * len(SIZES))), 250))
    out = sum(not feasible for _, feasible in tried)
    print(
        f"{len(tried)} problems, {out} infeasible or almost so, "
        f"largest error {max(error for error, _ in tried):.1e}"
    )
