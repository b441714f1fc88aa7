"""Steered model for Inspect AI.

Inspect's provider of Hugging Face models ("hf"), with a steering on the model from loading to
closing. Batches, chat templates, tools, log-probabilities and the other arguments are Inspect's.
One thing differs: a prompt written by a chat template gets no second begin-of-sequence token.
"""

import os
from typing import Any

from inspect_ai.model import GenerateConfig
from inspect_ai.model._providers.hf import HuggingFaceAPI

from odesteer.models.loading import SMOLLM2, local_copy
from odesteer.ode import Angle, Dose
from odesteer.steering import load


class SteeredAPI(HuggingFaceAPI):
    """Hugging Face model with a steering on it.

    A steering is given as a directory, not as an object, so that Inspect's log can say what was
    evaluated.

    Args:
        model_name: what comes after "odesteer/": a Hub model, or "smollm2".
        base_url, api_key, config: of Inspect; the key is the Hub's.
        steering: a directory that `Steering.save_pretrained` has written, or a Hub repository;
            None: the unsteered model.
        strength: its dose, in integration time; None: its own.
        angle: its dose, as an angle; instead of `strength`.
        positions: which tokens, see `odesteer.models.hooks.positions`; None: the steering's own.
        model_args: of the provider "hf", such as `model_path`, `batch_size`, `do_sample`.

    Raises:
        ValueError: for two doses, a dose without a steering, unknown positions, or a steering of
            another model.
    """

    tokenizer_call_args: dict[str, Any]

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),
        *,
        steering: str | os.PathLike[str] | None = None,
        strength: Dose | float | None = None,
        angle: float | None = None,
        positions: str | None = None,
        **model_args: Any,
    ):
        if strength is not None and angle is not None:
            raise ValueError("strength and angle both say how far; give one of them.")
        dose = Angle(angle) if angle is not None else strength
        if steering is None and dose is not None:
            raise ValueError(f"A dose, {dose}, but nothing to steer with: give steering=DIR.")
        loaded = None if steering is None else load(steering)
        if model_name == SMOLLM2:
            model_args = {"model_path": str(local_copy()), "dtype": "float32"} | model_args
        super().__init__(model_name, base_url, api_key, config, **model_args)
        if self.tokenizer.chat_template and self.use_chat_template is not False:
            # A chat template writes them itself; twice, they are not what a steering was fitted on.
            self.tokenizer_call_args = {"add_special_tokens": False} | self.tokenizer_call_args
        self._handle = None
        if loaded is not None:
            loaded = loaded if dose is None else loaded.with_strength(dose)
            self._handle = loaded.attach(self.model, positions=positions)

    def close(self) -> None:
        """Remove the steering, and release the model."""
        if self._handle is not None:
            self._handle.remove()
        super().close()
