"""The guarantees of docs/theory.md: which barrier keeps which, and where it fails."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers.paths import REPOSITORY
from tests.steering.test_coverage import gaussians, normal_tail, share_of, shares, skewed
from torch import Tensor

from odesteer.methods.base import platt
from odesteer.ode import (
    SOLVERS,
    Adaptive,
    AndBarrier,
    Barrier,
    Certified,
    ConstantField,
    FourierBarrier,
    GaussianBarrier,
    GradientField,
    LinearBarrier,
    MixtureBarrier,
    ModuleBarrier,
    Network,
    NetworkBarrier,
    OrBarrier,
    QuadraticBarrier,
    SafetyField,
    SketchBarrier,
    Whitening,
    solve,
    trajectory,
)
from odesteer.steering.coverage import Coverage

D = 5
PAGE = REPOSITORY / "docs" / "theory.md"
EXACT = Adaptive(tolerance=1e-9)
EULER = SOLVERS["euler"]


def _normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def _whitening() -> Whitening:
    directions = torch.linalg.qr(_normal(D, 2, seed=1)).Q
    return Whitening(_normal(D, seed=2), directions, _vector(0.5, 2.5))


def _sphere(whitening: Whitening | None = None) -> QuadraticBarrier:
    plain = Whitening(torch.zeros(D, dtype=torch.float64))
    form, slope = _normal(D, D, seed=3), _normal(D, seed=4)
    return QuadraticBarrier.from_form(form, slope, 0.1, whitening or plain)


def _sketch() -> SketchBarrier:
    hashes = SketchBarrier.draw(D, 2, 64, torch.Generator().manual_seed(0))
    return SketchBarrier(*hashes, _normal(64, seed=5), 0.1, 0.8, 1.0)


def _fourier() -> FourierBarrier:
    return FourierBarrier(_normal(30, D, seed=6) / 2, _normal(30, seed=7), _normal(30, seed=8), 0.0)


def _gaussian() -> GaussianBarrier:
    roots = [_normal(D, D, seed=s) / 2 for s in (9, 10)]
    above, below = (root @ root.mT + torch.eye(D).double() / 2 for root in roots)
    barrier = GaussianBarrier.from_moments(_normal(D, seed=11), above, -_normal(D, seed=12), below)
    assert isinstance(barrier, GaussianBarrier)
    return barrier


def _mixture() -> MixtureBarrier:
    return MixtureBarrier(_whitening(), _normal(8, D, seed=13), _normal(6, D, seed=14), 1.0)


def _network() -> NetworkBarrier:
    network = Network.draw([D, 16, 1], "silu", torch.Generator().manual_seed(1)).double()
    return NetworkBarrier(network, torch.zeros(D).double(), _vector(0.2, 0.4, 0.3, 0.5, 0.2), 0.0)


def _linear(seed: int = 15) -> LinearBarrier:
    return LinearBarrier(_normal(D, seed=seed), 0.2)


BARRIERS = {
    "linear": _linear,
    "sphere": _sphere,
    "whitened sphere": lambda: _sphere(_whitening()),
    "sketch": _sketch,
    "fourier": _fourier,
    "gaussian": _gaussian,
    "mixture": _mixture,
    "network": _network,
    "soft and": lambda: AndBarrier([_linear(), _gaussian()]),
    "soft or": lambda: OrBarrier([_linear(), _sphere()]),
    "not": lambda: _gaussian().affine(-1.0),
}
OTHER_METRIC = ("whitened sphere", "mixture", "network")
every_barrier = pytest.mark.parametrize("name", BARRIERS)


def _rows(barrier: Barrier, n: int = 20) -> Tensor:
    """Rows about the origin at which h is no more than some units below 0."""
    rows = 1.5 * _normal(300, D, seed=20)
    return rows[barrier.value(rows) > -5.0][:n]


# ---- Propositions 1 and 2, along the exact flow


@every_barrier
def test_h_rises_at_the_rate_grad_h_dot_v(name: str) -> None:
    barrier, step = BARRIERS[name](), 1e-4
    field, a = GradientField(barrier), _rows(barrier)
    ends = [solve(field, a, t, solver=SOLVERS["rk4"], steps=1) for t in (step, -step)]
    rate = (barrier.value(ends[0]) - barrier.value(ends[1])) / (2 * step)
    gradient = barrier.gradient(a)
    assert bool((rate > 0).all())
    torch.testing.assert_close(rate, (gradient * field(a)).sum(dim=-1), rtol=1e-4, atol=1e-7)
    is_the_norm = torch.allclose(rate, gradient.norm(dim=-1), rtol=1e-4, atol=1e-7)
    assert is_the_norm is (name not in OTHER_METRIC)


@every_barrier
def test_the_exact_flow_never_leaves_the_region(name: str) -> None:
    barrier = BARRIERS[name]()
    rows = 1.5 * _normal(300, D, seed=21)
    inside = rows[barrier.value(rows) >= 0][:15]
    assert len(inside) == 15
    path = trajectory(GradientField(barrier), inside, 0.5, solver=Adaptive(), steps=10)
    assert float(barrier.value(path).min()) >= 0.0
    # The way back out exists: the same rows leave it along the reversed field.
    away = trajectory(GradientField(barrier).reversed(), inside, 3.0, solver=EULER, steps=60)
    assert float(barrier.value(away).min()) < 0.0


class _Shelf(torch.nn.Module):
    """h(x, y) = -1 - exp(-x) + max(0, y)^2, whose gradient is never 0."""

    def forward(self, a: Tensor) -> Tensor:
        x, y = a.unbind(-1)
        return -1 - torch.exp(-x) + torch.relu(y) ** 2


def test_a_positive_rate_alone_does_not_reach_the_region() -> None:
    barrier = ModuleBarrier(_Shelf())
    a = torch.tensor([[0.0, 0.0], [0.0, 0.5]], dtype=torch.float64)
    values = [
        barrier.value(solve(GradientField(barrier), a, length, solver=SOLVERS["rk4"], steps=200))
        for length in (0.0, 1.0, 10.0)
    ]
    assert bool((values[0] < values[1]).all() and (values[1] < values[2]).all())
    assert -1.0001 < float(values[2][0]) < -1.0 and float(values[2][1]) > 0


# ---- linear: LDA, CAA, ITI


@pytest.mark.parametrize("length", [0.01, 1.0, 1e4])
def test_linear_one_euler_step_of_any_length_is_exact(length: float) -> None:
    barrier, a = _linear(), _normal(10, D)
    field = GradientField(barrier)
    moved = solve(field, a, length, solver=EULER, steps=1)
    fine = solve(field, a, length, solver=SOLVERS["rk4"], steps=50)
    torch.testing.assert_close(moved, fine, rtol=1e-10, atol=1e-10)
    rise = barrier.value(moved) - barrier.value(a)
    torch.testing.assert_close(rise, length * barrier.weight.norm().expand(10))


def test_linear_every_level_is_reached_after_a_known_length() -> None:
    barrier, a = _linear(), _normal(10, D)
    for level in (1.0, 1e3):
        length = (level - barrier.value(a)) / barrier.weight.norm()
        moved = solve(GradientField(barrier), a, length, solver=EULER, steps=1)
        torch.testing.assert_close(barrier.value(moved), torch.full((10,), level).double())


# ---- the sphere: ODESteer, and the sketch of its paper


def test_sphere_h_is_bounded_so_a_level_may_be_out_of_reach() -> None:
    barrier, a = _sphere(), _rows(_sphere())
    bound = barrier.curvature.abs().max() + barrier.slope.norm() + barrier.constant
    for far in (1e-3, 1.0, 1e6):
        assert bool((barrier.value(far * a) <= bound).all())
    field, level = GradientField(barrier), float(bound) + 0.1
    moved = solve(field, a, 100.0, solver=SOLVERS["great-circle"], steps=500, level=level)
    assert bool((barrier.value(moved) < level).all())


def test_sphere_a_critical_point_outside_the_region_stays_there() -> None:
    # h = a^_1^2 - 0.5: on the equator a_1 = 0 it is -0.5, and the gradient is 0.
    first = torch.eye(D, 1, dtype=torch.float64)
    plain = Whitening(torch.zeros(D).double())
    barrier = QuadraticBarrier(plain, first, _vector(1.0), _vector(0.0), -0.5)
    equator = _normal(6, D) * torch.cat([_vector(0.0), torch.ones(D - 1).double()])
    moved = solve(GradientField(barrier), equator, 50.0, solver=SOLVERS["great-circle"], steps=20)
    assert torch.equal(moved, equator) and bool((barrier.value(moved) < 0).all())
    # It repels: any row off the equator gets into the region.
    off = equator + 1e-3 * first[:, 0]
    moved = solve(GradientField(barrier), off, 50.0, solver=SOLVERS["great-circle"], steps=2000)
    assert bool((barrier.value(moved) > 0).all())


@pytest.mark.parametrize("name", ["sphere", "sketch"])
def test_sphere_the_exact_flow_keeps_the_norm_and_euler_does_not(name: str) -> None:
    barrier, a, length, steps = BARRIERS[name](), 3 * _normal(10, D), 1.5, 6
    field, before = GradientField(barrier), (3 * _normal(10, D)).square().sum(dim=-1)
    kept = solve(field, a, length, solver=SOLVERS["great-circle"], steps=steps)
    torch.testing.assert_close(kept.square().sum(dim=-1), before)
    grown = solve(field, a, length, solver=EULER, steps=steps).square().sum(dim=-1)
    torch.testing.assert_close(grown, before + length**2 / steps)


def test_sketch_of_degree_two_is_a_sphere_quadratic() -> None:
    barrier, a = _sketch(), _normal(10, D)
    torch.testing.assert_close(barrier.quadratic().value(a), barrier.value(a))
    torch.testing.assert_close(barrier.quadratic().gradient(a), barrier.gradient(a))


# ---- Fourier


def test_fourier_h_is_bounded_and_the_flow_may_stop_below_zero() -> None:
    barrier = _fourier()
    bound = math.sqrt(2 / 30) * barrier.coef.abs().sum()
    assert bool((barrier.value(1e4 * _normal(200, D)).abs() <= bound).all())
    # h = cos(a) + cos(a / 2) - 1 is 1 at 0, and has a crest of -1 at 2 pi.
    waves = FourierBarrier(_vector(1.0, 0.5)[:, None], _vector(0.0, 0.0), _vector(1.0, 1.0), -1.0)
    assert float(waves.value(_vector(0.0))) == pytest.approx(1.0)
    moved = solve(GradientField(waves), _vector(5.0)[None], 3.0, solver=EULER, steps=3000)
    assert float(moved) == pytest.approx(2 * math.pi, abs=0.01)
    assert float(waves.value(moved)) == pytest.approx(-1.0, abs=0.01)


# ---- Gaussian


def test_qda_calls_rows_desired_that_are_far_from_all_data() -> None:
    # Same means; the positives are only wider. 100 standard deviations out, no row has ever
    # been, and h is in the thousands.
    d, zero = D, torch.zeros(D).double()
    barrier = GaussianBarrier.from_moments(zero, 1.2 * torch.eye(d), zero, torch.eye(d))
    out = 100 * torch.nn.functional.normalize(_normal(10, D), dim=-1)
    assert bool((barrier.value(out) > 500).all()) and float(barrier.value(zero)) < 0
    # And the flow goes there: its path length is all that stops it.
    moved = solve(GradientField(barrier), 0.01 * out, 50.0, solver=SOLVERS["heun"], steps=50)
    torch.testing.assert_close(moved.norm(dim=-1), torch.full((10,), 51.0).double())


def test_qda_h_is_not_bounded_below_either() -> None:
    zero = torch.zeros(D).double()
    barrier = GaussianBarrier.from_moments(zero, torch.eye(D), zero, 1.2 * torch.eye(D))
    assert float(barrier.value(100 * _normal(D))) < -500
    # The flow leads back to where the positives are, and arrives.
    moved = solve(GradientField(barrier), 3 * _normal(5, D), 20.0, solver=EXACT, steps=1, level=0.1)
    assert bool((barrier.value(moved) >= 0.1).all())


# ---- mixture


def test_mixture_the_flow_may_stop_at_a_local_maximum_below_zero() -> None:
    # One lone positive between two negatives, the other nine far to the right.
    positive = torch.cat([_vector(0.0), torch.full((9,), 30.0).double()]).unsqueeze(-1)
    negative = _vector(-1.5, 1.5).unsqueeze(-1)
    barrier = MixtureBarrier(Whitening(_vector(0.0)), positive, negative, 1.2)
    moved = solve(GradientField(barrier), _vector(0.6)[None], 3.0, solver=EULER, steps=3000)
    assert abs(float(moved)) < 0.01 and float(barrier.value(moved)) < -1.0


def test_mixture_h_grows_at_most_linearly_far_away() -> None:
    barrier = _mixture()
    far = [scale * _normal(20, D) for scale in (1e3, 1e5)]
    steepest = [barrier.gradient(a).norm(dim=-1).max() for a in far]
    assert bool(torch.isfinite(barrier.value(far[1])).all())
    assert float(steepest[1]) == pytest.approx(float(steepest[0]), rel=0.2)


# ---- network


def test_network_is_exact_where_it_is_smooth_and_one_sided_at_a_kink() -> None:
    hidden = Network.draw([D, 16, 16, 1], "relu", torch.Generator().manual_seed(0)).double()
    barrier = NetworkBarrier(hidden, torch.zeros(D).double(), 1.0, 0.0)
    a, step = _normal(200, D), 1e-7
    direction = torch.nn.functional.normalize(_normal(D, seed=3), dim=-1)
    ahead, behind = (barrier.value(a + s * step * direction) for s in (1, -1))
    slope, here = (ahead - behind) / (2 * step), barrier.gradient(a) @ direction
    torch.testing.assert_close(slope, here, rtol=1e-5, atol=1e-7)
    # On the hyperplane of a unit: the slopes to both sides differ, and ours is one of them.
    w, b = hidden.dense[0].weight[0], hidden.dense[0].bias[0]
    kink = a - ((a @ w + b) / w.square().sum()).unsqueeze(-1) * w
    across, here = w / w.norm(), barrier.value(kink)
    sides = [(barrier.value(kink + s * across) - here) / s for s in (step, -step)]
    assert bool(((sides[0] - sides[1]).abs() > 1e-3).any())
    ours = barrier.gradient(kink) @ across
    assert float((torch.stack(sides) - ours).abs().amin(dim=0).max()) < 1e-5


def test_network_is_surest_where_there_has_never_been_a_row() -> None:
    # A ReLU network is affine along every ray from some distance on (Hein et al., CVPR 2019).
    hidden = Network.draw([D, 16, 16, 1], "relu", torch.Generator().manual_seed(0)).double()
    barrier = NetworkBarrier(hidden, torch.zeros(D).double(), 1.0, 0.0)
    near = _normal(100, D)
    sure = [torch.sigmoid(barrier.value(s * near).abs()).median() for s in (1.0, 1e4)]
    assert float(sure[0]) < 0.75 and float(sure[1]) > 0.999


# ---- "and", "or", "not"


def test_soft_and_above_zero_means_every_part_is() -> None:
    parts = [_linear(s) for s in (15, 16, 17)]
    a = 5 * _normal(500, D)
    values = torch.stack([part.value(a) for part in parts])
    joined = AndBarrier(parts).value(a)
    assert int((joined >= 0).sum()) > 20
    assert bool((values[:, joined >= 0] > 0).all())
    # The converse fails within log 3 of the corner, and nowhere else.
    every = (values >= 0).all(dim=0)
    assert bool((joined[every] < 0).any())
    assert bool((joined[(values >= math.log(3)).all(dim=0)] >= 0).all())


def test_soft_or_above_zero_does_not_mean_any_part_is() -> None:
    part = LinearBarrier(torch.ones(D).double(), 0.0)
    a = torch.full((D,), -0.1).double()
    assert float(part.value(a)) == pytest.approx(-0.5)
    assert float(OrBarrier([part, part]).value(a)) == pytest.approx(math.log(2) - 0.5)
    # What holds: some part >= 0 makes it so, and it means some part >= -log n.
    parts, rows = [_linear(s) for s in (15, 16, 17)], 5 * _normal(500, D)
    values, joined = torch.stack([p.value(rows) for p in parts]), OrBarrier(parts).value(rows)
    assert bool((joined[(values >= 0).any(dim=0)] > 0).all())
    assert bool((values.amax(dim=0)[joined >= 0] >= -math.log(3)).all())


def test_hard_and_rises_up_to_the_step_length_and_has_kinks() -> None:
    # Two planes that nearly oppose one another: their ridge is a kink.
    parts = [LinearBarrier(_vector(1.0, 0.3), 0.0), LinearBarrier(_vector(-1.0, 0.3), 0.0)]
    hard, a = AndBarrier(parts, soft=False), _vector(0.4, 0.0)[None]
    dips = []
    for steps in (10, 100, 1000):
        path = hard.value(trajectory(GradientField(hard), a, 2.0, solver=EULER, steps=steps))
        dips.append(float(-path.diff(dim=0).min()))
    assert dips[0] > 0.05
    # A dip is as long as a step, so that it vanishes with it; the rise over the way does not.
    assert dips[1] == pytest.approx(dips[0] / 10, rel=0.3)
    assert dips[2] == pytest.approx(dips[0] / 100, rel=0.3)
    assert float(path[-1] - path[0]) > 0.5
    side = [GradientField(hard)(_vector(x, 1.0)[None]) for x in (1e-9, -1e-9)]
    assert float((side[0] - side[1]).norm()) > 1.5
    # The soft form has one field, and no dips at steps that are short for it.
    soft = AndBarrier(parts)
    smooth = soft.value(trajectory(GradientField(soft), a, 2.0, solver=EULER, steps=100))
    assert float(smooth.diff(dim=0).min()) > 0


@every_barrier
def test_not_is_the_same_flow_backwards(name: str) -> None:
    barrier = BARRIERS[name]()
    a = _rows(barrier)
    field, opposite = GradientField(barrier), GradientField(barrier.affine(-1.0))
    torch.testing.assert_close(opposite(a), -field(a))
    torch.testing.assert_close(
        solve(opposite, a, 0.3, solver=EXACT, steps=1),
        solve(field, a, -0.3, solver=EXACT, steps=1),
        rtol=1e-6,
        atol=1e-6,
    )


# ---- safety filter


@pytest.mark.parametrize("name", ["linear", "gaussian", "network"])
def test_safety_filter_the_deficit_decays_exactly_exponentially(name: str) -> None:
    barrier, alpha, time = BARRIERS[name](), 1.5, 0.7
    a, margin = _rows(barrier), float(barrier.value(_rows(barrier)).median())
    before = barrier.value(a) - margin
    field = SafetyField(barrier, alpha, margin)
    moved = solve(field, a, time, solver=EXACT, steps=1)
    near = before > -1.0
    expected = torch.where(before < 0, before * math.exp(-alpha * time), before)
    after = barrier.value(moved) - margin
    torch.testing.assert_close(after[near], expected[near], rtol=1e-5, atol=1e-7)
    assert torch.equal(moved[before >= 0], a[before >= 0])


@pytest.mark.parametrize("name", ["linear", "gaussian", "network"])
def test_safety_filter_bounds_h_from_below_whatever_the_nominal_field(name: str) -> None:
    barrier, alpha, time = BARRIERS[name](), 1.5, 0.7
    a, margin = _rows(barrier), float(barrier.value(_rows(barrier)).median())
    before = barrier.value(a) - margin
    a, before = a[before > -1.0], before[before > -1.0]
    nominal = ConstantField(-2.0 * barrier.gradient(a).mean(dim=0))
    how = {"solver": Adaptive(tolerance=1e-7), "steps": 1}
    floor = before * math.exp(-alpha * time)
    free = barrier.value(solve(nominal, a, time, **how)) - margin
    kept = barrier.value(solve(SafetyField(barrier, alpha, margin, nominal), a, time, **how))
    assert bool((free < floor - 0.1).any())
    assert bool((kept - margin >= floor - 1e-4).all())


def test_safety_filter_long_euler_steps_overshoot_the_margin() -> None:
    barrier, alpha = _linear(), 1.0
    a = -3 * barrier.weight.expand(1, D)
    before = float(barrier.value(a))
    field = SafetyField(barrier, alpha)
    # For a linear h a step of length dt leaves 1 - alpha dt of the deficit.
    for dt, left in ((0.25, 0.75), (1.5, -0.5)):
        moved = solve(field, a, dt, solver=EULER, steps=1)
        assert float(barrier.value(moved)) == pytest.approx(left * before)


def test_safety_filter_promises_nothing_where_h_cannot_reach_the_margin() -> None:
    barrier = _sphere()
    a, top = _rows(barrier), 50.0
    field = SafetyField(barrier, 1.0, top, limit=0.5)
    moved = solve(field, a, 2.0, solver=SOLVERS["rk4"], steps=20)
    promised = top + (barrier.value(a) - top) * math.exp(-2.0)
    assert bool((barrier.value(moved) < promised - 1.0).all())
    assert float((moved - a).norm(dim=-1).max()) <= 2.0 * 0.5 * (1 + 1e-6)


def test_safety_filter_of_several_barriers_keeps_them_all() -> None:
    parts, alpha, time = [_linear(15), _linear(16), _network()], 1.5, 0.7
    a = _rows(AndBarrier(parts, soft=False))
    nominal = ConstantField(-2.0 * sum(part.gradient(a).mean(dim=0) for part in parts))
    how = {"solver": Adaptive(tolerance=1e-7), "steps": 1}
    field = SafetyField(parts, alpha, nominal=nominal)
    free, kept = solve(nominal, a, time, **how), solve(field, a, time, **how)
    for part in parts:
        floor = part.value(a) * math.exp(-alpha * time)
        assert bool((part.value(free) < floor - 0.1).any())
        assert bool((part.value(kept) >= floor - 1e-4).all())


def test_safety_filter_of_contradictory_barriers_misses_them_alike_and_says_so() -> None:
    barrier, a = _linear(), _normal(20, D)
    field = SafetyField([barrier, barrier.affine(-1.0, -1.0)], 1.0)  # h >= 0 and h <= -1
    torch.testing.assert_close(field.slack(a), torch.full((20, 2), 0.5).double())
    moved = solve(field, a, 8.0, solver=SOLVERS["rk4"], steps=100)
    torch.testing.assert_close(
        barrier.value(moved), torch.full((20,), -0.5).double(), atol=1e-2, rtol=0
    )


# ---- discrete steps


def test_a_step_shorter_than_twice_the_gradient_over_its_lipschitz_constant_raises_h() -> None:
    barrier = _gaussian()
    # The Hessian of h is the matrix of the form: L is its norm.
    lipschitz = float(torch.linalg.matrix_norm(barrier.matrix, ord=2))
    a = 3 * _normal(400, D)
    longest = 2 * barrier.gradient(a).norm(dim=-1) / lipschitz
    rises = []
    for share in (0.1, 0.5, 0.99):
        moved = solve(GradientField(barrier), a, share * longest, solver=EULER, steps=1)
        rises.append(barrier.value(moved) - barrier.value(a))
    assert all(bool((rise > 0).all()) for rise in rises)


def test_a_longer_step_may_lower_h() -> None:
    zero, one = torch.zeros(1).double(), torch.eye(1).double()
    barrier = GaussianBarrier.from_moments(zero, one / 2, zero, one)  # h = log 2 / 2 - a^2 / 2
    a = _vector(1.0)[None]
    assert float(barrier.gradient(a)) == pytest.approx(-1.0)
    for length, rises in ((1.9, True), (2.1, False)):
        moved = solve(GradientField(barrier), a, length, solver=EULER, steps=1)
        assert (float(barrier.value(moved)) > float(barrier.value(a))) is rises


@every_barrier
def test_certified_steps_never_lower_h_whatever_their_length(name: str) -> None:
    barrier = BARRIERS[name]()
    a = _rows(barrier)
    for length in (0.1, 30.0):
        path = trajectory(
            GradientField(barrier), a, 6 * length, solver=SOLVERS["certified"], steps=6
        )
        values = barrier.value(path)
        assert float(values.diff(dim=0).min()) >= -1e-11 * float(1 + values.abs().max())
        assert bool((values[-1] > values[0]).all())


def test_certified_steps_may_travel_less_than_the_time() -> None:
    barrier, a = _sphere(), _rows(_sphere())
    radius = a.norm(dim=-1)
    how = {"solver": SOLVERS["certified"], "steps": 5}
    path = trajectory(GradientField(barrier), a, 20 * radius, **how)
    cosine = (path[1:] * path[:-1]).sum(dim=-1) / radius.square()
    angles = torch.arccos(cosine.clamp(-1.0, 1.0)).sum(dim=0)
    assert float(angles.max()) < 20.0 and float(angles.min()) > 0.0


def test_with_gamma_no_step_leaves_the_region_and_below_it_is_only_checked() -> None:
    barrier, solver = _gaussian(), Certified(gamma=0.5)
    rows = 1.5 * _normal(300, D, seed=21)
    inside = rows[barrier.value(rows) >= 0][:15]
    away = ConstantField(-barrier.gradient(inside).mean(dim=0), barrier)
    plain, kept = (
        barrier.value(trajectory(away, inside, 3.0, solver=each, steps=15))
        for each in (EULER, solver)
    )
    assert bool((plain < 0).any()) and not bool(solver.holds(plain).all())
    assert float(kept.min()) >= 0.0 and bool((kept[-1] < kept[0]).any())
    assert bool(solver.holds(kept + 1e-12).all())
    # Below 0 the field of a slow filter gains less than the condition asks for.
    slow, below = SafetyField(_linear(), 0.4), -_linear().weight[None]
    path = _linear().value(trajectory(slow, below, 1.0, solver=solver, steps=1))
    assert float(path[1]) == pytest.approx(0.6 * float(path[0])) and not bool(solver.holds(path))


# ---- certificates


@every_barrier
def test_no_perturbation_within_the_radius_crosses_the_level(name: str) -> None:
    barrier = BARRIERS[name]()
    a, direction = (
        _rows(barrier),
        torch.nn.functional.normalize(_normal(300, 20, D, seed=30), dim=-1),
    )
    level = float(barrier.value(a).median()) + 0.1
    if name in ("sketch", "soft and", "soft or"):  # of a sketch, a form and a sphere without bounds
        with pytest.raises(ValueError, match="No Lipschitz bound"):
            barrier.radius(a, level)
        return
    radius = 0.999 * barrier.radius(a, level).unsqueeze(-1)
    above = barrier.value(a) >= level
    towards = torch.where(above, -1.0, 1.0).unsqueeze(-1) * GradientField(barrier)(a)
    for b in (a + radius * direction, a + radius * towards):
        assert torch.equal(barrier.value(b) >= level, above.expand(b.shape[:-1]))


def test_beyond_the_radius_a_linear_h_crosses_and_others_need_not() -> None:
    crossed = []
    for barrier in (_linear(), _network()):
        a = _normal(20, D)
        level = float(barrier.value(a).max()) + 0.1
        step = 1.01 * barrier.radius(a, level).unsqueeze(-1)
        crossed.append(barrier.value(a + step * GradientField(barrier)(a)) >= level)
    assert bool(crossed[0].all()) and not bool(crossed[1].any())


# ---- doses


def test_a_target_is_met_at_its_level_or_spends_the_whole_budget() -> None:
    barrier = _gaussian()
    field, a, level = GradientField(barrier), 1.5 * _normal(60, D, seed=22), 1.0
    spent = solve(field, a, 0.5, solver=SOLVERS["heun"], steps=10)
    moved = solve(field, a, 0.5, solver=SOLVERS["heun"], steps=10, level=level)
    before, after = barrier.value(a), barrier.value(spent)
    there, short = before >= level, after < level
    meets = ~there & ~short
    assert min(int(x.sum()) for x in (there, short, meets)) > 2
    assert torch.equal(moved[there], a[there]) and torch.equal(moved[short], spent[short])
    excess = barrier.value(moved[meets]) - level
    assert float(excess.min()) >= 0.0 and float(excess.max()) < 1e-6


# ---- the page


@pytest.mark.parametrize("kind", [gaussians, skewed])
@pytest.mark.parametrize(("n", "coverage"), [(20, 0.9), (40, 0.75), (200, 0.8)])
def test_above_a_covered_level_the_stated_share_is_wanted(
    kind: Any, n: int, coverage: float
) -> None:
    found = shares(kind, n, coverage, 1000)
    assert found.mean() >= coverage - 3.0 * found.std() / math.sqrt(1000)


def test_above_the_level_of_a_probability_the_share_may_be_smaller() -> None:
    rng, found = np.random.default_rng(0), []
    for _ in range(50):
        values, labels = np.concatenate(skewed(rng, 200)), np.repeat([1, 0], 200)
        (scale, offset), _ = platt(values, labels, "h")
        found.append(share_of(skewed, (math.log(0.9 / 0.1) - offset) / scale))
    assert np.mean(found) < 0.85


def test_a_coverage_is_lost_at_the_level_itself_and_where_rows_are_others() -> None:
    rng = np.random.default_rng(0)
    values, labels = np.concatenate(gaussians(rng, 1000)), np.repeat([1, 0], 1000)
    level = Coverage.of(values, labels).toward.at(0.9)
    # The log-odds of a row at h are 2 h: those that stop at the level are its least wanted ones.
    assert 1.0 / (1.0 + math.exp(-2.0 * level)) < 0.8 < 0.89 < share_of(gaussians, level)
    # The unwanted rows have come nearer by 1.5, as steered ones may.
    wanted, nearer = normal_tail(level, 1.0), normal_tail(level, 0.5)
    assert wanted / (wanted + nearer) < 0.7


def test_the_page_names_all_tests_of_this_file_and_only_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    files = [file.read_text(encoding="utf-8") for file in (REPOSITORY / "tests").rglob("test_*.py")]
    existing = {name for text in files for name in re.findall(r"^def (test_\w+)", text, re.M)}
    here = {name for name in globals() if name.startswith("test_")} - {
        "test_the_page_names_all_tests_of_this_file_and_only_tests_that_exist"
    }
    assert here <= named <= existing
