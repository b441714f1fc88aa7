"""Backend on a transformers model in this process."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odesteer.backends.base import Backend, Steerings
from odesteer.data import Contrast
from odesteer.extraction.extract import Progress, activations
from odesteer.models.batching import batches
from odesteer.models.chat_template import Messages, encode_parts
from odesteer.models.generation import Sampling, generate, left_padded
from odesteer.models.hooks.attach import scoring
from odesteer.steering import Steering


@dataclass(frozen=True)
class TransformersBackend(Backend):
    """Backend on a model and a tokenizer in this process.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        template: how prompts become text, see `odesteer.models.chat_template`.
        positions: which tokens, see `odesteer.models.hooks.positions`; None: each steering's own.
        batch_size: prompts in a batch.
    """

    model: Any
    tokenizer: Any
    template: str = "auto"
    positions: str | None = None
    batch_size: int = 16

    @classmethod
    def beside(
        cls, model: Any, tokenizer: Any, template: str, positions: str | None, batch_size: int
    ) -> "TransformersBackend":
        return cls(model, tokenizer, template, positions, batch_size)

    def activations(
        self, contrast: Contrast, layers: Sequence[int], progress: Progress | None = None
    ) -> dict[int, tuple[Tensor, Tensor]]:
        return activations(self.model, self.tokenizer, contrast, list(layers), progress=progress)

    def generate(
        self,
        prompts: Sequence[str | Messages],
        steering: Steerings = None,
        sampling: Sampling = Sampling(),
        progress: Progress | None = None,
    ) -> list[str]:
        return generate(
            self.model,
            self.tokenizer,
            prompts,
            sampling,
            steered=lambda batch: self._steered(steering, batch),
            template=self.template,
            batch_size=self.batch_size,
            progress=progress,
        )

    def logprobs(
        self,
        prompts: Sequence[str | Messages],
        generations: Sequence[str],
        steering: Steerings = None,
        progress: Progress | None = None,
    ) -> list[Tensor]:
        # As the template writes them: "A: {response}" begins an answer with a space, which
        # belongs to its first token and which a decoded generation has lost.
        parts = [
            encode_parts(self.tokenizer, prompt, text, self.template)
            for prompt, text in zip(prompts, generations, strict=True)
        ]
        starts = [start for start, _ in parts]
        ends = [
            end if text.strip() else [] for (_, end), text in zip(parts, generations, strict=True)
        ]
        rows = [start + end for start, end in zip(starts, ends, strict=True)]
        results: list[Tensor] = [torch.empty(0)] * len(rows)
        done = 0
        for batch in batches([len(row) for row in rows], rows=self.batch_size):
            ids, mask = left_padded(self.model, self.tokenizer, [rows[i] for i in batch])
            longest = max(len(ends[i]) for i in batch)
            prompt_ends = torch.tensor([ids.shape[1] - len(ends[i]) for i in batch])
            with (
                self._steered(steering, batch),
                scoring(self.model, prompt_ends.to(ids.device)),
                torch.no_grad(),
            ):
                logits = self.model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=(mask.cumsum(dim=1) - 1).clamp_min(0),
                    logits_to_keep=longest + 1,
                ).logits.float()
            targets = ids[:, ids.shape[1] - longest :]
            logits = logits[:, :-1]
            token_logits = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
            # Not log_softmax: it would write another [batch, tokens, vocabulary] tensor.
            logp = (token_logits - logits.logsumexp(dim=-1)).cpu()
            for i, row in zip(batch, logp, strict=True):
                results[i] = row[len(row) - len(ends[i]) :]
            done += len(batch)
            if progress is not None:
                progress(done, len(rows))
        return results

    @contextmanager
    def _steered(self, steering: Steerings, batch: Sequence[int]) -> Iterator[None]:
        """Attach every steering to its rows of the batch (indices into the prompts)."""
        with ExitStack() as stack:
            if isinstance(steering, Steering):
                stack.enter_context(steering.attach(self.model, positions=self.positions))
            elif steering is not None:
                rows_of: dict[int, list[int]] = {}
                for row, i in enumerate(batch):
                    rows_of.setdefault(id(steering[i]), []).append(row)
                for rows in rows_of.values():
                    shared = steering[batch[rows[0]]]
                    if shared is not None:
                        handle = shared.attach(self.model, positions=self.positions, rows=rows)
                        stack.enter_context(handle)
            yield
