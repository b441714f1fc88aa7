"""Barriers and activations shared by the tests of the mathematics, in float64."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from odesteer.ode import (
    AffineBarrier,
    AndBarrier,
    Barrier,
    FourierBarrier,
    GaussianBarrier,
    GradientField,
    LinearBarrier,
    MixtureBarrier,
    ModuleBarrier,
    Network,
    NetworkBarrier,
    OrBarrier,
    QuadraticBarrier,
    SketchBarrier,
    VectorField,
    Whitening,
)
from odesteer.ode.fields.base import Reduction

D = 7


def _normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _whitening(whitened: bool, d: int = D, seed: int = 0) -> Whitening:
    centre = _normal(d, seed=seed + 1)
    if not whitened:
        return Whitening(centre)
    directions = torch.linalg.qr(_normal(d, 3, seed=seed + 2)).Q
    return Whitening(centre, directions, torch.tensor([0.4, 1.7, 3.0], dtype=torch.float64))


def _quadratic(
    whitened: bool = False, d: int = D, rank: int | None = None, seed: int = 0
) -> QuadraticBarrier:
    form, slope = _normal(d, d, seed=seed + 3), _normal(d, seed=seed + 4)
    return QuadraticBarrier.from_form(form, slope, 0.3, _whitening(whitened, d, seed), rank)


def _sketch(degree: int = 2, d: int = D, seed: int = 0) -> SketchBarrier:
    generator = torch.Generator().manual_seed(seed)
    index, sign = SketchBarrier.draw(d, degree, 64, generator)
    return SketchBarrier(index, sign, _normal(64, seed=seed + 5), 0.2, 0.7, 1.3)


def _fourier(d: int = D, seed: int = 0) -> FourierBarrier:
    frequency, offset = _normal(40, d, seed=seed + 6) / 3, 3 * _normal(40, seed=seed + 7)
    return FourierBarrier(frequency, offset, _normal(40, seed=seed + 8), 0.1)


def _module(d: int = D) -> ModuleBarrier:
    network = nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    with torch.no_grad():
        for i, parameter in enumerate(network.parameters()):
            parameter.copy_(_normal(*parameter.shape, seed=20 + i))
    return ModuleBarrier(network)


def _linear(d: int = D, seed: int = 0) -> LinearBarrier:
    return LinearBarrier(_normal(d, seed=seed + 9), 0.4)


def _covariance(d: int = D, seed: int = 0) -> Tensor:
    """Symmetric positive definite [d, d]."""
    root = _normal(d, d, seed=seed) / d**0.5
    return root @ root.mT + 0.3 * torch.eye(d, dtype=torch.float64)


def _gaussian(d: int = D, seed: int = 0) -> GaussianBarrier:
    barrier = GaussianBarrier.from_moments(
        _normal(d, seed=seed + 10),
        _covariance(d, seed + 11),
        _normal(d, seed=seed + 12),
        _covariance(d, seed + 13),
    )
    assert isinstance(barrier, GaussianBarrier)
    return barrier


def _mixture(whitened: bool = True, d: int = D, seed: int = 0) -> MixtureBarrier:
    positive, negative = _normal(9, d, seed=seed + 14), _normal(6, d, seed=seed + 15)
    weights = torch.arange(1.0, 10.0, dtype=torch.float64)
    return MixtureBarrier(_whitening(whitened, d, seed), positive, negative, 1.5, weights)


def _network(activation: str = "silu", d: int = D, seed: int = 0) -> NetworkBarrier:
    generator = torch.Generator().manual_seed(seed)
    network = Network.draw([d, 8, 6, 1], activation, generator).double()
    scale = 0.5 + _normal(d, seed=seed + 16).abs()
    return NetworkBarrier(network, _normal(d, seed=seed + 17), scale, -0.2)


def _parts() -> list[Barrier]:
    return [_linear(), _quadratic(whitened=True), _fourier()]


_BARRIERS: dict[str, Callable[[], Barrier]] = {
    "linear": _linear,
    "quadratic": lambda: _quadratic(rank=3),
    "quadratic-whitened": lambda: _quadratic(whitened=True),
    "sketch-1": lambda: _sketch(1),
    "sketch-2": lambda: _sketch(2),
    "sketch-3": lambda: _sketch(3),
    "fourier": _fourier,
    "module": _module,
    "gaussian": _gaussian,
    "mixture": _mixture,
    "network": _network,
    "affine": lambda: AffineBarrier(_sketch(), -2.5, 0.3),
    "and-soft": lambda: AndBarrier(_parts(), soft=True),
    "and-hard": lambda: AndBarrier(_parts(), soft=False),
    "or-soft": lambda: OrBarrier(_parts(), soft=True),
    "or-hard": lambda: OrBarrier(_parts(), soft=False),
}


class _FullField(GradientField):
    """The gradient field, always integrated in d dimensions."""

    def reduce(self, a: Tensor) -> Reduction:
        return VectorField.reduce(self, a)


def _slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    """The order p of errors ~ steps^-p, by least squares."""
    x = torch.log(torch.tensor(steps, dtype=torch.float64))
    y = torch.log(torch.tensor(errors, dtype=torch.float64))
    return float(-((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.fixture(params=list(_BARRIERS))
def barrier(request: pytest.FixtureRequest) -> Barrier:
    """Every kind of barrier, on d = 7."""
    return _BARRIERS[request.param]()


@pytest.fixture(params=[False, True], ids=["plain", "whitened"])
def quadratic(request: pytest.FixtureRequest) -> QuadraticBarrier:
    """A quadratic barrier of full rank on d = 7, on the centred and on the whitened sphere."""
    return _quadratic(request.param)


@pytest.fixture(params=[(), (4,), (2, 3)], ids=["d", "n-d", "b-t-d"])
def activations(request: pytest.FixtureRequest) -> Tensor:
    """Activations of width 7 with none, one and two leading dimensions."""
    return 2 * _normal(*request.param, D, seed=100)


@pytest.fixture
def normal() -> Callable[..., Tensor]:
    """normal(*shape, seed=0): standard normal numbers."""
    return _normal


@pytest.fixture
def make_whitening() -> Callable[..., Whitening]:
    return _whitening


@pytest.fixture
def make_quadratic() -> Callable[..., QuadraticBarrier]:
    return _quadratic


@pytest.fixture
def make_sketch() -> Callable[..., SketchBarrier]:
    return _sketch


@pytest.fixture
def make_linear() -> Callable[..., LinearBarrier]:
    return _linear


@pytest.fixture
def make_fourier() -> Callable[..., FourierBarrier]:
    return _fourier


@pytest.fixture
def make_covariance() -> Callable[..., Tensor]:
    return _covariance


@pytest.fixture
def make_gaussian() -> Callable[..., GaussianBarrier]:
    return _gaussian


@pytest.fixture
def make_mixture() -> Callable[..., MixtureBarrier]:
    return _mixture


@pytest.fixture
def make_network() -> Callable[..., NetworkBarrier]:
    return _network


@pytest.fixture
def full_field() -> type[GradientField]:
    return _FullField


@pytest.fixture
def slope() -> Callable[[Sequence[int], Sequence[float]], float]:
    return _slope
