"""Conjunction, disjunction and negation of barriers obey logic."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from odesteer.ode import AndBarrier, Barrier, GradientField, OrBarrier, QuadraticBarrier

Make = Callable[..., Tensor]


@pytest.fixture
def parts(make_linear, make_quadratic, make_fourier) -> list[Barrier]:
    return [make_linear(), make_quadratic(whitened=True), make_fourier(), make_linear(seed=50)]


@pytest.fixture
def a(normal: Make) -> Tensor:
    return normal(40, 7, seed=1)


def _values(parts: list[Barrier], a: Tensor) -> Tensor:
    return torch.stack([part.value(a) for part in parts])


def test_hard_and_is_the_minimum_exactly(parts: list[Barrier], a: Tensor) -> None:
    assert torch.equal(AndBarrier(parts, soft=False).value(a), _values(parts, a).amin(dim=0))


def test_hard_or_is_the_maximum_exactly(parts: list[Barrier], a: Tensor) -> None:
    assert torch.equal(OrBarrier(parts, soft=False).value(a), _values(parts, a).amax(dim=0))


def test_soft_and_is_its_formula(parts: list[Barrier], a: Tensor) -> None:
    formula = -torch.log(torch.exp(-_values(parts, a)).sum(dim=0))
    torch.testing.assert_close(AndBarrier(parts).value(a), formula)


def test_soft_or_is_its_formula(parts: list[Barrier], a: Tensor) -> None:
    formula = torch.log(torch.exp(_values(parts, a)).sum(dim=0))
    torch.testing.assert_close(OrBarrier(parts).value(a), formula)


def test_soft_and_is_below_the_minimum_by_at_most_log_n(parts: list[Barrier], a: Tensor) -> None:
    gap = _values(parts, a).amin(dim=0) - AndBarrier(parts).value(a)
    assert bool((gap >= 0).all()) and bool((gap <= math.log(len(parts)) + 1e-12).all())


def test_soft_or_is_above_the_maximum_by_at_most_log_n(parts: list[Barrier], a: Tensor) -> None:
    gap = OrBarrier(parts).value(a) - _values(parts, a).amax(dim=0)
    assert bool((gap >= 0).all()) and bool((gap <= math.log(len(parts)) + 1e-12).all())


def test_equal_parts_are_exactly_log_n_apart(make_linear, a: Tensor) -> None:
    part = make_linear()
    torch.testing.assert_close(AndBarrier([part, part, part]).value(a), part.value(a) - math.log(3))
    torch.testing.assert_close(OrBarrier([part, part, part]).value(a), part.value(a) + math.log(3))


@pytest.mark.parametrize("soft", [True, False])
def test_not_of_and_is_or_of_nots(soft: bool, parts: list[Barrier], a: Tensor) -> None:
    left = AndBarrier(parts, soft).affine(-1.0)
    right = OrBarrier([part.affine(-1.0) for part in parts], soft)
    torch.testing.assert_close(left.value(a), right.value(a), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(left.gradient(a), right.gradient(a), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(left.ascent(a), right.ascent(a), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("junction", [AndBarrier, OrBarrier])
def test_one_part_is_itself(junction, soft: bool, make_fourier, a: Tensor) -> None:
    part = make_fourier()
    torch.testing.assert_close(junction([part], soft).value(a), part.value(a))
    torch.testing.assert_close(junction([part], soft).gradient(a), part.gradient(a))


@pytest.mark.parametrize("junction", [AndBarrier, OrBarrier])
def test_hard_gradient_is_the_active_parts_own(junction, parts: list[Barrier], a: Tensor) -> None:
    barrier = junction(parts, soft=False)
    values = _values(parts, a)
    active = values.argmin(dim=0) if junction is AndBarrier else values.argmax(dim=0)
    assert len(active.unique()) > 1
    expected = torch.stack([parts[int(i)].gradient(a[row]) for row, i in enumerate(active)])
    torch.testing.assert_close(barrier.gradient(a), expected)


@pytest.mark.parametrize("soft", [True, False])
def test_large_values_do_not_overflow(soft: bool, make_linear, a: Tensor) -> None:
    parts = [make_linear().affine(1e6), make_linear(seed=50).affine(1e6)]
    for barrier in (AndBarrier(parts, soft), OrBarrier(parts, soft)):
        assert bool(torch.isfinite(barrier.value(a)).all())
        assert bool(torch.isfinite(barrier.gradient(a)).all())


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("junction", [AndBarrier, OrBarrier])
def test_a_point_critical_for_every_part_stays(
    junction, soft: bool, make_quadratic: Callable[..., QuadraticBarrier]
) -> None:
    first = make_quadratic(whitened=True)
    second = QuadraticBarrier(
        first.whitening, first.basis, -first.curvature, 2 * first.slope, first.constant
    )
    barrier = junction([first, second], soft)
    centre = first.whitening.centre
    assert bool(torch.isfinite(barrier.value(centre)))
    assert torch.equal(barrier.gradient(centre), torch.zeros_like(centre))
    assert torch.equal(GradientField(barrier)(centre), torch.zeros_like(centre))


@pytest.mark.parametrize("junction", [AndBarrier, OrBarrier])
def test_no_parts_is_an_error(junction) -> None:
    with pytest.raises(ValueError, match="at least one"):
        junction([])
