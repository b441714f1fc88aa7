"""No perturbation within a barrier's radius crosses the level, and some not far beyond it do.

`python -m tests.ode.test_certificates 100000` searches that many times, and says how tight it is.
"""

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from odesteer.ode import (
    AndBarrier,
    Barrier,
    FormBarrier,
    FourierBarrier,
    GaussianBarrier,
    GradientField,
    LinearBarrier,
    MetricBarrier,
    MixtureBarrier,
    Network,
    NetworkBarrier,
    OrBarrier,
    QuadraticBarrier,
    SketchBarrier,
    Whitening,
)
from odesteer.steering import Calibration, Steering

D = 6


def _normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _whitening(seed: int) -> Whitening:
    directions = torch.linalg.qr(_normal(D, 2, seed=seed)).Q
    return Whitening(_normal(D, seed=seed + 1), directions, _normal(2, seed=seed + 2).exp())


def _quadratic(seed: int, whitening: Whitening) -> QuadraticBarrier:
    return QuadraticBarrier.from_form(
        _normal(D, D, seed=seed), _normal(D, seed=seed + 1), 0.1, whitening
    )


def _network(activation: str, seed: int) -> NetworkBarrier:
    generator = torch.Generator().manual_seed(seed)
    network = Network.draw([D, 16, 16, 1], activation, generator).double()
    return NetworkBarrier(network, _normal(D, seed=seed), _normal(D, seed=seed + 1).exp(), 0.02)


def _linear(seed: int) -> LinearBarrier:
    return LinearBarrier(_normal(D, seed=seed), 0.3)


def _form(seed: int) -> FormBarrier:
    return FormBarrier(_normal(D, seed=seed), _normal(D, seed=seed + 1), _normal(D, seed=seed), 0.2)


MAKERS: dict[str, Callable[[int], Barrier]] = {
    "linear": _linear,
    "quadratic": lambda seed: _quadratic(seed, Whitening(_normal(D, seed=seed + 9))),
    "whitened quadratic": lambda seed: _quadratic(seed, _whitening(seed + 9)),
    "nearly linear quadratic": lambda seed: QuadraticBarrier.from_form(
        0.1 * _normal(D, D, seed=seed), _normal(D, seed=seed + 1), 0.1, _whitening(seed + 9)
    ),
    "form": _form,
    "gaussian": lambda seed: GaussianBarrier(
        _normal(D, seed=seed), torch.diag(_normal(D, seed=seed + 1)), _normal(D, seed=seed), 0.2
    ),
    "fourier": lambda seed: FourierBarrier(
        _normal(20, D, seed=seed) / 3, _normal(20, seed=seed + 1), _normal(20, seed=seed + 2), 0.1
    ),
    "mixture": lambda seed: MixtureBarrier(
        _whitening(seed), _normal(5, D, seed=seed + 3), _normal(4, D, seed=seed + 4), 1.3
    ),
    "relu": lambda seed: _network("relu", seed),
    "gelu": lambda seed: _network("gelu", seed),
    "silu": lambda seed: _network("silu", seed),
    "tanh": lambda seed: _network("tanh", seed),
    "hard and": lambda seed: AndBarrier(
        [_linear(seed), _quadratic(seed, _whitening(seed + 9)).affine(-1.5, 0.2)], soft=False
    ),
    "hard or": lambda seed: OrBarrier([_linear(seed), _form(seed + 5)], soft=False),
    "soft and": lambda seed: AndBarrier([_linear(seed), _network("silu", seed)]),
    "metric and scale": lambda seed: MetricBarrier(_form(seed), _whitening(seed + 9)).affine(
        -0.7, 0.1
    ),
}


def search(barrier: Barrier, a: Tensor, level: float, radius: Tensor, steps: int) -> Tensor:
    """Return the rows whose side changes within `radius`, by projected gradient steps.

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018,
    https://arxiv.org/abs/1706.06083
    """
    above, radius = barrier.value(a) >= level, radius.unsqueeze(-1)
    sign = torch.where(above, -1.0, 1.0).unsqueeze(-1).to(a.dtype)
    crossed = torch.zeros_like(above)
    x = a
    for step in range(steps):
        ascent = sign * barrier.gradient(x)
        ascent = torch.nn.functional.normalize(ascent, dim=-1)
        shift = x + (2.0 if step == 0 else 0.5) * radius * ascent - a
        length = shift.norm(dim=-1, keepdim=True)
        x = a + shift * (radius / length.clamp_min(1e-300)).clamp_max(1.0)
        crossed = crossed | ((barrier.value(x) >= level) != above)
    return crossed


def searches(name: str, rounds: int, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield which rows cross within the radius, and the first multiple of it at which they do."""
    for seed in range(rounds):
        barrier = MAKERS[name](100 * seed)
        a = 1.5 * _normal(rows, D, seed=100 * seed + 50)
        level = float(barrier.value(a).median()) + 0.05
        radius = barrier.radius(a, level)
        within = search(barrier, a, level, (1 - 1e-9) * radius, 12)
        beyond = torch.full((rows,), torch.inf).double()
        for factor in (16.0, 8.0, 4.0, 2.0, 1.5, 1.2, 1.1, 1.01):
            beyond[search(barrier, a, level, factor * radius, 12)] = factor
        yield within, beyond


@pytest.mark.parametrize("name", MAKERS)
def test_no_search_within_the_radius_crosses_the_level(name: str) -> None:
    for within, beyond in searches(name, 3, 100):
        assert not bool(within.any())
        assert bool((beyond <= 16.0).any())
        if name == "linear":
            assert bool((beyond == 1.01).all())


def test_a_lipschitz_bound_bounds_differences_and_is_nearly_attained_by_one_of_tanh() -> None:
    for name in ("linear", "fourier", "mixture", "relu", "gelu", "silu", "tanh", "soft and"):
        barrier = MAKERS[name](7)
        a, b = 3 * _normal(500, D, seed=1), 3 * _normal(500, D, seed=2)
        slopes = (barrier.value(a) - barrier.value(b)).abs() / (a - b).norm(dim=-1)
        assert float(slopes.max()) <= float(barrier.lipschitz())
        assert float(barrier.gradient(a).norm(dim=-1).max()) <= float(barrier.lipschitz())


def test_the_steepest_slopes_of_activations_bound_their_derivatives() -> None:
    from odesteer.ode.barriers.mlp import ACTIVATIONS

    x = torch.linspace(-8, 8, 200_001, dtype=torch.float64)
    for activation in ACTIVATIONS.values():
        steepest = float(activation.derivative(x).abs().max())
        assert activation.steepest - 1e-3 < steepest <= activation.steepest


def test_without_a_bound_it_is_refused_in_words() -> None:
    hashes = SketchBarrier.draw(D, 2, 16, torch.Generator().manual_seed(1))
    sketch = SketchBarrier(*hashes, _normal(16), 0.1, gamma=0.5, c0=1.0)
    with pytest.raises(ValueError, match="No Lipschitz bound of a SketchBarrier"):
        sketch.radius(_normal(3, D), 0.0)
    with pytest.raises(ValueError, match="ask for `radius`"):
        MAKERS["quadratic"](0).lipschitz()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_steering_certifies_its_probability(dtype: torch.dtype) -> None:
    barrier = MAKERS["whitened quadratic"](3).to(dtype)
    steering = Steering(GradientField(barrier), calibration=Calibration(1.7, -0.2))
    a = (1.5 * _normal(4, 25, D)).to(dtype)
    radius, p = steering.radius(a, 0.6), steering.probability(a)
    assert radius.shape == (4, 25) and radius.dtype == dtype
    direction = torch.nn.functional.normalize(_normal(200, 4, 25, D, seed=1), dim=-1).to(dtype)
    near = steering.probability(a + 0.999 * radius.unsqueeze(-1) * direction)
    assert torch.equal(near >= 0.6, (p >= 0.6).expand_as(near))
    far = steering.probability(a + 9 * radius.unsqueeze(-1) * direction)
    assert not torch.equal(far >= 0.6, (p >= 0.6).expand_as(far))
    # At the centre h has no direction: no radius.
    centre = barrier.whitening.centre
    assert float(steering.radius(centre, 0.6)) == 0.0
    with pytest.raises(ValueError, match="between 0 and 1"):
        steering.radius(a, 1.0)


if __name__ == "__main__":
    tried = -(-int(sys.argv[1]) // (1000 * len(MAKERS)))
    for name in MAKERS:
        results = list(searches(name, tried, 1000))
        within, beyond = (torch.cat(parts) for parts in zip(*results, strict=True))
        ratios = beyond.quantile(torch.tensor([0.1, 0.5, 0.9]).double(), interpolation="higher")
        print(f"{name}: {len(within)} searches, {int(within.sum())} crossed;", end=" ")
        print(f"crossed at {ratios.tolist()} radii (10, 50, 90 % of rows)")
