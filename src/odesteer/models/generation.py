"""Generation of text by a transformers model."""

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odesteer.models.batching import batches, pad
from odesteer.models.chat_template import Messages, encode
from odesteer.models.layers import input_device

Progress = Callable[[int, int], None]  # prompts done, prompts in all
# A full stop or its like, and the quotes and brackets that it closes; not the number of a list.
_SENTENCE_END = re.compile(r"(?<!^\d)(?<!\n\d)(?<!\n\d\d)[.!?…]+[\"'”’)\]*]*(?=\s|$)")


@dataclass(frozen=True)
class Sampling:
    """Sampling of tokens; the default is greedy.

    Args:
        max_new_tokens: per generation.
        temperature: 0 is greedy; above it, tokens are drawn among the `top_k` most likely of the
            model's own generation config, or 50 where it says nothing, as in transformers.
        top_p: nucleus.
        repetition_penalty: 1 is none.
        no_repeat_ngram_size: no run of this many tokens occurs twice; 0 allows it.
        seed: of the random draws.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    seed: int = 0


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Messages],
    sampling: Sampling = Sampling(),
    *,
    steered: Callable[[Sequence[int]], AbstractContextManager[Any]],
    template: str = "auto",
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[str]:
    """Return one generation for each prompt, without special tokens and outer spaces.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        prompts: texts or chat messages.
        sampling: of the tokens; its seed is set before the first batch.
        steered: attaches what acts on a batch, given the indices of its prompts.
        template: how prompts become text, see `odesteer.models.chat_template`.
        batch_size: prompts in a batch.
        progress: called with (prompts done, prompts in all).

    Raises:
        ValueError: for a prompt without a token.
    """
    rows = [encode(tokenizer, prompt, template=template) for prompt in prompts]
    if not all(rows):
        raise ValueError("A prompt is empty; write something for the model to continue.")
    texts: list[str] = [""] * len(rows)
    done = 0
    torch.manual_seed(sampling.seed)
    for batch in batches([len(row) for row in rows], rows=batch_size):
        ids, mask = left_padded(model, tokenizer, [rows[i] for i in batch])
        with steered(batch), torch.no_grad():
            output = model.generate(
                input_ids=ids, attention_mask=mask, **_arguments(tokenizer, sampling)
            )
        for i, tokens in zip(batch, output[:, ids.shape[1] :], strict=True):
            texts[i] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        done += len(batch)
        if progress is not None:
            progress(done, len(rows))
    return texts


def whole_sentences(text: str) -> str:
    """Return a text without what follows its last whole sentence, if there is one before it.

    >>> whole_sentences("It rained. We stayed at")
    'It rained.'
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def left_padded(model: Any, tokenizer: Any, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Pad token ids and mask on the left, so that every row ends where it generates."""
    return pad(rows, tokenizer.pad_token_id or 0, left=True, device=input_device(model))


def _arguments(tokenizer: Any, sampling: Sampling) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "max_new_tokens": sampling.max_new_tokens,
        "do_sample": sampling.temperature > 0,
        "repetition_penalty": sampling.repetition_penalty,
        "no_repeat_ngram_size": sampling.no_repeat_ngram_size,
        "pad_token_id": tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
    }
    if sampling.temperature > 0:
        arguments |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
    return arguments
