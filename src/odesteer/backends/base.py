"""Interface of a backend: activations, generations, log-probabilities."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from odesteer.data import Contrast
from odesteer.extraction.extract import Progress
from odesteer.models.chat_template import Messages
from odesteer.models.generation import Sampling
from odesteer.steering import Steering

Steerings = Steering | Sequence[Steering | None] | None


class Backend(ABC):
    """Model that gives activations, generates and scores, steered or not."""

    @classmethod
    def beside(
        cls, model: Any, tokenizer: Any, template: str, positions: str | None, batch_size: int
    ) -> "Backend":
        """Return a backend beside a model of this process: `odesteer run --backend NAME` calls it.

        Args:
            model: a transformers causal language model, in eval mode.
            tokenizer: its tokenizer.
            template: how prompts become text, see `odesteer.models.chat_template`.
            positions: which tokens, see `odesteer.models.hooks.positions`; None: each steering's
                own.
            batch_size: prompts at once.

        Raises:
            NotImplementedError: unless the backend overrides this.
        """
        raise NotImplementedError(
            f"{cls.__name__} does not say how it is made for a model that is in memory: it needs "
            f"a classmethod `beside(model, tokenizer, template, positions, batch_size)`."
        )

    @abstractmethod
    def activations(
        self, contrast: Contrast, layers: Sequence[int], progress: Progress | None = None
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Return (positive [n, d], negative [m, d]) by layer."""

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[str | Messages],
        steering: Steerings = None,
        sampling: Sampling = Sampling(),
        progress: Progress | None = None,
    ) -> list[str]:
        """Return one generation for each prompt; `steering` is one for all prompts, or one each."""

    @abstractmethod
    def logprobs(
        self,
        prompts: Sequence[str | Messages],
        generations: Sequence[str],
        steering: Steerings = None,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """Return log p of every token of each generation after its prompt, in nats."""
