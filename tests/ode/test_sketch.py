"""The count sketch is the polynomial kernel, and degree 2 a quadratic form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from odesteer.ode import GradientField, SketchBarrier

Make = Callable[..., Tensor]
MakeSketch = Callable[..., SketchBarrier]


def _unit(a: Tensor) -> Tensor:
    return a / a.norm(dim=-1, keepdim=True)


def _collision_free(d: int, degree: int, gamma: float, c0: float) -> SketchBarrier:
    """Every product of coordinates in a bucket of its own: no hash noise is left."""
    base = d + 1
    index = torch.stack([base**factor * torch.arange(base) for factor in range(degree)])
    sign = 1 - 2 * ((index // 2) % 2)
    return SketchBarrier(index, sign, torch.zeros(base**degree).double(), 0.0, gamma, c0)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_without_collisions_features_multiply_to_the_kernel(degree: int, normal: Make) -> None:
    gamma, c0 = 0.7, 1.3
    a = normal(6, 4)
    phi = _collision_free(4, degree, gamma, c0).features(a)
    kernel = (gamma * _unit(a) @ _unit(a).mT + c0) ** degree
    torch.testing.assert_close(phi @ phi.mT, kernel)


def test_with_collisions_features_multiply_to_the_kernel_on_average(normal: Make) -> None:
    gamma, c0, draws = 0.7, 1.3, 400
    a = normal(4, 6)
    generator = torch.Generator().manual_seed(1)
    empty = torch.zeros(64).double()
    products = []
    for _ in range(draws):
        index, sign = SketchBarrier.draw(6, 2, 64, generator)
        phi = SketchBarrier(index, sign, empty, 0.0, gamma, c0).features(a)
        products.append(phi @ phi.mT)
    sample = torch.stack(products)
    error = sample.mean(dim=0) - (gamma * _unit(a) @ _unit(a).mT + c0) ** 2
    assert bool((error.abs() < 5 * sample.std(dim=0) / draws**0.5).all())


def test_drawn_hashes_are_in_range_and_repeat_with_the_seed() -> None:
    index, sign = SketchBarrier.draw(9, 2, 16, torch.Generator().manual_seed(3))
    assert index.shape == sign.shape == (2, 10)
    assert index.dtype == torch.int64
    assert 0 <= int(index.min()) and int(index.max()) < 16
    assert set(sign.unique().tolist()) <= {-1, 1}
    again = SketchBarrier.draw(9, 2, 16, torch.Generator().manual_seed(3))
    assert torch.equal(again[0], index) and torch.equal(again[1], sign)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_only_the_direction_of_an_activation_counts(
    degree: int, make_sketch: MakeSketch, normal: Make
) -> None:
    barrier, a = make_sketch(degree), normal(5, 7)
    torch.testing.assert_close(barrier.value(37.0 * a), barrier.value(a))
    torch.testing.assert_close(barrier.gradient(37.0 * a), barrier.gradient(a) / 37.0)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_gradient_is_tangent_to_the_sphere_about_zero(
    degree: int, make_sketch: MakeSketch, normal: Make
) -> None:
    a = normal(5, 7)
    inner = (make_sketch(degree).gradient(a) * a).sum(dim=-1)
    torch.testing.assert_close(inner, torch.zeros_like(inner), rtol=0, atol=1e-13)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_zero_is_a_critical_point_and_stays(degree: int, make_sketch: MakeSketch) -> None:
    barrier, zero = make_sketch(degree), torch.zeros(2, 7, dtype=torch.float64)
    assert bool(torch.isfinite(barrier.value(zero)).all())
    assert torch.equal(barrier.gradient(zero), zero)
    assert torch.equal(GradientField(barrier)(zero), zero)


@pytest.mark.parametrize("components", [64, 63])
def test_the_quadratic_form_is_the_sketch_of_degree_two(
    components: int, normal: Make, activations: Tensor
) -> None:
    # An odd number of buckets takes the other branch of the inverse real FFT.
    index, sign = SketchBarrier.draw(7, 2, components, torch.Generator().manual_seed(2))
    sketch = SketchBarrier(index, sign, normal(components), 0.2, 0.7, 1.3)
    form = sketch.quadratic()
    torch.testing.assert_close(form.value(activations), sketch.value(activations))
    torch.testing.assert_close(form.gradient(activations), sketch.gradient(activations))
    torch.testing.assert_close(GradientField(form)(activations), GradientField(sketch)(activations))


@pytest.mark.parametrize(("gamma", "c0"), [(0.1, 0.0), (2.0, 0.5)])
def test_the_quadratic_form_holds_for_every_gamma_and_c0(
    gamma: float, c0: float, normal: Make
) -> None:
    index, sign = SketchBarrier.draw(7, 2, 64, torch.Generator().manual_seed(2))
    sketch = SketchBarrier(index, sign, normal(64), -0.4, gamma, c0)
    a = normal(5, 7, seed=1)
    torch.testing.assert_close(sketch.quadratic().value(a), sketch.value(a))
    torch.testing.assert_close(sketch.quadratic().gradient(a), sketch.gradient(a))


@pytest.mark.parametrize("degree", [1, 3])
def test_other_degrees_are_no_quadratic_form(degree: int, make_sketch: MakeSketch) -> None:
    with pytest.raises(ValueError, match=f"degree\\s+{degree}"):
        make_sketch(degree).quadratic()


def test_index_and_sign_of_different_shapes_raise() -> None:
    index, sign = SketchBarrier.draw(7, 2, 64, torch.Generator())
    with pytest.raises(ValueError, match="one shape"):
        SketchBarrier(index, sign[:1], torch.zeros(64), 0.0, 1.0, 1.0)
