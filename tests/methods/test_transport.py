"""MiMiC and Linear-AcT: does the map carry one distribution onto the other?"""

import pytest
import torch
from tests.helpers.models import two_gaussians

from odesteer import LinearAcT, MiMiC, PathLength
from odesteer.methods.linear_act import quantiles
from odesteer.methods.mimic import transport_matrix


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def skewed(n, d=4, seed=0):
    """Correlated rows about a mean that is not 0."""
    return randn(n, d, seed=seed) @ randn(d, d, seed=seed + 1) + randn(d, seed=seed + 2)


POSITIVE, NEGATIVE = skewed(400, seed=1), skewed(300, seed=7)
WHOLE = MiMiC(gated=False, ridge=0.0).fit_field(POSITIVE, NEGATIVE)


def test_the_mean_and_the_covariance_of_mimics_image_are_those_of_the_positives():
    image = NEGATIVE + WHOLE(NEGATIVE)
    torch.testing.assert_close(image.mean(dim=0), POSITIVE.mean(dim=0))
    torch.testing.assert_close(image.mT.cov(correction=0), POSITIVE.mT.cov(correction=0))


def test_the_matrix_is_the_optimal_one_symmetric_and_positive():
    source, target = NEGATIVE.mT.cov(), POSITIVE.mT.cov()
    matrix = transport_matrix(source, target)
    torch.testing.assert_close(matrix, matrix.mT)
    assert bool((torch.linalg.eigvalsh(matrix) > 0).all())
    torch.testing.assert_close(matrix @ source @ matrix, target)
    torch.testing.assert_close(matrix @ transport_matrix(target, source), torch.eye(4).double())


def test_equal_covariances_leave_the_mean_difference_which_is_caa():
    shifted = NEGATIVE + torch.tensor([1.0, 0.0, -2.0, 0.5])
    field = MiMiC(gated=False).fit_field(shifted, NEGATIVE)
    torch.testing.assert_close(
        field(POSITIVE), torch.tensor([1.0, 0.0, -2.0, 0.5]).double().expand(400, 4)
    )


@pytest.mark.parametrize("method", [MiMiC(gated=False), LinearAcT(support=False)], ids=str)
def test_the_displacement_is_the_gradient_of_the_barrier(method):
    field = method.fit_field(POSITIVE, NEGATIVE)
    a = randn(9, 4, seed=3).requires_grad_(True)
    (gradient,) = torch.autograd.grad(field.barrier.value(a).sum(), a)
    torch.testing.assert_close(field(a), gradient)


@pytest.mark.parametrize("method", [MiMiC(gated=False), LinearAcT(), MiMiC()], ids=str)
@pytest.mark.parametrize("solver", ["euler", "rk4", "dopri5"])
def test_every_strength_is_on_the_line_to_the_image_in_any_number_of_steps(method, solver):
    steering = method.fit(POSITIVE, NEGATIVE, calibrate=False)
    a = randn(20, 4, seed=5)
    line = steering.field.double()(a)
    for strength in (0.3, 1.0, 2.0):
        many = steering.replace(solver=solver, steps=7, strength=strength)
        torch.testing.assert_close(many(a), a + strength * line, atol=1e-5, rtol=1e-5)
    path = steering.with_strength(1.0).trajectory(a)
    torch.testing.assert_close(path[-1], a + line, atol=1e-5, rtol=1e-5)


def test_the_gate_leaves_what_the_probe_calls_positive_bit_for_bit():
    positive, negative = two_gaussians(200, 200, seed=2)
    steering = MiMiC().fit(positive, negative)
    a = torch.cat(two_gaussians(100, 100, seed=3))
    called = steering.field.gate.value(a) >= 0
    assert 50 < int(called.sum()) < 150
    assert torch.equal(steering(a)[called], a[called])
    assert bool((steering(a)[~called] != a[~called]).any(dim=-1).all())
    back = steering.with_strength(-1.0)
    assert torch.equal(back(a)[~called], a[~called])
    torch.testing.assert_close(
        back(a)[called] - a[called],
        -steering.field.barrier.gradient(a)[called],
        atol=1e-5,
        rtol=1e-4,
    )


def test_a_row_outside_the_gate_is_not_reached_by_a_path_length_either():
    positive, negative = two_gaussians(200, 200, seed=2)
    steering = MiMiC().fit(positive, negative).with_strength(PathLength(0.5))
    a = torch.cat(two_gaussians(100, 100, seed=3))
    way = (steering(a) - a).norm(dim=-1)
    closed = steering.field.gate.value(a) >= 0
    assert bool((way[closed] == 0).all())
    torch.testing.assert_close(way[~closed], torch.full_like(way[~closed], 0.5))


def test_mimic_is_finite_with_fewer_rows_than_dimensions():
    positive, negative = randn(20, 64, seed=1) + 1, randn(15, 64, seed=2)
    out = MiMiC().fit(positive, negative)(randn(30, 64, seed=3))
    assert bool(torch.isfinite(out).all())
    # The means still go where they should.
    field = MiMiC(gated=False).fit_field(positive, negative)
    torch.testing.assert_close(
        negative.mean(dim=0) + field(negative.mean(dim=0)), positive.mean(dim=0)
    )


def test_linear_act_finds_the_line_between_the_quantiles_when_there_is_one():
    w, b = torch.tensor([0.5, 2.0, 1.0, 3.0]).double(), torch.tensor([1.0, -1.0, 0.0, 4.0]).double()
    positive = (NEGATIVE * w + b)[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    field = LinearAcT(support=False).fit_field(positive, NEGATIVE)
    image = NEGATIVE + field(NEGATIVE)
    torch.testing.assert_close(image, NEGATIVE * w + b)
    torch.testing.assert_close(image.sort(dim=0).values, positive.sort(dim=0).values)


def test_linear_act_uses_every_row_of_unequal_classes():
    """The same law twice: nothing to move, whatever the counts, which dropping rows would miss."""
    line = torch.linspace(-1, 1, 301).double().unsqueeze(-1)
    field = LinearAcT(support=False).fit_field(line[::3], line)
    assert float(field(line).abs().max()) < 0.01
    torch.testing.assert_close(quantiles(line, 301), line)
    many = quantiles(randn(50, 3), 400)
    assert many.shape == (400, 3)
    assert bool((many.diff(dim=0) >= 0).all())
    torch.testing.assert_close(many.mean(dim=0), randn(50, 3).mean(dim=0), atol=0.02, rtol=0)


def test_linear_act_leaves_coordinates_outside_the_negatives_range_alone():
    steering = LinearAcT().fit(POSITIVE, NEGATIVE, calibrate=False)
    a = NEGATIVE.mean(dim=0).repeat(2, 1)
    a[0, 1] = NEGATIVE[:, 1].max() + 1
    a[1, 2] = NEGATIVE[:, 2].min() - 1
    moved = steering(a) != a
    assert moved.tolist() == [[True, False, True, True], [True, True, False, True]]


def test_a_coordinate_that_never_varies_is_shifted():
    positive, negative = POSITIVE.clone(), NEGATIVE.clone()
    positive[:, 2], negative[:, 2] = 5.0, 3.0
    field = LinearAcT().fit_field(positive, negative)
    assert float(field(negative)[0, 2]) == pytest.approx(2.0)


def test_the_golden_maps(golden):
    positive, negative, queries = (golden[k] for k in ("positive", "negative", "queries"))
    # The reference drops the longer class's rows.
    n = min(len(positive), len(negative))
    steering = LinearAcT(support=False).fit(positive[:n], negative[:n], calibrate=False)
    reference = golden["linear_act.steered"]
    error = (steering(queries) - reference).norm(dim=-1) / (reference - queries).norm(dim=-1)
    assert float(error.max()) < 1e-4

    some = [rows[:, :32].double() for rows in (positive, negative, queries)]
    # The reference's covariances are plain, with 0.01 on the diagonal.
    field = MiMiC(ridge=0.01).fit_field(some[0], some[1])
    left = field.gate.value(some[2]) >= 0
    assert left.tolist() == golden["mimic32.gate"].bool().tolist()
    torch.testing.assert_close(
        some[2] + field.barrier.gradient(some[2]), golden["mimic32.map_all"], atol=1e-8, rtol=1e-8
    )
    torch.testing.assert_close(
        some[2] + field(some[2]), golden["mimic32.steered"], atol=1e-8, rtol=1e-8
    )
    # Where the reference is NaN.
    assert bool(torch.isfinite(MiMiC().fit(positive, negative, calibrate=False)(queries)).all())
