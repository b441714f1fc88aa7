"""The Gaussian barrier is the exact log density ratio, linear when it should be."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from odesteer.ode import SOLVERS, GaussianBarrier, GradientField, LinearBarrier, solve
from odesteer.steering.serialization import describe, rebuild

Make = Callable[..., Tensor]


@pytest.fixture
def moments(normal: Make, make_covariance: Make) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return normal(7, seed=1), make_covariance(7, 2), normal(7, seed=3), make_covariance(7, 4)


def test_the_value_is_the_log_ratio_of_torchs_densities(moments, activations: Tensor) -> None:
    above, wide, below, narrow = moments
    barrier = GaussianBarrier.from_moments(*moments)
    expected = MultivariateNormal(above, wide).log_prob(activations)
    expected = expected - MultivariateNormal(below, narrow).log_prob(activations)
    torch.testing.assert_close(barrier.value(activations), expected, rtol=1e-10, atol=1e-10)


def test_one_covariance_gives_fishers_discriminant(moments, normal: Make) -> None:
    above, covariance, below, _ = moments
    barrier = GaussianBarrier.from_moments(above, covariance, below)
    assert isinstance(barrier, LinearBarrier)
    torch.testing.assert_close(barrier.weight, torch.linalg.solve(covariance, above - below))
    a = normal(20, 7, seed=9)
    expected = MultivariateNormal(above, covariance).log_prob(a)
    expected = expected - MultivariateNormal(below, covariance).log_prob(a)
    torch.testing.assert_close(barrier.value(a), expected, rtol=1e-10, atol=1e-10)


def test_equal_covariances_give_the_same_function_as_a_shared_one(moments, normal: Make) -> None:
    above, covariance, below, _ = moments
    quadratic = GaussianBarrier.from_moments(above, covariance, below, covariance.clone())
    linear = GaussianBarrier.from_moments(above, covariance, below)
    assert isinstance(quadratic, GaussianBarrier)
    a = normal(20, 7, seed=9)
    torch.testing.assert_close(quadratic.value(a), linear.value(a), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(quadratic.gradient(a), linear.gradient(a), rtol=1e-10, atol=1e-10)


def test_swapping_the_classes_negates(moments, normal: Make) -> None:
    above, wide, below, narrow = moments
    a = normal(20, 7, seed=9)
    one = GaussianBarrier.from_moments(above, wide, below, narrow)
    other = GaussianBarrier.from_moments(below, narrow, above, wide)
    torch.testing.assert_close(one.value(a), -other.value(a), rtol=1e-10, atol=1e-10)


def test_the_classes_means_lie_on_their_own_sides_where_they_share_a_shape(moments) -> None:
    above, covariance, below, _ = moments
    barrier = GaussianBarrier.from_moments(above, covariance, below)
    # Half the squared Mahalanobis distance between the means, and minus it.
    torch.testing.assert_close(barrier.value(above), -barrier.value(below))
    assert float(barrier.value(above)) > 0


def test_a_nearly_singular_covariance_loses_no_accuracy_in_float32(normal: Make) -> None:
    root = torch.linalg.qr(normal(7, 7)).Q
    spectrum = torch.logspace(-3, 1, 7, dtype=torch.float64)
    covariance = (root * spectrum) @ root.mT
    moments = (normal(7, seed=1), covariance, normal(7, seed=3), 1.1 * covariance)
    barrier = GaussianBarrier.from_moments(*moments)
    a = normal(20, 7, seed=9) @ (root * spectrum.sqrt()).mT
    exact = barrier.value(a)
    error = GaussianBarrier.from_moments(*moments).float().value(a.float()).double() - exact
    assert float(error.abs().max()) < 1e-5 * float(exact.abs().max())


def test_a_singular_covariance_is_refused_with_the_cure(moments) -> None:
    above, wide, below, _ = moments
    flat = torch.outer(above, above)
    with pytest.raises(ValueError, match=r"negative covariance \[7, 7\].*[Ss]hrink"):
        GaussianBarrier.from_moments(above, wide, below, flat)


def test_the_quadratic_flow_raises_h_and_comes_back_from_a_file(make_gaussian, normal: Make):
    field, a = GradientField(make_gaussian()), normal(20, 7, seed=9)
    again = rebuild(*describe(field))
    assert isinstance(again, GradientField) and isinstance(again.barrier, GaussianBarrier)
    moved = solve(field, a, 0.3, solver=SOLVERS["heun"], steps=10)
    assert torch.equal(solve(again, a, 0.3, solver=SOLVERS["heun"], steps=10), moved)
    assert bool((field.value(moved) > field.value(a)).all())
