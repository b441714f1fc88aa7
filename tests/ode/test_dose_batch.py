"""Does every row of a batch go as far as it would go alone with its own dose?"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from odesteer.ode import (
    Angle,
    ConstantField,
    GradientField,
    LinearBarrier,
    PathLength,
    PerRow,
    QuadraticBarrier,
    Target,
    Time,
    VectorField,
)
from odesteer.steering import Steering

Make = Callable[..., Tensor]
DOSES = [Time(0.7), -0.4, Angle(0.2), PathLength(0.5), Target(0.9, Angle(0.4)), 0.0, Target(0.7, 3)]


@pytest.fixture(params=["quadratic", "constant"])
def steering(
    request: pytest.FixtureRequest, make_quadratic: Callable[..., QuadraticBarrier], normal: Make
) -> Steering:
    if request.param == "quadratic":
        return Steering(GradientField(make_quadratic(True)), solver="great-circle", steps=4)
    direction = 3.0 * normal(7)
    return Steering(ConstantField(direction, LinearBarrier(direction, -1.0)))


@pytest.mark.parametrize("shape", [(7, 7), (7, 3, 7)], ids=["rows", "rows of tokens"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_of_doses_is_each_row_with_its_own(
    dtype: torch.dtype, shape: tuple[int, ...], steering: Steering, normal: Make
) -> None:
    a = normal(*shape, seed=3).to(dtype)
    together = steering.with_strength(PerRow(DOSES))(a)
    for i, dose in enumerate(DOSES):
        alone = steering.with_strength(dose)(a[i])
        torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(together[5], a[5])


def test_beams_have_the_dose_of_their_prompt(steering: Steering, normal: Make) -> None:
    a = normal(6, 7)
    doses = [0.3, Angle(0.1), Target(0.8, 2.0)]
    beams = steering.with_strength(PerRow(doses))(a)
    spread = [dose for dose in doses for _ in range(2)]
    assert torch.equal(beams, steering.with_strength(PerRow(spread))(a))


def test_a_batch_of_another_size_is_refused_with_both_numbers(normal: Make) -> None:
    steering = Steering(ConstantField(normal(7)), PerRow([1.0, 2.0]))
    with pytest.raises(ValueError, match="2 doses; the batch has 3 rows"):
        steering(normal(3, 7))
    with pytest.raises(ValueError, match="needs a batch"):
        steering(normal(7))


@pytest.mark.parametrize("doses", [[], [PerRow([1.0])]], ids=["none", "nested"])
def test_what_is_no_dose_of_a_row_is_refused(doses: list[PerRow]) -> None:
    with pytest.raises(ValueError, match="at least one dose"):
        PerRow(doses)


class _OneWay(VectorField):
    """Moves where the first coordinate is negative."""

    gated = True

    def forward(self, a: Tensor) -> Tensor:
        return torch.ones_like(a) * (a[..., :1] < 0)

    def reversed(self) -> "_OneWay":
        return self


def test_a_one_way_field_takes_rows_of_one_sign(normal: Make) -> None:
    a = normal(2, 7)
    Steering(_OneWay(), PerRow([-1.0, -2.0]))(a)
    with pytest.raises(ValueError, match="attach the steering twice"):
        Steering(_OneWay(), PerRow([1.0, -2.0]))(a)


def test_doses_scale_together_and_are_zero_together() -> None:
    doses = PerRow([1.0, Angle(0.2), Target(0.9, 4.0)]).scaled(0.5)
    assert doses.doses == (Time(0.5), Angle(0.1), Target(0.9, Time(2.0)))
    assert PerRow([0.0, Angle(0.0)]).is_zero and not doses.is_zero


def test_a_batch_s_doses_are_not_saved(tmp_path, normal: Make) -> None:
    steering = Steering(ConstantField(normal(7).float()), PerRow([1.0, 2.0]), layer=0)
    with pytest.raises(ValueError, match="cannot be saved"):
        steering.save_pretrained(tmp_path / "s")
