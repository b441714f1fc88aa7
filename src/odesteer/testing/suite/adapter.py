"""Adapter through which the suite drives a steering library.

Every library can add a vector to the output of a decoder block; no more is required. An adapter
says how, and what else the library offers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from odesteer import Angle, Steering, __version__
from odesteer.ode import ConstantField, GradientField, QuadraticBarrier, Whitening

POSITIONS = ("all", "last+generated", "generated", "prompt")


class NotOffered(Exception):
    """Something that a library does not claim to do; it does not count as a failure."""


class Steered:
    """Steered model, until `remove` or the end of the `with` block.

    Args:
        model: what a user of the library calls, the model itself or a wrapper.
        remove: takes the steering off.
    """

    def __init__(self, model: nn.Module, remove: Callable[[], object]):
        self.model = model
        self.remove = remove

    def __enter__(self) -> "Steered":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class Adapter(ABC):
    """Interface of a steering library to the suite.

    Attributes:
        name: of the library.
        version: of the library.
        positions: those of `POSITIONS` that it can steer: "all" tokens; the "prompt"; the
            "generated" ones, the first of them included; or the prompt's last and those.
        masks: whether `attach` takes a mask [t] of positions, true where to steer.
        unclaimed: by check, why the library does not claim it: "not offered" everywhere.
    """

    name: ClassVar[str]
    version: ClassVar[str] = ""
    positions: ClassVar[tuple[str, ...]] = ("all",)
    masks: ClassVar[bool] = False
    unclaimed: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def attach(
        self, model: nn.Module, layer: int, vector: Tensor, positions: str | Tensor
    ) -> Steered:
        """Steer `model`, a transformers causal language model, as a user would.

        Args:
            model: to be steered; `remove` must leave it as it is now.
            layer: 0-based index of the decoder block whose output is steered.
            vector: [d], float32, to be added.
            positions: one of `self.positions`, or a mask [t].

        Raises:
            NotOffered: if the library does not claim to do this.
        """

    def expected(self, a: Tensor, vector: Tensor) -> Tensor:
        """Return activations [..., d] as `attach` moves them."""
        return (a.float() + vector).to(a.dtype)


class Unsteered(Adapter):
    """Control: a check that the unsteered model fails says nothing about a library."""

    name = "unsteered"
    positions = POSITIONS
    masks = True

    def attach(
        self, model: nn.Module, layer: int, vector: Tensor, positions: str | Tensor
    ) -> Steered:
        return Steered(model, lambda: None)

    def expected(self, a: Tensor, vector: Tensor) -> Tensor:
        return a


class OdesteerVector(Adapter):
    """Constant field: one vector, as in every library."""

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
    """Flow: every activation follows a barrier along great circles, for 0.8 of its norm."""

    name = "odesteer (ODE)"

    def steering(self, vector: Tensor, layer: int | None = None) -> Steering:
        d = len(vector)
        generator = torch.Generator().manual_seed(0)
        form = torch.randn(d, d, generator=generator)
        barrier = QuadraticBarrier.from_form(form, 3 * vector, 0.0, Whitening(torch.zeros(d)))
        field = GradientField(barrier.float())
        return Steering(field, Angle(0.8), solver="great-circle", steps=5, layer=layer)
