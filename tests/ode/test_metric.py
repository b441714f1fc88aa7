"""A barrier in another metric is the same barrier, climbed another way."""

import torch

from odesteer.ode import GradientField, LinearBarrier, MetricBarrier, Whitening


def _whitening() -> Whitening:
    directions = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(0))).Q
    return Whitening(torch.zeros(6), directions, torch.tensor([3.0, 0.2]))


def test_the_ascent_is_the_gradient_in_the_metric_and_the_rest_stays() -> None:
    weight = torch.randn(6, generator=torch.Generator().manual_seed(1))
    plain, whitening = LinearBarrier(weight, 0.3), _whitening()
    barrier = MetricBarrier(plain, whitening)
    a = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    root = whitening.power(torch.eye(6), 1)
    torch.testing.assert_close(barrier.ascent(a), plain.gradient(a) @ root @ root)
    assert torch.equal(barrier.value(a), plain.value(a))
    assert torch.equal(barrier.gradient(a), plain.gradient(a))
    assert barrier.width == 6


def test_the_field_in_the_metric_raises_the_barrier_and_its_negation_lowers_it() -> None:
    barrier = MetricBarrier(LinearBarrier(torch.arange(6.0)), _whitening())
    a = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    field = GradientField(barrier)
    assert bool(((barrier.gradient(a) * field(a)).sum(dim=-1) > 0).all())
    torch.testing.assert_close(field.reversed()(a), -field(a))
