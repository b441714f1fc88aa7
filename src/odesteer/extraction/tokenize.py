"""Tokenization of a contrast: the tokens that are read and what is truncated.

    "last"      the last token of each text: of its answer (the paper)
    "mean"      the mean over all tokens of each text
    "response"  the mean over the tokens of each answer
    "prompt"    the last token of each prompt: where the model begins to answer

A text longer than the model's context loses its beginning, since the answer is at its end; a
begin-of-sequence token stays, since models put much of their attention on it.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

from torch import nn

from odesteer.data import Contrast, Example
from odesteer.models.chat_template import encode_parts
from odesteer.models.layers import config_value

Tokens = Literal["last", "mean", "response", "prompt"]
TOKENS: tuple[str, ...] = get_args(Tokens)


class TokenizedTexts(NamedTuple):
    """Token ids of a contrast.

    Attributes:
        positive: token ids of each positive text; of its prompt, for tokens="prompt".
        negative: the same of each negative text.
        starts: where each text's response starts, positives first.
        tokens: which of them are read, see above.
        truncated: how many texts were cut.
    """

    positive: list[list[int]]
    negative: list[list[int]]
    starts: list[int]
    tokens: Tokens
    truncated: int

    @property
    def rows(self) -> list[list[int]]:
        """Token ids of every text, positives first."""
        return self.positive + self.negative


def texts(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    tokens: Tokens = "last",
    max_tokens: int | None = None,
) -> TokenizedTexts:
    """Tokenize a contrast's texts; a warning says how many were truncated.

    Args:
        model: whose context bounds their length.
        tokenizer: its tokenizer.
        contrast: the texts.
        tokens: which are read, see above.
        max_tokens: a smaller bound.

    Raises:
        ValueError: for an unknown `tokens`, a bound below 2, or the prompts of bare texts.
    """
    examples = contrast.positive + contrast.negative
    rows, starts, truncated = token_rows(
        model, tokenizer, examples, contrast.template, tokens, max_tokens
    )
    n = len(contrast.positive)
    return TokenizedTexts(rows[:n], rows[n:], starts, tokens, truncated)


def token_rows(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[Example],
    template: str,
    tokens: Tokens,
    max_tokens: int | None = None,
) -> tuple[list[list[int]], list[int], int]:
    """Return token ids, the starts of the responses and the number of truncated texts.

    Args and errors as of `texts`.
    """
    check_tokens(tokens)
    if max_tokens is not None and max_tokens < 2:
        raise ValueError(f"max_tokens must be at least 2; got {max_tokens}.")
    if tokens == "prompt" and any(e.prompt is None for e in examples):
        raise ValueError(
            'tokens="prompt" reads the end of each prompt, and this contrast holds texts without '
            'one; give (prompt, response) rows, or read tokens="last".'
        )
    parts = [encode_parts(tokenizer, e.prompt, e.response, template) for e in examples]
    rows = [(a, [] if tokens == "prompt" else b) for a, b in parts]
    context = context_length(model)
    limit = min((size for size in (max_tokens, context) if size is not None), default=None)
    truncated = 0
    if limit is not None:
        truncated = sum(len(a) + len(b) > limit for a, b in rows)
        rows = [_cut(a, b, limit, tokenizer.bos_token_id) for a, b in rows]
    if truncated:
        warnings.warn(
            f"{truncated} of {len(rows)} texts are longer than {limit} tokens "
            f"({'max_tokens' if limit == max_tokens else 'the context of this model'}); their "
            f"beginnings were cut off.",
            stacklevel=4,
        )
    return [a + b for a, b in rows], [len(a) for a, _ in rows], truncated


def check_tokens(tokens: str) -> Tokens:
    """Return the name; raise ValueError for one that is none of `TOKENS`."""
    if tokens not in TOKENS:
        known = ", ".join(map(repr, TOKENS[:-1]))
        raise ValueError(f"tokens must be {known} or {TOKENS[-1]!r}; got {tokens!r}.")
    return cast(Tokens, tokens)


def context_length(model: nn.Module) -> int | None:
    """Return the length of the model's context, if its configuration says it."""
    value = config_value(model, "max_position_embeddings")
    return value if value is not None and value > 0 else None


def _cut(
    prompt: list[int], response: list[int], limit: int, bos: int | None
) -> tuple[list[int], list[int]]:
    """Keep the last `limit` tokens of a text and its begin-of-sequence token."""
    row = prompt + response
    if len(row) <= limit:
        return prompt, response
    lead = row[:1] if bos is not None and row[0] == bos else []
    if not prompt:
        return [], lead + row[len(row) - (limit - len(lead)) :]
    # Of a response that is too long by itself, nothing of the prompt is left but the lead.
    kept = max(limit - len(lead) - len(response), 0)
    tail = row[len(row) - (limit - len(lead)) :]
    return lead + tail[:kept], tail[kept:]
