"""The mixture barrier is the log ratio of two kernel density estimates."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from odesteer.ode import GradientField, MixtureBarrier, Whitening
from odesteer.steering.serialization import describe, rebuild

Make = Callable[..., Tensor]
WIDTH = 1.5


def _density(y: Tensor, centres: Tensor, weights: Tensor, bandwidth: float) -> Tensor:
    """log sum_i w_i N(y; centre_i, bandwidth^2 I), through torch's own Gaussians."""
    covariance = bandwidth**2 * torch.eye(y.shape[-1]).to(y)
    kernels = MultivariateNormal(centres, covariance).log_prob(y.unsqueeze(-2))
    return torch.logsumexp(kernels + (weights / weights.sum()).log(), dim=-1)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_value_is_the_log_ratio_of_two_kernel_densities(
    weighted: bool, make_whitening, normal: Make, activations: Tensor
) -> None:
    whitening, positive, negative = make_whitening(True), normal(9, 7, seed=1), normal(6, 7, seed=2)
    weights = torch.arange(1.0, 10.0).double() if weighted else torch.ones(9).double()
    barrier = MixtureBarrier(whitening, positive, negative, WIDTH, weights if weighted else None)
    y = whitening(activations)
    even = torch.ones(6).double()
    expected = _density(y, positive, weights, WIDTH) - _density(y, negative, even, WIDTH)
    torch.testing.assert_close(barrier.value(activations), expected, rtol=1e-10, atol=1e-10)


def test_weights_count_only_in_proportion(make_whitening, normal: Make) -> None:
    centres, a = (normal(3, 7, seed=1), normal(2, 7, seed=2)), normal(5, 7)
    weights = torch.tensor([1.0, 2.0, 5.0]).double()
    one = MixtureBarrier(make_whitening(True), *centres, WIDTH, weights)
    same = MixtureBarrier(make_whitening(True), *centres, WIDTH, 7 * weights)
    torch.testing.assert_close(one.value(a), same.value(a))
    repeated = centres[0][[0, 1, 1, 2, 2, 2, 2, 2]]
    other = MixtureBarrier(make_whitening(True), repeated, centres[1], WIDTH)
    torch.testing.assert_close(one.value(a), other.value(a))


def test_one_centre_a_class_is_the_linear_ratio_of_two_spheres(normal: Make) -> None:
    above, below, a = normal(1, 7, seed=1), normal(1, 7, seed=2), normal(5, 7)
    barrier = MixtureBarrier(Whitening(torch.zeros(7).double()), above, below, WIDTH)
    torch.testing.assert_close(barrier.gradient(a), ((above - below) / WIDTH**2).expand_as(a))
    assert math.isclose(float(barrier.value((above + below) / 2)), 0.0, abs_tol=1e-12)


def test_a_wide_kernel_is_linear_along_the_difference_of_the_means(normal: Make) -> None:
    positive, negative, a = normal(9, 7, seed=1), normal(6, 7, seed=2), normal(5, 7)
    barrier = MixtureBarrier(Whitening(torch.zeros(7).double()), positive, negative, 1e3)
    difference = positive.mean(dim=0) - negative.mean(dim=0)
    cosine = torch.cosine_similarity(barrier.gradient(a), difference, dim=-1)
    assert float(cosine.min()) > 1 - 1e-6


@pytest.mark.parametrize("far", [1e3, 1e6, 1e12])
def test_far_from_all_centres_h_is_finite_and_grows_linearly_at_most(
    far: float, make_mixture, normal: Make
) -> None:
    barrier, direction = make_mixture().float(), normal(20, 7).float()
    value, gradient = barrier.value(far * direction), barrier.gradient(far * direction)
    assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(gradient).all())
    # Two mean shifts differ by no more than two centres can.
    gap = torch.cdist(barrier.positive, barrier.negative).max() / barrier.bandwidth**2
    in_y = barrier.whitening.power(gradient, 1)
    assert float(in_y.norm(dim=-1).max()) <= float(gap) * (1 + 1e-5)
    assert float(gradient.norm(dim=-1).min()) > 0


def test_no_tensor_of_rows_by_centres_by_dimensions_is_made(normal: Make) -> None:
    # 200 rows, 500 centres, 400 dimensions: such a tensor would hold 40 million numbers.
    positive, negative = normal(500, 400, seed=1).float(), normal(500, 400, seed=2).float()
    barrier = MixtureBarrier(Whitening(torch.zeros(400)), positive, negative, 20.0)
    a = normal(200, 400, seed=3).float()
    largest = 0

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max(largest, out.numel() if isinstance(out, Tensor) else 0)
            return out

    with Largest():
        barrier.value(a), barrier.gradient(a)
    assert largest == 500 * 400


def test_rings_are_separated_where_every_line_fails() -> None:
    angle = torch.linspace(0, 2 * math.pi, 61, dtype=torch.float64)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], dim=-1)
    barrier = MixtureBarrier(Whitening(torch.zeros(2).double()), circle, 3 * circle, 0.5)
    between = (angle + 0.05).unsqueeze(-1)
    fresh = torch.cat([between.cos(), between.sin()], dim=-1)
    assert bool((barrier.value(1.1 * fresh) > 0).all())
    assert bool((barrier.value(2.9 * fresh) < 0).all())
    # From outside the way in is inwards.
    inwards = torch.cosine_similarity(barrier.gradient(2.5 * fresh), -fresh, dim=-1)
    assert float(inwards.min()) > 0.99


def test_casting_and_saving_derive_the_same_numbers(make_mixture, normal: Make) -> None:
    field = GradientField(make_mixture().float())
    again, a = rebuild(*describe(field)), normal(5, 7).float()
    assert isinstance(again, GradientField)
    numbers, expected = dict(again.named_buffers()), dict(field.named_buffers())
    assert numbers.keys() == expected.keys()
    assert all(torch.equal(numbers[name], expected[name]) for name in expected)
    # Equal numbers at other addresses: on some processors MKL rounds products by alignment.
    torch.testing.assert_close(again(a), field(a), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(again.value(a), field.value(a), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("positive", "bandwidth", "weights", "words"),
    [
        ((3, 6), 1.0, None, r"\[n, 7\].*\[3, 6\]"),
        ((0, 7), 1.0, None, r"\[0, 7\]"),
        ((3, 7), 0.0, None, "0.0"),
        ((3, 7), 1.0, [1.0, 2.0], "3 rows"),
        ((3, 7), 1.0, [1.0, 2.0, 0.0], "positive weight"),
    ],
)
def test_what_does_not_fit_is_named(positive, bandwidth, weights, words) -> None:
    weights = None if weights is None else torch.tensor(weights)
    with pytest.raises(ValueError, match=words):
        MixtureBarrier(
            Whitening(torch.zeros(7)), torch.ones(positive), torch.ones(2, 7), bandwidth, weights
        )
