"""Steerings of every class that can be saved."""

import torch

from odesteer import ode

D = 5
ROWS = torch.randn(20, D, generator=torch.Generator().manual_seed(0))


def _random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def _whitening():
    directions, _ = torch.linalg.qr(_random(D, 2))
    return ode.Whitening(_random(D), directions, torch.tensor([2.0, 0.5]))


def _sketch():
    hashes = ode.SketchBarrier.draw(D, 2, 16, torch.Generator().manual_seed(1))
    return ode.SketchBarrier(*hashes, _random(16), 0.1, gamma=0.5, c0=1.0)


def _network():
    return ode.Network.draw([D, 4, 1], "gelu", torch.Generator().manual_seed(1))


BARRIERS = {
    "linear": lambda: ode.LinearBarrier(_random(D), 0.3),
    "quadratic": lambda: ode.QuadraticBarrier.from_form(
        _random(D, D), _random(D), -0.4, _whitening()
    ),
    "plain quadratic": lambda: ode.QuadraticBarrier.from_form(
        _random(D, D), _random(D), 0.4, ode.Whitening(_random(D)), rank=2
    ),
    "sketch": _sketch,
    "fourier": lambda: ode.FourierBarrier(_random(8, D), _random(8), _random(8), 0.2),
    "gaussian": lambda: ode.GaussianBarrier(_random(D), torch.eye(D), _random(D), 0.3),
    "mixture": lambda: ode.MixtureBarrier(
        _whitening(), _random(4, D), _random(3, D), 0.8, negative_weights=torch.ones(3)
    ),
    "network": lambda: ode.NetworkBarrier(_network(), _random(D), _random(D).abs() + 1, 0.3),
    "form": lambda: ode.FormBarrier(_random(D), torch.eye(D), _random(D), 0.3),
    "diagonal form": lambda: ode.FormBarrier(_random(D), _random(D).abs(), _random(D), 0.3),
    "metric": lambda: ode.MetricBarrier(BARRIERS["linear"](), _whitening()),
    "affine": lambda: ode.AffineBarrier(_sketch(), -2.0, 0.5),
    "and": lambda: ode.AndBarrier([BARRIERS["linear"](), BARRIERS["fourier"]()]),
    "hard and": lambda: ode.AndBarrier([BARRIERS["linear"](), BARRIERS["affine"]()], soft=False),
    "or": lambda: ode.OrBarrier([BARRIERS["and"](), BARRIERS["quadratic"](), _sketch()]),
}
FIELDS = {
    "zero": ode.ZeroField,
    "constant": lambda: ode.ConstantField(_random(D)),
    "constant with a barrier": lambda: ode.ConstantField(_random(D), BARRIERS["fourier"]()),
    "safety": lambda: ode.SafetyField(BARRIERS["quadratic"](), 1.5, 0.2),
    "safety of a nominal field": lambda: ode.SafetyField(
        BARRIERS["linear"](), 1.5, nominal=ode.ConstantField(_random(D)), limit=3.0
    ),
    "safety of several": lambda: ode.SafetyField(
        [BARRIERS["linear"](), BARRIERS["form"]().affine(0.7, -0.3)], 1.5, 0.2, limit=3.0
    ),
    "transport": lambda: ode.TransportField(BARRIERS["form"]()),
    "transport with a gate and a support": lambda: ode.TransportField(
        BARRIERS["diagonal form"](), BARRIERS["linear"](), _random(D) - 2, _random(D) + 2
    ),
    "rotation": lambda: ode.RotationField(
        torch.nn.functional.normalize(_random(D), dim=0), _network(), mirrored=True
    ),
    "rectified": lambda: ode.RectifiedField(
        ode.Hourglass.draw(D, 2, torch.Generator().manual_seed(1)),
        _random(D),
        1.5,
        _random(D),
        0.5,
        torch.linalg.qr(_random(D, 2)).Q,
        4,
        prompt_conditioned=True,
    ),
    "plain gradient": lambda: ode.PlainGradientField(BARRIERS["network"]()),
} | {name: lambda make=make: ode.GradientField(make()) for name, make in BARRIERS.items()}
