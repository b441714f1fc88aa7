"""The planes are what they say, and the desired regions are exact."""

import math

import pytest
import torch
from experiments.gallery import toy_data as planar
from experiments.gallery.toy_data import EXTENT, PLANES, Plane, lift
from torch.distributions import MultivariateNormal


@pytest.mark.parametrize("plane", PLANES.values(), ids=PLANES)
def test_a_seed_is_the_data(plane: Plane) -> None:
    positive, negative = plane.draw(200, 3)
    assert positive.dtype == negative.dtype == torch.float32
    assert positive.shape[1:] == (2,) and negative.shape == (200, 2)
    assert torch.equal(plane.draw(200, 3)[1], negative)
    assert not torch.equal(plane.draw(200, 4)[1], negative)
    inside = torch.cat([positive, negative]).abs() < torch.tensor(EXTENT)
    assert inside.all(dim=1).float().mean() > 0.98


@pytest.mark.parametrize("plane", PLANES.values(), ids=PLANES)
def test_the_desired_region_holds_the_positives(plane: Plane) -> None:
    positive, negative = plane.draw(1000, 0)
    assert plane.desired(positive).float().mean() > 0.9
    assert plane.desired(negative).float().mean() < 0.2


def test_positives_are_few_where_the_classes_are_imbalanced() -> None:
    positive, negative = planar.gaussians(400, 0)
    assert (len(positive), len(negative)) == (100, 400)


def test_the_gaussians_log_density_ratio_is_that_of_the_gaussians() -> None:
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    positive, negative = planar.gaussians(200_000, 1)
    densities = [
        MultivariateNormal(rows.mean(dim=0), rows.mT.cov()) for rows in (positive, negative)
    ]
    expected = densities[0].log_prob(points) - densities[1].log_prob(points)
    error = (planar.log_density_ratio(points) - expected).abs()
    assert (error / (1 + expected.abs())).max() < 0.05  # as sure as the sample moments are


def test_points_on_the_noise_free_moons_are_told_apart() -> None:
    angle = torch.linspace(0, math.pi, 50)
    unit = torch.stack([angle.cos(), angle.sin()], dim=-1)
    upper = torch.tensor([-0.6, -0.3]) + 1.2 * unit
    lower = torch.tensor([0.6, 0.3]) + 1.2 * unit * torch.tensor([1.0, -1.0])
    desired = PLANES["moons"].desired
    assert desired(upper).all() and not desired(lower).any()
    # The moons are each other's point reflection, and so are the two sides.
    assert not desired(-upper).any() and desired(-lower).all()


def test_the_distance_to_the_inner_ring_is_that_to_a_circle() -> None:
    rings = PLANES["rings"]
    points = 2.2 * torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    exact = (points.norm(dim=-1) - 1.05).clamp_min(0.0)
    assert torch.allclose(rings.distance(points), exact, atol=0.01)
    assert (rings.distance(points)[exact == 0] == 0).all()


def test_the_third_coordinate_says_nothing_of_the_class() -> None:
    points = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    lifted = lift(points, 5)
    assert torch.equal(lifted[:, :2], points)
    assert set(lifted[:, 2].tolist()) == {-1.0, 1.0}
    assert abs(float(lifted[:, 2].mean())) < 0.1
    # Rows of a pair share it, however many rows a class has.
    assert torch.equal(lift(points[:77], 5)[:, 2], lifted[:77, 2])
    assert (lift(points, None)[:, 2] == 1.0).all()
