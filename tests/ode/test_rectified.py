"""Does a rectified field integrate its flow, project, and keep what it found?"""

import pytest
import torch
from torch import Tensor

from odesteer import Steering
from odesteer.ode import Dense, Hourglass, RectifiedField, trajectory
from odesteer.ode.solvers import SOLVERS

D, K = 6, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


ROWS, CENTRE, MEAN = normal(9, D, seed=1), normal(D, seed=2), normal(D, seed=3)
BASIS = torch.linalg.qr(normal(D, K, seed=4)).Q.contiguous()


def drawn(seed: int = 0, d: int = D) -> Hourglass:
    return Hourglass.draw(d, 3, torch.Generator().manual_seed(seed)).double()


def linear(matrix: Tensor) -> Hourglass:
    """u(x, s) = matrix x: the last layer sees x itself, behind as many hidden units."""
    flow = drawn(d=len(matrix))
    last = flow.up[-1]
    weight = torch.zeros_like(last.weight)
    weight[:, D : 2 * D] = matrix
    return Hourglass(list(flow.down), [*list(flow.up)[:-1], Dense(weight, last.bias)])


def some_flow() -> Hourglass:
    flow = drawn()
    last = flow.up[-1]
    return Hourglass(
        list(flow.down),
        [*list(flow.up)[:-1], Dense(0.3 * normal(*last.weight.shape, seed=5), last.bias)],
    )


def field(flow: Hourglass, points: int = 16, prompt_conditioned: bool = False) -> RectifiedField:
    return RectifiedField(flow, CENTRE, 2.0, MEAN, 0.5, BASIS, points, prompt_conditioned)


def test_a_fresh_network_says_zero_and_the_prompt_comes_out_as_it_went_in() -> None:
    flow = drawn()
    assert torch.equal(flow(ROWS, ROWS.new_zeros(9, 1)), torch.zeros_like(ROWS))
    expected = (MEAN + 0.5 * (ROWS - CENTRE) / 2.0) @ BASIS @ BASIS.mT
    torch.testing.assert_close(field(flow)(ROWS), expected)


def test_a_linear_flow_is_solved_to_second_order() -> None:
    matrix = 0.8 * normal(D, D, seed=6)
    exact = ((ROWS - CENTRE) / 2.0) @ torch.linalg.matrix_exp(matrix).mT
    exact = (MEAN + 0.5 * exact) @ BASIS @ BASIS.mT
    errors = [(field(linear(matrix), n + 1)(ROWS) - exact).norm() for n in (16, 32, 64, 128)]
    slopes = torch.stack(errors).log2().diff()
    torch.testing.assert_close(slopes, torch.full_like(slopes, -2.0), atol=0.1, rtol=0)


def test_the_correction_is_in_the_span_of_the_basis() -> None:
    v = field(some_flow())(ROWS)
    torch.testing.assert_close(v @ BASIS @ BASIS.mT, v)


def test_the_network_hears_the_time_and_reads_each_row_by_itself() -> None:
    flow = some_flow()
    early, late = (flow(ROWS, torch.full((9, 1), s, dtype=torch.float64)) for s in (0.1, 0.9))
    assert bool(((early - late).norm(dim=-1) > 1e-3).all())
    alone = torch.stack([flow(row[None], torch.full((1, 1), 0.1).double())[0] for row in ROWS])
    torch.testing.assert_close(alone, early)


@pytest.mark.parametrize("d", [3, 12, 20])
def test_widths_that_do_not_halve_evenly_are_fine(d: int) -> None:
    flow = Hourglass.draw(d, 4, torch.Generator().manual_seed(0))
    assert flow.width == d
    assert flow(torch.ones(5, d), torch.zeros(5, 1)).shape == (5, d)


def test_a_row_keeps_the_correction_it_starts_with() -> None:
    f = field(some_flow())
    path = trajectory(f, ROWS, 1.5, solver=SOLVERS["euler"], steps=3)
    torch.testing.assert_close(path.diff(dim=0), (0.5 * f(ROWS)).expand(3, *ROWS.shape))


def test_a_prompts_correction_is_added_to_whatever_follows() -> None:
    steering = Steering(field(some_flow(), prompt_conditioned=True), 1.5).only
    following = normal(9, D, seed=8)
    velocity = steering.velocity(ROWS)
    torch.testing.assert_close(steering(following, velocity), following + 1.5 * velocity)


def test_the_reversed_field_takes_the_correction_away() -> None:
    f = field(some_flow(), prompt_conditioned=True)
    torch.testing.assert_close(f.reversed()(ROWS), -f(ROWS))
    assert f.reversed().prompt_conditioned
    steering = Steering(f, 0.7)
    torch.testing.assert_close((~steering)(ROWS), steering.with_strength(-0.7)(ROWS))


@pytest.mark.parametrize("prompt_conditioned", [True, False])
def test_a_saved_field_is_the_same_field(prompt_conditioned: bool, tmp_path) -> None:
    steering = Steering(field(some_flow(), prompt_conditioned=prompt_conditioned).float())
    saved = steering.save_pretrained(tmp_path / "it")
    # The name in files of 0.1.0, which must stay readable.
    assert '"reads_prompt"' in (saved / "steering_config.json").read_text()
    loaded = Steering.from_pretrained(saved)
    assert torch.equal(loaded(ROWS), steering(ROWS))
    assert loaded.field.prompt_conditioned == prompt_conditioned


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"centre \[6\].*got \[5\], \[6\], \[6, 4\] and 16"):
        RectifiedField(drawn(), CENTRE[:5], 1.0, MEAN, 1.0, BASIS, 16, False)
    with pytest.raises(ValueError, match=r"points >= 2.* and 1"):
        field(drawn(), points=1)
