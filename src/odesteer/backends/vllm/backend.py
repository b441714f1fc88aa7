"""Backend for experiments on a vLLM engine.

The tokens of a prompt are those of `odesteer.backends.transformers`; greedy tokens and
log-probabilities are the same up to rounding. Sampled texts differ: they are drawn from the same
distribution by another random number generator.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odesteer.backends.base import Backend, Steerings
from odesteer.backends.vllm.engine import Engine
from odesteer.data import Contrast
from odesteer.extraction.extract import Progress
from odesteer.models.chat_template import Messages, encode, encode_parts
from odesteer.models.generation import Sampling
from odesteer.models.hooks.positions import PositionRule
from odesteer.steering import Steering


@dataclass(frozen=True)
class VLLMBackend(Backend):
    """Backend on a vLLM engine of this process.

    Args:
        engine: has every steering that will be used.
        tokenizer: the model's, of transformers.
        template: how prompts become text, see `odesteer.models.chat_template`.
        positions: which tokens, see `odesteer.models.hooks.positions`, and no mask; None: each
            steering's own.

    Raises:
        ValueError: for unknown positions.
    """

    engine: Engine
    tokenizer: Any
    template: str = "auto"
    positions: str | None = None

    def __post_init__(self) -> None:
        if self.positions is not None:
            PositionRule.parse(self.positions)

    def activations(
        self, contrast: Contrast, layers: Sequence[int], progress: Progress | None = None
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Raise NotImplementedError.

        vLLM gives hidden states on CUDA alone, after running all layers and storing every token;
        a second model loaded silently might not fit into memory.
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
        """Generate as `Backend.generate` says.

        Raises:
            ValueError: for a steering that the engine does not have, sampling that vLLM does not
                support, or a prompt that is too long.
        """
        check_sampling(sampling)
        rows = [encode(self.tokenizer, prompt, template=self.template) for prompt in prompts]
        params = [
            {
                **self._sampling_params(sampling, i),
                "extra_args": self.engine.registered.extra_args(each, self.positions),
                "repetition_penalty": sampling.repetition_penalty,
                "max_tokens": sampling.max_new_tokens,
                "stop_token_ids": self.engine.stop_token_ids,
                "ignore_eos": True,
            }
            for i, each in enumerate(_per_prompt(steering, len(rows)))
        ]
        tokens = [output.outputs[0].token_ids for output in self.engine.complete(rows, params)]
        if progress is not None:
            progress(len(rows), len(rows))
        return [
            self.tokenizer.decode(list(ids), skip_special_tokens=True).strip() for ids in tokens
        ]

    def logprobs(
        self,
        prompts: Sequence[str | Messages],
        generations: Sequence[str],
        steering: Steerings = None,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        """Score as `Backend.logprobs` says; to vLLM, which scores prompts, a row is a prompt.

        Raises:
            ValueError: for a steering that the engine does not have or that reads the prompt's
                last token, or a row that is too long.
        """
        parts = [
            encode_parts(self.tokenizer, prompt, text, self.template)
            for prompt, text in zip(prompts, generations, strict=True)
        ]
        nonempty = [i for i, text in enumerate(generations) if text.strip()]
        steerings = _per_prompt(steering, len(parts))
        rows, params = [], []
        for i in nonempty:
            before, after = parts[i]
            rows.append(before + after)
            check_scoring(steerings[i])
            positions = self._positions_in_row(steerings[i], len(before))
            extra = self.engine.registered.extra_args(
                steerings[i] if positions else None, positions
            )
            params.append({"extra_args": extra, "prompt_logprobs": 0, "max_tokens": 1})
        results: list[Tensor] = [torch.empty(0)] * len(parts)
        for i, output in zip(nonempty, self.engine.complete(rows, params), strict=True):
            before, after = parts[i]
            predicted = output.prompt_logprobs[len(before) :]
            logp = [
                candidates[token].logprob
                for candidates, token in zip(predicted, after, strict=True)
            ]
            results[i] = torch.tensor(logp)
        if progress is not None:
            progress(len(parts), len(parts))
        return results

    def _positions_in_row(self, steering: Steering | None, prompt_length: int) -> str:
        """Return the positions in a row that is all prompt to vLLM; "" for none."""
        if steering is None:
            return ""
        spans = PositionRule.parse(self.positions or steering.positions).spans(prompt_length)
        windows = [f"prompt[{a}:{'' if b is None else b}]" for a, b in spans]
        return "+".join(windows)

    def _sampling_params(self, sampling: Sampling, row: int) -> dict[str, Any]:
        if sampling.temperature == 0:
            return {"temperature": 0.0}
        # vLLM draws each request separately: samples of one prompt need different seeds.
        digest = hashlib.sha256(f"{sampling.seed} {row}".encode()).digest()
        seed = int.from_bytes(digest[:4], "little")
        params = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}
        return {**self.engine.sampling_defaults, **params}


def check_sampling(sampling: Sampling) -> None:
    """Raise ValueError for sampling that vLLM does not support."""
    if sampling.no_repeat_ngram_size:
        raise ValueError(
            f"vLLM does not know no_repeat_ngram_size (got {sampling.no_repeat_ngram_size}): use "
            f"0, or TransformersBackend."
        )


def _per_prompt(steering: Steerings, rows: int) -> Sequence[Steering | None]:
    if steering is None or isinstance(steering, Steering):
        return [steering] * rows
    if len(steering) != rows:
        raise ValueError(f"{len(steering)} steerings for {rows} prompts: give one a prompt.")
    return steering


def check_scoring(steering: Steering | None) -> None:
    """Raise ValueError for a steering that cannot act on an answer inside vLLM's prompt."""
    if steering is not None and any(part.field.prompt_conditioned for part in steering.parts):
        raise ValueError(
            f"'{steering.method}' reads the prompt's last token, and in a row "
            f"that vLLM scores it cannot tell where the prompt ends: use TransformersBackend."
        )
