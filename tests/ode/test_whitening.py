"""y = S^-1 (a - m) with S a power of a covariance; the thin products agree."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from odesteer.ode import GradientField, QuadraticBarrier, Whitening

Make = Callable[..., Tensor]
EYE = torch.eye(7, dtype=torch.float64)


@pytest.fixture
def whitening(make_whitening: Callable[..., Whitening]) -> Whitening:
    return make_whitening(True)


def _dense(whitening: Whitening) -> Tensor:
    U = whitening.directions
    return torch.eye(len(U), dtype=U.dtype) + U @ torch.diag(whitening.stretch - 1) @ U.mT


def _covariance(normal: Make, d: int = 7) -> Tensor:
    factor = normal(d, d, seed=30)
    return factor @ factor.mT + 0.1 * torch.eye(d, dtype=torch.float64)


def test_y_is_the_inverse_of_s_times_the_offset(whitening: Whitening, activations: Tensor) -> None:
    expected = (activations - whitening.centre) @ torch.linalg.inv(_dense(whitening)).mT
    torch.testing.assert_close(whitening(activations), expected)


@pytest.mark.parametrize("exponent", [-2, -1, 1, 2])
def test_power_is_the_matrix_power(
    exponent: int, whitening: Whitening, activations: Tensor
) -> None:
    matrix = torch.linalg.matrix_power(_dense(whitening), exponent)
    torch.testing.assert_close(whitening.power(activations, exponent), activations @ matrix.mT)


def test_entering_and_leaving_y_is_the_identity(whitening: Whitening, activations: Tensor) -> None:
    back = whitening.power(whitening(activations), 1) + whitening.centre
    torch.testing.assert_close(back, activations)


def test_without_directions_only_the_centre_moves(normal: Make) -> None:
    plain = Whitening(normal(7))
    a = normal(3, 7, seed=1)
    assert plain.is_plain
    assert torch.equal(plain(a), a - plain.centre)
    assert torch.equal(plain.power(a, -1), a)


@pytest.mark.parametrize("power", [0.25, 0.5])
def test_s_is_the_power_of_the_covariance_up_to_scale(power: float, normal: Make) -> None:
    covariance = _covariance(normal)
    whitening = Whitening.from_covariance(normal(7), covariance, power)
    eigenvalues, vectors = torch.linalg.eigh(covariance / torch.linalg.eigvalsh(covariance)[0])
    expected = vectors @ torch.diag(eigenvalues**power) @ vectors.mT
    torch.testing.assert_close(_dense(whitening), expected)


def test_half_power_makes_the_covariance_round(normal: Make) -> None:
    covariance = _covariance(normal)
    whitening = Whitening.from_covariance(normal(7), covariance, 0.5)
    inverse = whitening.power(EYE, -1)
    rounded = inverse @ covariance @ inverse
    torch.testing.assert_close(rounded, rounded[0, 0] * EYE)


def test_fewer_directions_keep_the_largest_variances_and_average_the_rest(normal: Make) -> None:
    covariance = _covariance(normal)
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    whitening = Whitening.from_covariance(normal(7), covariance, 0.5, rank=2)
    rest = eigenvalues[:5].mean()
    averaged = torch.cat([rest.expand(5), eigenvalues[5:]]) / rest
    expected = vectors @ torch.diag(averaged.sqrt()) @ vectors.mT
    assert whitening.stretch.shape == (2,)
    torch.testing.assert_close(_dense(whitening), expected)


def test_rank_zero_is_plain_because_no_direction_has_a_variance_of_its_own(normal: Make) -> None:
    whitening = Whitening.from_covariance(normal(7), _covariance(normal), 0.5, rank=0)
    assert whitening.is_plain


def test_power_zero_is_the_plain_sphere(normal: Make) -> None:
    assert Whitening.from_covariance(normal(7), _covariance(normal), 0.0).is_plain


def test_a_covariance_without_full_rank_gives_finite_coordinates(normal: Make) -> None:
    rows = normal(3, 7)
    whitening = Whitening.from_covariance(normal(7), rows.mT @ rows, 0.5)
    assert bool(torch.isfinite(whitening(normal(5, 7, seed=1))).all())
    assert bool((whitening.stretch > 0).all())


def test_the_metric_of_the_ascent_is_the_covariance_to_the_power_2p(normal: Make) -> None:
    covariance, p = _covariance(normal), 0.25
    whitening = Whitening.from_covariance(normal(7), covariance, p)
    barrier = QuadraticBarrier.from_form(normal(7, 7, seed=1), normal(7, seed=2), 0.0, whitening)
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    metric = vectors @ torch.diag(eigenvalues ** (2 * p)) @ vectors.mT
    a = normal(5, 7, seed=3)
    direction = barrier.gradient(a) @ metric
    direction = direction / direction.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(GradientField(barrier)(a), direction)


def test_fully_whitened_linear_discriminant_points_along_the_mean_difference(
    normal: Make,
) -> None:
    # Theory 2.8: Sigma Sigma^-1 (mu+ - mu-).
    covariance, difference = _covariance(normal), normal(7, seed=4)
    whitening = Whitening.from_covariance(torch.zeros(7).double(), covariance, 0.5)
    weight = torch.linalg.solve(covariance, difference)
    metric_times_weight = whitening.power(weight, 2)
    cosine = torch.cosine_similarity(metric_times_weight, difference, dim=0)
    assert float(cosine) == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize(
    ("directions", "stretch"),
    [
        (EYE[:, :2], torch.ones(3)),
        (EYE[:5, :2], torch.ones(2)),
        (EYE[:, :2], torch.tensor([1.0, 0.0])),
        (EYE[:, :2], torch.tensor([1.0, -2.0])),
    ],
)
def test_shapes_that_do_not_fit_or_stretches_that_are_not_positive_raise(
    directions: Tensor, stretch: Tensor
) -> None:
    with pytest.raises(ValueError, match="positive stretch"):
        Whitening(torch.zeros(7, dtype=torch.float64), directions, stretch.double())
