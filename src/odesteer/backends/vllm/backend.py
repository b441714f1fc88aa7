"""Backend for experiments on a vLLM engine.

The same tokens go in as in `odesteer.backends.transformers`, and greedy tokens and
log-probabilities that come out are the same as far as two engines round alike. Sampled texts are
others: from the same distribution, by another generator of random numbers.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odesteer.backends.base import Backend, Sampling, Steerings
from odesteer.backends.vllm.engine import Engine
from odesteer.backends.vllm.registry import starts
from odesteer.backends.vllm.request import SteeringRequest
from odesteer.data import Contrast
from odesteer.extraction.extract import Progress
from odesteer.models.chat_template import Messages, encode, encode_parts
from odesteer.steering import Steering


@dataclass(frozen=True)
class VLLMBackend(Backend):
    """A vLLM engine of this process.

    Args:
        engine: it has every steering that will be given.
        tokenizer: the model's, of transformers.
        template: how prompts become text, see `odesteer.models.chat_template`.
        positions: which tokens are steered: "last+generated", "generated" or "all".

    Raises:
        ValueError: for other positions.
    """

    engine: Engine
    tokenizer: Any
    template: str = "auto"
    positions: str = "last+generated"

    def __post_init__(self) -> None:
        starts(self.positions)

    def activations(
        self, contrast: Contrast, layers: Sequence[int], progress: Progress | None = None
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Not offered: NotImplementedError.

        vLLM gives hidden states on CUDA alone, after running all layers and storing every token;
        a second model loaded for it without a word could be more than the memory that is left.
        """
        raise NotImplementedError(
            "vLLM gives no activations of a layer: read them with odesteer.activations or "
            "TransformersBackend, which stop at the layer that is asked for."
        )

    def generate(
        self,
        prompts: Sequence[str | Messages],
        steering: Steerings = None,
        sampling: Sampling = Sampling(),
        progress: Progress | None = None,
    ) -> list[str]:
        """See `Backend.generate`.

        Raises:
            ValueError: for a steering that the engine does not have, sampling that vLLM does not
                know, or a prompt that is too long.
        """
        refuse(sampling)
        rows = [encode(self.tokenizer, prompt, template=self.template) for prompt in prompts]
        start = starts(self.positions)
        asked = [
            {
                **self._drawn(sampling, i),
                "extra_args": self.engine.known.ask(one, start),
                "repetition_penalty": sampling.repetition_penalty,
                "max_tokens": sampling.max_new_tokens,
                "stop_token_ids": self.engine.stops,
                "ignore_eos": True,
            }
            for i, one in enumerate(_each(steering, len(rows)))
        ]
        said = [one.outputs[0].token_ids for one in self.engine.complete(rows, asked)]
        if progress is not None:
            progress(len(rows), len(rows))
        return [self.tokenizer.decode(list(ids), skip_special_tokens=True).strip() for ids in said]

    def logprobs(
        self,
        prompts: Sequence[str | Messages],
        generations: Sequence[str],
        steering: Steerings = None,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """See `Backend.logprobs`; the row is a prompt to vLLM, which scores prompts.

        Raises:
            ValueError: for a steering that the engine does not have or that reads the prompt's
                last token, or a row that is too long.
        """
        parts = [
            encode_parts(self.tokenizer, prompt, text, self.template)
            for prompt, text in zip(prompts, generations, strict=True)
        ]
        some = [i for i, text in enumerate(generations) if text.strip()]
        given = _each(steering, len(parts))
        rows, asked = [], []
        for i in some:
            before, after = parts[i]
            rows.append(before + after)
            extra = self.engine.known.ask(_scored(given[i]), self._start(len(before)))
            asked.append({"extra_args": extra, "prompt_logprobs": 0, "max_tokens": 1})
        results: list[Tensor] = [torch.empty(0)] * len(parts)
        for i, output in zip(some, self.engine.complete(rows, asked), strict=True):
            before, after = parts[i]
            predicted = output.prompt_logprobs[len(before) :]
            logp = [of[token].logprob for of, token in zip(predicted, after, strict=True)]
            results[i] = torch.tensor(logp)
        if progress is not None:
            progress(len(parts), len(parts))
        return results

    def _start(self, prompt_length: int) -> int:
        """The position of the first steered token, after a prompt of so many."""
        return SteeringRequest("", start=starts(self.positions)).begins(prompt_length)

    def _drawn(self, sampling: Sampling, row: int) -> dict[str, Any]:
        if sampling.temperature == 0:
            return {"temperature": 0.0}
        # vLLM draws each request by itself: samples of one prompt need different seeds.
        digest = hashlib.sha256(f"{sampling.seed} {row}".encode()).digest()
        seed = int.from_bytes(digest[:4], "little")
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}
        return {**self.engine.warpers, **drawn}


def refuse(sampling: Sampling) -> None:
    """ValueError for sampling that vLLM does not know."""
    if sampling.no_repeat_ngram_size:
        raise ValueError(
            f"vLLM does not know no_repeat_ngram_size (got {sampling.no_repeat_ngram_size}): use "
            f"0, or TransformersBackend."
        )


def _each(steering: Steerings, rows: int) -> Sequence[Steering | None]:
    if steering is None or isinstance(steering, Steering):
        return [steering] * rows
    if len(steering) != rows:
        raise ValueError(f"{len(steering)} steerings for {rows} prompts: give one a prompt.")
    return steering


def _scored(steering: Steering | None) -> Steering | None:
    """A steering that can act on an answer which vLLM takes for a part of the prompt."""
    if steering is not None and any(part.field.prompt_conditioned for part in steering.parts):
        raise ValueError(
            f"'{steering.method}' reads the prompt's last token, and in a row "
            f"that vLLM scores it cannot tell where the prompt ends: use TransformersBackend."
        )
    return steering
