"""A random direction knows nothing of the data."""

import torch
from tests.helpers.models import two_gaussians

from odesteer import Angle, RandomDirection

POSITIVE, NEGATIVE = two_gaussians(50, 30, 8, seed=3)


def test_it_is_a_unit_vector_decided_by_the_seed_alone():
    one = RandomDirection(seed=1).fit_field(POSITIVE, NEGATIVE)(POSITIVE[:1])
    same = RandomDirection(seed=1).fit_field(-NEGATIVE, 3 * POSITIVE)(POSITIVE[:1])
    other = RandomDirection(seed=2).fit_field(POSITIVE, NEGATIVE)(POSITIVE[:1])
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    torch.testing.assert_close(one.norm(), torch.ones_like(one.norm()))


def test_directions_are_spread_evenly():
    draws = [
        RandomDirection(seed=s).fit_field(POSITIVE, NEGATIVE)(POSITIVE[:1]) for s in range(400)
    ]
    mean = torch.cat(draws).mean(dim=0)
    # Each coordinate has mean 0 and variance 1/8; 4 standard errors.
    assert float(mean.abs().max()) < 4 / (8 * 400) ** 0.5


def test_a_dose_is_the_distance_whatever_the_direction():
    steering = RandomDirection().fit(POSITIVE, NEGATIVE, layer=0, strength=Angle(0.3))
    step = (steering(POSITIVE) - POSITIVE).norm(dim=-1)
    torch.testing.assert_close(step, 0.3 * POSITIVE.norm(dim=-1))
