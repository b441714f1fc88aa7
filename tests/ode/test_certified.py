"""Certified steps never lower h, at any dose; plain steps of the same length do.

`python -m tests.ode.test_certified 1000000` counts that many steps.
"""

import sys
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from odesteer.ode import (
    SOLVERS,
    Certified,
    ConstantField,
    FormBarrier,
    GradientField,
    LinearBarrier,
    QuadraticBarrier,
    SafetyField,
    Whitening,
    solve,
    trajectory,
)

Make = Callable[..., Tensor]
STEPS = 10


def random_quadratic(d: int, seed: int) -> tuple[QuadraticBarrier, torch.Generator]:
    """A quadratic with a random form, rank, slope, centre and whitening."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    whitening = Whitening(normal(d))
    if seed % 2:
        directions = torch.linalg.qr(normal(d, 3)).Q
        whitening = Whitening(normal(d), directions, normal(3).exp())
    form, slope = normal(d, d), 10 ** float(normal(())) * normal(d)
    return QuadraticBarrier.from_form(form, slope, 0.1, whitening, 1 + seed % d), generator


def falls(rounds: int, rows: int) -> tuple[int, Counter[str]]:
    """Return how many steps were taken, and how many lowered h, by solver."""
    counts: Counter[str] = Counter()
    for seed in range(rounds):
        barrier, generator = random_quadratic(4 + seed % 9, seed)
        field = GradientField(barrier)
        width = barrier.width
        a = barrier.whitening.centre + torch.randn(rows, width, generator=generator).double()
        dose = torch.rand(rows, generator=generator).double() * 4 - 2
        path_length = STEPS * dose * (a - barrier.whitening.centre).norm(dim=-1)
        for name in ("certified", "great-circle", "euler"):
            path = trajectory(field, a, path_length, solver=SOLVERS[name], steps=STEPS)
            change = barrier.value(path).diff(dim=0) * dose.sign()
            counts[name] += int((change < -1e-12 * (1 + barrier.value(a).abs())).sum())
    return rounds * rows * STEPS, counts


def test_no_certified_step_lowers_h_and_many_plain_ones_do() -> None:
    steps, counts = falls(20, 100)
    assert counts["certified"] == 0
    assert counts["great-circle"] > steps / 10 and counts["euler"] > steps / 10


def test_a_step_as_long_as_the_bound_raises_h_without_any_check() -> None:
    for seed in range(30):
        barrier, generator = random_quadratic(7, seed)
        a = barrier.whitening.centre + torch.randn(200, 7, generator=generator).double()
        field = GradientField(barrier)
        for flow, x in ((field, a), field.reduce(a)[:2]):
            longest = flow.longest(x)
            assert longest is not None and bool(torch.isfinite(longest).all())
            for share in (1.0, 0.5, -1.0):
                change = flow.value(flow.rotate(x, share * longest)) - flow.value(x)
                assert float((share * change).min()) > -1e-12 * float(barrier.smoothness())


def test_the_bound_in_fewer_dimensions_is_that_in_all(make_quadratic, normal: Make) -> None:
    for whitened in (False, True):
        field, a = GradientField(make_quadratic(whitened, rank=3)), 2 * normal(20, 7)
        with torch.no_grad():
            flow, start, _ = field.reduce(a)
            torch.testing.assert_close(flow.longest(start), field.longest(a))


def test_short_steps_are_those_of_the_plain_solver(make_quadratic, make_gaussian, normal: Make):
    a = 2 * normal(20, 7)
    for barrier, plain in ((make_quadratic(), "great-circle"), (make_gaussian(), "euler")):
        ends = [
            solve(GradientField(barrier), a, 0.01, solver=SOLVERS[name], steps=5)
            for name in ("certified", plain)
        ]
        torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)
    linear = LinearBarrier(normal(7))
    far = solve(GradientField(linear), a, 1e6, solver=Certified(), steps=1)
    torch.testing.assert_close(
        far, solve(GradientField(linear), a, 1e6, solver=SOLVERS["euler"], steps=1)
    )


@pytest.mark.parametrize(
    "name", ["quadratic", "gaussian", "network", "fourier", "sketch", "mixture"]
)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_with_and_without_a_bound_h_never_falls(
    name: str, sign: float, request: pytest.FixtureRequest, normal: Make
) -> None:
    barrier, a = request.getfixturevalue(f"make_{name}")(), 2 * normal(40, 7)
    field = GradientField(barrier)
    path = trajectory(field, a, sign * 40.0, solver=Certified(), steps=20)
    change = sign * barrier.value(path).diff(dim=0)
    # Reduced coordinates compute another rounding of h.
    assert float(change.min()) > -1e-12 * float(barrier.value(path).abs().max())
    assert float(change[0].min()) > 0
    if name not in ("quadratic", "sketch", "fourier"):
        return  # h is unbounded, and its field turns less
    plain = trajectory(field, a, sign * 40.0, solver=SOLVERS["euler"], steps=20)
    assert bool((sign * barrier.value(plain).diff(dim=0) < 0).any())


def test_a_field_that_lowers_h_does_not_move(normal: Make) -> None:
    barrier, a = LinearBarrier(normal(7)), normal(20, 7)
    down = ConstantField(-barrier.weight, barrier)
    assert torch.equal(solve(down, a, torch.ones(20), solver=Certified(), steps=3), a)


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0])
def test_with_gamma_a_field_that_leaves_the_region_is_kept_in_it(
    gamma: float, make_gaussian, normal: Make
) -> None:
    barrier, a = make_gaussian(), 2 * normal(200, 7)
    a = a[barrier.value(a) > 0.1][:40]
    away = ConstantField(-barrier.gradient(a).mean(dim=0), barrier)
    how = {"steps": 15}
    solver = Certified(gamma)
    path = barrier.value(trajectory(away, a, 3.0, solver=solver, **how))
    assert bool(solver.holds(path + 1e-12).all()) and float(path.min()) >= 0.0
    plain = barrier.value(trajectory(away, a, 3.0, solver=SOLVERS["euler"], **how))
    assert not bool(solver.holds(plain).all()) and float(plain.min()) < 0.0
    assert bool((path[-1] < path[0]).any())


def test_below_the_margin_gamma_is_checked_and_cannot_be_enforced() -> None:
    barrier, a = LinearBarrier(torch.tensor([1.0])), torch.tensor([[-1.0]])
    solver = Certified(0.5)
    path = barrier.value(trajectory(SafetyField(barrier, 0.5), a, 1.0, solver=solver, steps=1))
    assert path.flatten().tolist() == [-1.0, -0.5] and bool(solver.holds(path).all())
    path = barrier.value(trajectory(SafetyField(barrier, 0.4), a, 1.0, solver=solver, steps=1))
    assert not bool(solver.holds(path).any())


def test_a_target_is_met_by_certified_steps(make_quadratic, normal: Make) -> None:
    barrier, a = make_quadratic(), 2 * normal(60, 7)
    level = float(barrier.value(a).median()) + 0.5
    moved = solve(GradientField(barrier), a, 20.0, solver=Certified(), steps=50, level=level)
    there = barrier.value(a) >= level
    assert 5 < int(there.sum()) < 40 and torch.equal(moved[there], a[there])
    value = barrier.value(moved)[~there]
    assert float(value.min()) >= level and float(value.max()) < level + 1e-6


def test_the_spectral_norm_of_a_form_follows_its_matrix(make_gaussian) -> None:
    form: FormBarrier = make_gaussian()
    expected = torch.linalg.matrix_norm(form.matrix, ord=2)
    torch.testing.assert_close(form.smoothness(), expected)
    assert form.float().smoothness().dtype == torch.float32
    with pytest.raises(ValueError, match="gamma must be"):
        Certified(1.5)


if __name__ == "__main__":
    taken, lowered = falls(max(1, int(sys.argv[1]) // 10_000), 1000)
    print(f"of {taken} steps each, lowered h: {dict(lowered)}")
