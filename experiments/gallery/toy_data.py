"""Two-dimensional toy data with a wanted region.

Three planes, each with two classes and a region that is known exactly, so that steering can
be judged without a judge. `lift` gives points what real activations have and a plane lacks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Nearly all points have |x| and |y| below these.
EXTENT = (2.3, 1.9)
HEIGHT = 1.0  # about as wide as the other two coordinates


@dataclass(frozen=True)
class Plane:
    """Two classes in the plane.

    Attributes:
        title: in words.
        draw: (n, seed) -> positive [n, 2] or fewer, negative [n, 2], in float32; row i of
            both is a pair.
        desired: points [..., 2] -> bool [...], where the positive class belongs.
        region: what `desired` says, in words.
    """

    title: str
    draw: Callable[[int, int], tuple[Tensor, Tensor]]
    desired: Callable[[Tensor], Tensor]
    region: str

    def distance(self, points: Tensor) -> Tensor:
        """How far the desired region is: [n, 2] -> [n], 0 inside; right to about 0.005."""
        axis = torch.linspace(-3.0, 3.0, 601)
        grid = torch.cartesian_prod(axis, axis)
        inside = self.desired(grid).view(601, 601)
        core = inside.clone()
        for dim in (0, 1):
            core &= inside.roll(1, dim) & inside.roll(-1, dim)
        # The nearest point of the region is on its edge.
        edge = grid[(inside & ~core).flatten()]
        nearest = torch.cdist(points, edge).min(dim=1).values
        return torch.where(self.desired(points), torch.zeros_like(nearest), nearest)


def lift(points: Tensor, seed: int | None) -> Tensor:
    """(x, y) -> (x, y, z) with z = ±1 by the toss of a coin: [n, 2] -> [n, 3].

    An activation has hundreds of coordinates, and those that say nothing of the two classes
    keep its norm away from 0. In a bare plane nothing does: a method that divides by the norm
    sees nothing but an angle there. z plays their part; it says nothing of the classes, and
    its mean is 0, so that centring the data does not take it away. One seed tosses row i alike
    in both classes: the rows of a pair share what has nothing to do with the aim.

    Args:
        points: [n, 2]; [..., 2] without a seed.
        seed: of the coin; None: z = +1 for all.
    """
    z = torch.full_like(points[..., :1], HEIGHT)
    if seed is not None:
        z = z * (2.0 * torch.randint(2, z.shape, generator=_generator(seed)) - 1.0)
    return torch.cat([points, z], dim=-1)


# ---- two moons


_ARC = torch.tensor([[-0.6, -0.3], [0.6, 0.3]])  # centres of the upper and the lower arc
_RADIUS = 1.2


def moons(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two half circles that reach into each other, with noise of sd 0.14; n points each.

    Row i of both classes has the same angle.
    """
    generator = _generator(seed)
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.stack([angle.cos(), angle.sin()], dim=-1)
    lower = upper * torch.tensor([1.0, -1.0])
    noise = 0.14 * torch.randn(2, n, 2, generator=generator)
    return (
        _ARC[0] + _RADIUS * upper + noise[0],
        _ARC[1] + _RADIUS * lower + noise[1],
    )


def _nearer_to_upper_arc(points: Tensor) -> Tensor:
    distances = []
    for centre, sign in zip(_ARC, (1.0, -1.0), strict=True):
        offset = points - centre
        ends = torch.stack([(offset - end).norm(dim=-1) for end in _ENDS]).amin(dim=0)
        on_arc = (offset.norm(dim=-1) - _RADIUS).abs()
        distances.append(torch.where(sign * offset[..., 1] >= 0, on_arc, ends))
    return distances[0] <= distances[1]


_ENDS = torch.tensor([[_RADIUS, 0.0], [-_RADIUS, 0.0]])


# ---- two Gaussians


def _factor(degrees: float, along: float, across: float) -> Tensor:
    """F with covariance F F^T: standard deviations along a direction and across it."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c * along, -s * across], [s * along, c * across]])


_MEANS = torch.tensor([[0.5, 0.3], [-0.5, -0.3]])
_FACTORS = torch.stack([_factor(-65.0, 0.8, 0.3), _factor(25.0, 0.7, 0.25)])
IMBALANCE = 4


def gaussians(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Different covariances, and n negatives for n / 4 positives.

    Row i of both classes is made of the same two normal numbers.
    """
    normal = torch.randn(n, 2, generator=_generator(seed))
    positive, negative = (
        mean + normal[:count] @ factor.mT
        for mean, factor, count in zip(_MEANS, _FACTORS, (max(1, n // IMBALANCE), n), strict=True)
    )
    return positive, negative


def log_density_ratio(points: Tensor) -> Tensor:
    """log p+(x) / p-(x) of the two Gaussians, exactly: [..., 2] -> [...]."""
    log_densities = []
    for mean, factor in zip(_MEANS, _FACTORS, strict=True):
        z = (points - mean) @ torch.linalg.inv(factor).mT
        log_densities.append(-0.5 * z.square().sum(dim=-1) - factor.det().abs().log())
    return log_densities[0] - log_densities[1]


# ---- rings


_RADII = (0.55, 1.55)


def rings(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """A ring of positives inside a ring of negatives, with noise of sd 0.1; n points each.

    Both classes have mean 0: there is no direction that leads from one to the other. Row i of
    both classes has the same angle.
    """
    generator = _generator(seed)
    angle = 2.0 * math.pi * torch.rand(n, generator=generator)
    radius = torch.tensor(_RADII)[:, None] + 0.1 * torch.randn(2, n, generator=generator)
    inner, outer = radius[..., None] * torch.stack([angle.cos(), angle.sin()], dim=-1)
    return inner, outer


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


PLANES = {
    "moons": Plane("two moons", moons, _nearer_to_upper_arc, "nearer to the noise-free upper moon"),
    "gaussians": Plane(
        "Gaussians, 1 : 4",
        gaussians,
        lambda points: log_density_ratio(points) >= 0,
        "the true log density ratio is at least 0",
    ),
    "rings": Plane(
        "rings",
        rings,
        lambda points: points.norm(dim=-1) <= sum(_RADII) / 2,
        "nearer to the inner ring",
    ),
}
