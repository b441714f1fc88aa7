"""The quadratic barrier is its form and kernel, and its flow is k + 1 wide."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from odesteer.ode import SOLVERS, Adaptive, GradientField, QuadraticBarrier, Whitening, solve

Make = Callable[..., Tensor]
MakeQuadratic = Callable[..., QuadraticBarrier]
FIXED = [name for name in SOLVERS if name != "dopri5"]


def _unit(y: Tensor) -> Tensor:
    return y / y.norm(dim=-1, keepdim=True)


def _relative(x: Tensor, reference: Tensor, start: Tensor) -> float:
    displacement = (reference - start).norm(dim=-1)
    return float(((x - reference).norm(dim=-1) / displacement).max())


@pytest.mark.parametrize("whitened", [False, True])
def test_from_form_is_the_form_on_the_sphere(
    whitened: bool, make_whitening: Callable[..., Whitening], normal: Make, activations: Tensor
) -> None:
    A, g, whitening = normal(7, 7), normal(7, seed=1), make_whitening(whitened)
    barrier = QuadraticBarrier.from_form(A, g, 0.3, whitening)
    y = _unit(whitening(activations))
    expected = (y @ A * y).sum(dim=-1) + y @ g + 0.3
    torch.testing.assert_close(barrier.value(activations), expected)


@pytest.mark.parametrize("n", [1, 4, 7, 20])
@pytest.mark.parametrize("whitened", [False, True])
def test_from_kernel_is_the_sum_over_the_support(
    n: int,
    whitened: bool,
    make_whitening: Callable[..., Whitening],
    normal: Make,
    activations: Tensor,
) -> None:
    support, weights = _unit(normal(n, 7)), normal(n, seed=1)
    whitening = make_whitening(whitened)
    barrier = QuadraticBarrier.from_kernel(support, weights, 0.7, 1.3, -0.2, whitening)
    kernel = (0.7 * _unit(whitening(activations)) @ support.mT + 1.3) ** 2
    torch.testing.assert_close(barrier.value(activations), kernel @ weights - 0.2)
    assert barrier.basis.shape[1] <= min(n + 1, 7)


def test_equal_support_rows_add_their_weights(normal: Make) -> None:
    row, a = _unit(normal(1, 7)), normal(5, 7, seed=1)
    plain = Whitening(torch.zeros(7).double())
    weights = torch.tensor([0.5, 1.0, -0.2], dtype=torch.float64)
    many = QuadraticBarrier.from_kernel(row.expand(3, 7), weights, 0.7, 1.3, 0.0, plain)
    one = QuadraticBarrier.from_kernel(row, weights.sum()[None], 0.7, 1.3, 0.0, plain)
    torch.testing.assert_close(many.value(a), one.value(a))


def test_the_basis_is_orthonormal(quadratic: QuadraticBarrier) -> None:
    k = quadratic.basis.shape[1]
    torch.testing.assert_close(
        quadratic.basis.mT @ quadratic.basis, torch.eye(k, dtype=torch.float64)
    )


@pytest.mark.parametrize("rank", [0, 2, 5])
def test_rank_keeps_the_largest_eigenvalues_and_all_of_g(rank: int, normal: Make) -> None:
    A, g, a = normal(7, 7), normal(7, seed=1), normal(5, 7, seed=2)
    eigenvalues, vectors = torch.linalg.eigh((A + A.mT) / 2)
    kept = eigenvalues.abs().argsort(descending=True)[:rank]
    # The others are their mean.
    rest = (eigenvalues.sum() - eigenvalues[kept].sum()) / (7 - rank)
    others = torch.full_like(eigenvalues, float(rest))
    others[kept] = eigenvalues[kept]
    truncated = vectors @ torch.diag(others) @ vectors.mT
    barrier = QuadraticBarrier.from_form(A, g, 0.3, Whitening(torch.zeros(7).double()), rank)
    assert barrier.basis.shape == (7, rank + 1)
    y = _unit(a)
    torch.testing.assert_close(barrier.value(a), (y @ truncated * y).sum(dim=-1) + y @ g + 0.3)


def test_no_form_and_no_slope_is_a_constant_whose_flow_stands_still(normal: Make) -> None:
    zero = torch.zeros(7, dtype=torch.float64)
    barrier = QuadraticBarrier.from_form(torch.diag(zero), zero, 0.7, Whitening(zero))
    a = normal(3, 7)
    assert torch.equal(barrier.value(a), torch.full((3,), 0.7, dtype=torch.float64))
    for solver in SOLVERS.values():
        moved = solve(GradientField(barrier), a, 1.0, solver=solver, steps=5)
        torch.testing.assert_close(moved, a, rtol=1e-15, atol=1e-15)


def test_value_does_not_depend_on_the_distance_to_the_centre(
    quadratic: QuadraticBarrier, normal: Make
) -> None:
    centre, a = quadratic.whitening.centre, normal(5, 7, seed=2)
    expected = quadratic.value(a)
    for scale in (0.01, 3.0, 1e4):
        torch.testing.assert_close(quadratic.value(centre + scale * (a - centre)), expected)


def test_gradient_is_orthogonal_to_the_offset(quadratic: QuadraticBarrier, normal: Make) -> None:
    a = normal(5, 7, seed=2)
    inner = (quadratic.gradient(a) * (a - quadratic.whitening.centre)).sum(dim=-1)
    torch.testing.assert_close(inner, torch.zeros_like(inner), rtol=0, atol=1e-12)


def test_the_field_is_tangent_to_the_sphere_of_y(quadratic: QuadraticBarrier, normal: Make) -> None:
    a = normal(5, 7, seed=2)
    velocity = quadratic.whitening.power(GradientField(quadratic)(a), -1)
    inner = (velocity * quadratic.whitening(a)).sum(dim=-1)
    torch.testing.assert_close(inner, torch.zeros_like(inner), rtol=0, atol=1e-12)


def test_a_short_step_along_the_ascent_raises_h(quadratic: QuadraticBarrier, normal: Make) -> None:
    a = normal(50, 7, seed=2)
    moved = a + 1e-4 * GradientField(quadratic)(a)
    assert bool((quadratic.value(moved) > quadratic.value(a)).all())


def test_the_centre_is_a_critical_point(quadratic: QuadraticBarrier) -> None:
    centre = quadratic.whitening.centre
    assert bool(torch.isfinite(quadratic.value(centre)))
    assert torch.equal(quadratic.gradient(centre), torch.zeros_like(centre))
    assert torch.equal(GradientField(quadratic)(centre), torch.zeros_like(centre))


@pytest.mark.parametrize("name", list(SOLVERS))
def test_the_centre_stays_where_it_is(name: str, quadratic: QuadraticBarrier, normal: Make) -> None:
    centre = quadratic.whitening.centre
    a = torch.stack([centre, normal(7, seed=2)])
    moved = solve(GradientField(quadratic), a, 1.0, solver=SOLVERS[name], steps=5)
    assert torch.equal(moved[0], centre)
    assert bool(torch.isfinite(moved[1]).all()) and not torch.equal(moved[1], a[1])


def test_shapes_that_do_not_fit_raise(normal: Make) -> None:
    with pytest.raises(ValueError, match="needs basis"):
        QuadraticBarrier(Whitening(normal(7)), normal(7, 2), normal(3), normal(2), 0.0)


@pytest.mark.parametrize("time", [1.5, -1.5])
@pytest.mark.parametrize("rank", [0, 3, None])
@pytest.mark.parametrize("whitened", [False, True], ids=["plain", "whitened"])
@pytest.mark.parametrize("name", FIXED)
def test_solving_in_k_plus_one_dimensions_is_solving_in_d(
    name: str,
    whitened: bool,
    rank: int | None,
    time: float,
    make_quadratic: MakeQuadratic,
    full_field: type[GradientField],
    activations: Tensor,
) -> None:
    barrier = make_quadratic(whitened, rank=rank)
    how = {"solver": SOLVERS[name], "steps": 6}
    expected = solve(full_field(barrier), activations, time, **how)
    reduced = solve(GradientField(barrier), activations, time, **how)
    assert _relative(reduced, expected, activations) < 1e-9


@pytest.mark.parametrize("whitened", [False, True], ids=["plain", "whitened"])
def test_every_row_takes_its_own_time_in_either_dimension(
    whitened: bool, make_quadratic: MakeQuadratic, full_field: type[GradientField], normal: Make
) -> None:
    barrier, a = make_quadratic(whitened, rank=3), 2 * normal(5, 7, seed=2)
    time = torch.tensor([-2.0, -0.1, 0.3, 1.0, 3.0], dtype=torch.float64)
    how = {"solver": SOLVERS["rk4"], "steps": 6}
    expected = solve(full_field(barrier), a, time, **how)
    assert _relative(solve(GradientField(barrier), a, time, **how), expected, a) < 1e-9
    alone = torch.stack([solve(GradientField(barrier), a[i], time[i], **how) for i in range(5)])
    assert _relative(alone, expected, a) < 1e-9


def test_adaptive_in_k_plus_one_dimensions_is_many_steps_in_d(
    quadratic: QuadraticBarrier, full_field: type[GradientField], normal: Make
) -> None:
    a = 2 * normal(5, 7, seed=2)
    expected = solve(full_field(quadratic), a, 1.0, solver=SOLVERS["rk4"], steps=500)
    for tolerance in (1e-5, 1e-9):
        adaptive = Adaptive(tolerance=tolerance)
        reduced = solve(GradientField(quadratic), a, 1.0, solver=adaptive, steps=1)
        assert _relative(reduced, expected, a) < 2 * tolerance


def test_what_is_cut_off_counts_as_its_mean_so_the_level_stays_where_it_was():
    """On a sphere many equal eigenvalues are a constant; dropping them would shift h by it."""
    d, generator = 40, torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64)).Q
    eigenvalues = torch.cat([torch.tensor([9.0, -8.0, 7.0]), torch.full((d - 3,), 2.0)]).double()
    form = basis * eigenvalues @ basis.mT
    slope = torch.randn(d, generator=generator, dtype=torch.float64)
    whole = QuadraticBarrier.from_form(form, slope, 0.5, Whitening(torch.zeros(d).double()))
    a = torch.randn(30, d, generator=generator, dtype=torch.float64)
    cut = QuadraticBarrier.from_form(form, slope, 0.5, Whitening(torch.zeros(d).double()), rank=3)
    assert cut.basis.shape[1] == 4
    for barrier in (cut, whole.truncated(3)):
        torch.testing.assert_close(barrier.value(a), whole.value(a))
        torch.testing.assert_close(barrier.gradient(a), whole.gradient(a))
