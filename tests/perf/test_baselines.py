"""The baselines of the speed tables compute what they stand for."""

import pytest
import torch
from perf.baselines import fft_euler

from odesteer import PaperODESteer
from odesteer.ode import SOLVERS, GradientField, SketchBarrier, solve


@pytest.mark.parametrize("d", [9, 40])
def test_the_lean_paper_configuration_is_the_euler_flow_of_its_sketch(d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    index, sign = SketchBarrier.draw(d, 2, 64, generator)
    weight = torch.randn(64, generator=generator, dtype=torch.float64)
    field = GradientField(SketchBarrier(index, sign, weight, 0.2, 0.1, 1.3))
    a = torch.randn(37, d, generator=generator, dtype=torch.float64)
    expected = solve(field, a, 1.5, solver=SOLVERS["euler"], steps=7)
    moved = fft_euler(index, sign, weight, 0.1, 1.3, T=1.5, steps=7)(a)
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-11)


def test_the_lean_paper_configuration_is_the_paper_method() -> None:
    positive, negative = torch.randn(2, 30, 12, generator=torch.Generator().manual_seed(0))
    steering = PaperODESteer(components=100).fit(positive + 1.0, negative)
    sketch = steering.field.barrier
    assert isinstance(sketch, SketchBarrier)
    lean = fft_euler(
        sketch.index, sketch.sign, sketch.weight, sketch.gamma, sketch.c0, 5.0, steering.steps
    )
    torch.testing.assert_close(
        lean(negative), steering.with_strength(5.0)(negative), rtol=0, atol=2e-4
    )
