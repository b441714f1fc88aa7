"""What does every engine offer?"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from odesteer.contrast import Contrast
from odesteer.extraction import Progress
from odesteer.layered import LayeredSteering
from odesteer.steering import Steering
from odesteer.templates import Messages


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; the default is greedy.

    Args:
        max_new_tokens: per generation.
        temperature: 0 is greedy.
        top_p: nucleus.
        repetition_penalty: 1 is none.
        no_repeat_ngram_size: no run of so many tokens comes twice; 0 allows it.
        seed: of the draw.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    seed: int = 0


AnySteering = Steering | LayeredSteering
Steerings = AnySteering | Sequence[AnySteering | None] | None


class Backend(ABC):
    """Where activations come from and go back to."""

    @abstractmethod
    def activations(
        self, contrast: Contrast, layers: Sequence[int], progress: Progress | None = None
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """(positive [n, d], negative [m, d]) by layer."""

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[str | Messages],
        steering: Steerings = None,
        sampling: Sampling = Sampling(),
        progress: Progress | None = None,
    ) -> list[str]:
        """One generation a prompt; `steering` is one for all prompts, or one for each."""

    @abstractmethod
    def logprobs(
        self,
        prompts: Sequence[str | Messages],
        generations: Sequence[str],
        steering: Steerings = None,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """log p of every token of each generation after its prompt, in nats."""
