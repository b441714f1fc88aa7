"""Protocol of a steering at one layer, as hooks use it."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from odesteer.ode import Dose, Solution, VectorField


class Steers(Protocol):
    """Map a -> a(T) at one decoder block, such as `odesteer.steering.LayerSteering`.

    Attributes:
        layer: 0-based index of the decoder block.
        site: "residual" for the block's output, "heads" for the outputs of its attention heads.
        field: v, with its barrier.
        dose: dose of the steering.
        hidden_size: d, or None where any width is taken.
        method: the name of the method that learnt it.
        positions: which tokens it steers unless others are asked for.
        model: description of the model it was fitted on (JSON values).
    """

    @property
    def layer(self) -> int | None: ...
    @property
    def site(self) -> str: ...
    @property
    def field(self) -> VectorField: ...
    @property
    def dose(self) -> Dose: ...
    @property
    def hidden_size(self) -> int | None: ...
    @property
    def method(self) -> str: ...
    @property
    def positions(self) -> str: ...
    @property
    def model(self) -> Mapping[str, Any]: ...

    def __call__(
        self,
        a: Tensor,
        velocity: Tensor | None = None,
        dose: Dose | None = None,
        differentiable: bool = False,
    ) -> Tensor:
        """Return a(T) for a [..., d]."""

    def solution(
        self, a: Tensor, velocity: Tensor | None = None, dose: Dose | None = None
    ) -> Solution:
        """Return a(T) for a [..., d] with how each row ended."""

    def velocity(self, prompt: Tensor) -> Tensor:
        """Return v at prompts' last tokens [..., d], for fields that read the prompt."""

    def log_odds(self, a: Tensor) -> Tensor:
        """Return the calibrated barrier: [..., d] -> [...]."""

    def with_strength(self, strength: Dose | float) -> "Steers":
        """Return the same steering at another dose."""
