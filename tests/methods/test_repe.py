"""RepE: is the direction the one in which pairs differ?"""

import torch
from tests.helpers.models import two_gaussians

from odesteer import CAA, RepE

D = 16


def pairs(n=80, seed=0, shift=1.5):
    """Pairs that share much (their topic) and differ by a shift along e0 and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    topic = 10 * torch.randn(n, D, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(2, n, D, generator=generator, dtype=torch.float64)
    truth = torch.zeros(D, dtype=torch.float64)
    truth[0] = shift
    return topic + truth / 2 + noise[0], topic - truth / 2 + noise[1]


def direction(positive, negative):
    return RepE().fit_field(positive, negative).direction


def test_the_direction_that_pairs_have_in_common_is_found_and_points_to_the_positives():
    positive, negative = pairs()
    assert float(direction(positive, negative)[0]) > 0.99
    assert float(direction(negative, positive)[0]) < -0.99


def test_rows_of_other_pairs_hide_it():
    positive, negative = pairs()
    shuffled = negative[torch.randperm(80, generator=torch.Generator().manual_seed(1))]
    assert abs(float(direction(positive, shuffled)[0])) < 0.7


def test_it_is_the_leading_eigenvector_of_the_second_moment_of_the_differences():
    positive, negative = two_gaussians(50, 50, D)
    difference = (positive - negative).double()
    u = direction(positive.double(), negative.double())
    _, vectors = torch.linalg.eigh(difference.mT @ difference)
    torch.testing.assert_close(u.norm(), torch.ones(()).double())
    assert float((vectors[:, -1] @ u).abs()) > 1 - 1e-9


def test_the_order_of_the_pairs_does_not_matter():
    positive, negative = pairs()
    order = torch.randperm(80, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        direction(positive, negative), direction(positive[order], negative[order])
    )


def test_without_noise_it_is_caas_direction():
    positive, _ = pairs()
    shift = torch.linspace(-1, 2, D).double()
    u = direction(positive, positive - shift)
    caa = CAA().fit_field(positive, positive - shift).direction
    torch.testing.assert_close(u, caa / caa.norm())
