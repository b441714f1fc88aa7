"""Random Fourier features give the kernel and gradient they promise."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from odesteer.ode import FourierBarrier

Make = Callable[..., Tensor]


def test_features_are_scaled_cosines_and_the_value_their_weighted_sum(normal: Make) -> None:
    W, offset, w, a = normal(6, 3), normal(6, seed=1), normal(6, seed=2), normal(3, seed=3)
    barrier = FourierBarrier(W, offset, w, 0.25)
    phi = [math.sqrt(2 / 6) * math.cos(float(W[i] @ a + offset[i])) for i in range(6)]
    torch.testing.assert_close(barrier.features(a), torch.tensor(phi, dtype=torch.float64))
    expected = sum(float(w[i]) * phi[i] for i in range(6)) + 0.25
    assert math.isclose(float(barrier.value(a)), expected, rel_tol=1e-12)


def test_features_multiply_to_the_gaussian_kernel(normal: Make) -> None:
    count, bandwidth = 100_000, 1.7
    generator = torch.Generator().manual_seed(1)
    offset = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    barrier = FourierBarrier(normal(count, 4) / bandwidth, offset, torch.zeros_like(offset), 0.0)
    a = normal(8, 4, seed=2)
    kernel = torch.exp(-torch.cdist(a, a).square() / (2 * bandwidth**2))
    phi = barrier.features(a)
    # A mean of `count` bounded terms: five standard errors.
    assert float((phi @ phi.mT - kernel).abs().max()) < 5 / math.sqrt(count)


def test_value_is_bounded_by_the_weights(make_fourier, normal: Make) -> None:
    barrier = make_fourier()
    bound = math.sqrt(2 / len(barrier.coef)) * barrier.coef.abs().sum() + barrier.bias.abs()
    assert bool((barrier.value(1e3 * normal(100, 7)).abs() <= bound).all())


def test_gradient_vanishes_at_a_crest() -> None:
    one = torch.ones(1, dtype=torch.float64)
    barrier = FourierBarrier(one[None], 0 * one, one, 0.0)
    assert float(barrier.gradient(torch.zeros(1, dtype=torch.float64))) == 0.0


def test_fourier_flow_is_on_no_sphere(make_fourier, normal: Make) -> None:
    assert make_fourier().sphere(normal(7)) is None
