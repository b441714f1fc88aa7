"""Adapters for odesteer itself."""

import torch
from torch import Tensor, nn

from odesteer import Angle, Steering, __version__
from odesteer.ode import ConstantField, GradientField, QuadraticBarrier, Whitening
from odesteer.testing.suite.adapter import POSITIONS, Adapter, Steered


class OdesteerVector(Adapter):
    """A constant field: one vector, as every library has it."""

    name = "odesteer"
    version = __version__
    positions = POSITIONS
    masks = True

    def steering(self, vector: Tensor, layer: int | None = None) -> Steering:
        return Steering(ConstantField(vector), layer=layer)

    def attach(
        self, model: nn.Module, layer: int, vector: Tensor, positions: str | Tensor
    ) -> Steered:
        handle = self.steering(vector, layer).attach(model, positions=positions)
        return Steered(model, handle.remove)

    def expected(self, a: Tensor, vector: Tensor) -> Tensor:
        return self.steering(vector)(a)


class OdesteerFlow(OdesteerVector):
    """A flow: every activation follows a barrier along great circles, for 0.8 of its norm."""

    name = "odesteer (ODE)"

    def steering(self, vector: Tensor, layer: int | None = None) -> Steering:
        d = len(vector)
        generator = torch.Generator().manual_seed(0)
        form = torch.randn(d, d, generator=generator)
        barrier = QuadraticBarrier.from_form(form, 3 * vector, 0.0, Whitening(torch.zeros(d)))
        field = GradientField(barrier.float())
        return Steering(field, Angle(0.8), solver="great-circle", steps=5, layer=layer)
