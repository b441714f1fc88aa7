"""Every barrier's gradient is the gradient of its value, row by row."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from odesteer.ode import AffineBarrier, Barrier, LinearBarrier, ModuleBarrier

Make = Callable[..., Tensor]


def _autograd(barrier: Barrier, a: Tensor) -> Tensor:
    point = a.clone().requires_grad_(True)
    return torch.autograd.grad(barrier.value(point).sum(), point)[0]


def test_value_is_one_number_a_row_and_gradient_one_vector(
    barrier: Barrier, activations: Tensor
) -> None:
    assert barrier.value(activations).shape == activations.shape[:-1]
    assert barrier.gradient(activations).shape == activations.shape
    assert barrier.ascent(activations).shape == activations.shape


def test_gradient_equals_autograd_of_value(barrier: Barrier, activations: Tensor) -> None:
    torch.testing.assert_close(
        barrier.gradient(activations), _autograd(barrier, activations), rtol=1e-10, atol=1e-12
    )


def test_rows_do_not_influence_one_another(barrier: Barrier, normal: Make) -> None:
    a = normal(5, 7, seed=1)
    other = a.clone()
    other[[0, 1, 3, 4]] = 10 * normal(4, 7, seed=2)
    for read in (barrier.value, barrier.gradient, barrier.ascent):
        torch.testing.assert_close(read(a)[2], read(other)[2], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(read(a)[2], read(a[2]), rtol=1e-12, atol=1e-12)


def test_ascent_never_points_down(barrier: Barrier, normal: Make) -> None:
    a = normal(50, 7, seed=3)
    inner = (barrier.gradient(a) * barrier.ascent(a)).sum(dim=-1)
    assert bool((inner > 0).all())


def test_everything_is_finite_at_zero_and_at_the_centre(barrier: Barrier, normal: Make) -> None:
    # seed 1 is the centre of every quadratic barrier in conftest.
    for a in (torch.zeros(7, dtype=torch.float64), normal(7, seed=1)):
        for read in (barrier.value, barrier.gradient, barrier.ascent):
            assert bool(torch.isfinite(read(a)).all())


def test_affine_scales_and_shifts_any_barrier(barrier: Barrier, normal: Make) -> None:
    a = normal(4, 7, seed=4)
    changed = barrier.affine(-2.0, 0.7)
    torch.testing.assert_close(changed.value(a), -2.0 * barrier.value(a) + 0.7)
    torch.testing.assert_close(changed.gradient(a), -2.0 * barrier.gradient(a))
    torch.testing.assert_close(changed.ascent(a), -2.0 * barrier.ascent(a))


def test_affine_of_affine_is_one_affine(barrier: Barrier, normal: Make) -> None:
    a = normal(4, 7, seed=5)
    twice = barrier.affine(3.0, 1.0).affine(-0.5, 2.0)
    torch.testing.assert_close(twice.value(a), -0.5 * (3.0 * barrier.value(a) + 1.0) + 2.0)
    assert not isinstance(getattr(twice, "barrier", None), AffineBarrier)


def test_negating_twice_is_the_barrier_itself(barrier: Barrier, normal: Make) -> None:
    a = normal(4, 7, seed=6)
    torch.testing.assert_close(
        barrier.affine(-1.0).affine(-1.0).value(a), barrier.value(a), rtol=0, atol=0
    )


def test_calling_a_barrier_is_its_value(barrier: Barrier, normal: Make) -> None:
    a = normal(3, 7, seed=7)
    assert torch.equal(barrier(a), barrier.value(a))


def test_width_is_the_length_of_a_row(barrier: Barrier) -> None:
    # A torch module does not tell its input width.
    assert barrier.width == (None if isinstance(barrier, ModuleBarrier) else 7)


def test_linear_barrier_is_a_dot_product_plus_bias(normal: Make) -> None:
    w, a = normal(5, seed=1), normal(3, 5, seed=2)
    barrier = LinearBarrier(w, 1.5)
    expected = torch.stack([(w * row).sum() + 1.5 for row in a])
    torch.testing.assert_close(barrier.value(a), expected)


class _Cubic(nn.Module):
    """sum_i a_i^3, whose gradient 3 a^2 is known."""

    def forward(self, a: Tensor) -> Tensor:
        return a.pow(3).sum(dim=-1, keepdim=True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_module_barrier_has_its_gradient_in_every_autograd_mode(
    mode: Callable[[], torch.autograd.grad_mode.no_grad], normal: Make
) -> None:
    barrier = ModuleBarrier(_Cubic())
    with mode():
        # Made inside, so that under inference_mode it is an inference tensor.
        a = normal(2, 3, 5, seed=8)
        gradient = barrier.gradient(a)
        value = barrier.value(a)
    torch.testing.assert_close(gradient, 3 * a.square())
    torch.testing.assert_close(value, a.pow(3).sum(dim=-1))
    assert not gradient.requires_grad


def test_module_barrier_leaves_no_gradient_in_the_module() -> None:
    network = nn.Linear(4, 1)
    ModuleBarrier(network).gradient(torch.ones(2, 4))
    assert network.weight.grad is None and network.bias.grad is None
