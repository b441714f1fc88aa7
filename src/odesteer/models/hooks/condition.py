"""Condition on prompts under which a steering acts.

    P(positive | a) > p   or   P(positive | a) < p,   a: a block's output at a prompt's last token

Source: Lee et al., "Programming Refusal with Conditional Activation Steering", ICLR 2025,
https://arxiv.org/abs/2409.05907. There the condition is a similarity to a vector with a threshold
searched on examples; here it is a calibrated barrier.
"""

import math
from dataclasses import dataclass

from torch import Tensor

from odesteer.models.hooks.positions import PositionRule
from odesteer.models.steers import Steers


@dataclass(frozen=True)
class Condition:
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
