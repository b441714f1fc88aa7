"""Condition on prompts under which a steering acts.

    P(positive | a) > p   or   P(positive | a) < p,   a: a block's output at a prompt's last token

and what `&`, `|` and `~` make of several.

Source: Lee et al., "Programming Refusal with Conditional Activation Steering", ICLR 2025,
https://arxiv.org/abs/2409.05907. There the condition is a similarity to a vector with a threshold
searched on examples; here it is a calibrated barrier.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from odesteer.models.hooks.positions import PositionRule
from odesteer.models.steers import Steers


class Condition(ABC):
    """Condition on a prompt, made of thresholds; see `odesteer.Steering.attach`."""

    @property
    @abstractmethod
    def thresholds(self) -> tuple["Threshold", ...]:
        """The thresholds that it is made of, from left to right."""

    @abstractmethod
    def combine(self, masks: Sequence[Tensor]) -> Tensor:
        """Return where it holds, [rows], from where each of its thresholds does."""

    def __and__(self, other: "Condition") -> "Condition":
        """Return the condition that holds where both do."""
        return Joined(self, other, every=True)

    def __or__(self, other: "Condition") -> "Condition":
        """Return the condition that holds where either does."""
        return Joined(self, other, every=False)

    def __invert__(self) -> "Condition":
        """Return the condition that holds where this one does not."""
        return Negated(self)


@dataclass(frozen=True)
class Joined(Condition):
    """Two conditions of which every one has to hold, or any."""

    first: Condition
    second: Condition
    every: bool

    @property
    def thresholds(self) -> tuple["Threshold", ...]:
        """Those of both."""
        return self.first.thresholds + self.second.thresholds

    def combine(self, masks: Sequence[Tensor]) -> Tensor:
        """Return where both hold, or either; see `Condition.combine`."""
        count = len(self.first.thresholds)
        first, second = self.first.combine(masks[:count]), self.second.combine(masks[count:])
        return first & second if self.every else first | second


@dataclass(frozen=True)
class Negated(Condition):
    """Opposite of a condition."""

    condition: Condition

    @property
    def thresholds(self) -> tuple["Threshold", ...]:
        """Those of the condition."""
        return self.condition.thresholds

    def combine(self, masks: Sequence[Tensor]) -> Tensor:
        """Return where it does not hold; see `Condition.combine`."""
        return ~self.condition.combine(masks)


@dataclass(frozen=True)
class Threshold(Condition):
    """Threshold on the probability that a prompt ends in the positive class.

    Written `barrier > 0.7` or `barrier < 0.3`, where `barrier` is a steering of one layer; how far
    it would move does not matter.

    Attributes:
        part: whose calibrated barrier is read, at its block.
        probability: the threshold.
        above: whether the probability has to be greater; else less.

    Raises:
        ValueError: for a threshold that is no probability, or a steering that cannot be read.
    """

    part: Steers
    probability: float
    above: bool

    def __post_init__(self) -> None:
        if not 0.0 < self.probability < 1.0:
            raise ValueError(
                f"A condition compares with a probability between 0 and 1; got {self.probability}."
            )
        if self.part.field.barrier is None:
            raise ValueError(
                f"'{self.part.method}' has no barrier to read: a condition needs a method that "
                f"has one, such as odesteer."
            )
        if self.part.site != "residual":
            raise ValueError("A condition is read in the residual stream, not in heads.")

    @property
    def thresholds(self) -> tuple["Threshold", ...]:
        """Itself."""
        return (self,)

    def combine(self, masks: Sequence[Tensor]) -> Tensor:
        """Return where it holds; see `Condition.combine`."""
        return masks[0]

    def holds(self, log_odds: Tensor) -> Tensor:
        """Return whether it holds at calibrated log-odds, of the same shape."""
        level = math.log(self.probability / (1.0 - self.probability))
        return log_odds > level if self.above else log_odds < level

    def check(
        self, block: int, part: Steers, steered: int, positions: PositionRule | Tensor
    ) -> None:
        """Refuse what the condition, read at `block`, would come too late for.

        Args:
            block: index of its block.
            part: a steering under the condition.
            steered: index of that one's block.
            positions: the tokens that are steered.
        """
        if block > steered or (block == steered and part.site == "heads"):
            raise ValueError(
                f"The condition is read after block {block}, too late for a steering "
                f"{'in the heads of' if part.site == 'heads' else 'at'} block {steered}: read it "
                f"at an earlier block."
            )
        if isinstance(positions, Tensor) or not positions.after_prompt:
            what = "a mask" if isinstance(positions, Tensor) else f"positions='{positions}'"
            raise ValueError(
                f"The condition is read at the prompt's last token, and {what} may steer tokens "
                f"before it: use last+generated, generated, or windows of generated."
            )
