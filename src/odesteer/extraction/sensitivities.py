"""Sensitivities: how what a model says depends on the activations of a block.

For a text with prompt x and response y, a_t the output of the block at token t, and a shift
a_t + u ||a_t|| of its steered tokens (u is an angle, for every token the same):

    margin  g = sum_t ||a_t|| d/da_t  1/|y| sum_j log p(y_j | x, y_<j)
    score   s = sum_t ||a_t|| d/da_t  sum_j log p(y'_j | x, y_<j),   y'_j drawn from the model

so that g . u is the change of the text's log-likelihood, in nats a token, and, with
F = E s s^T / E |y|, the Fisher information of u,

    KL(unsteered || steered) = 1/2 u^T F u + O(u^3)       nats a token.

Labels of the scores come from the model, never from the data, and are independent given the text,
so that their cross terms vanish in expectation. One forward pass and two backward passes give both
at every block that is asked for; the weights take no part.

Attention sinks (first tokens whose norm is many times that of the others) are not shifted: a shift
relative to their norm would be almost all of the effect.

Sources: Amari, "Natural Gradient Works Efficiently in Learning", Neural Computation 10, 1998, for
the Fisher metric; Kunstner et al., "Limitations of the Empirical Fisher Approximation", NeurIPS
2019, https://arxiv.org/abs/1905.12558, for labels drawn from the model.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from odesteer.data import Contrast
from odesteer.data.arguments import forgiving
from odesteer.extraction.cache import ActivationCache, CacheChoice, Content
from odesteer.extraction.extract import Progress, default_batch_tokens
from odesteer.extraction.packing import PromptWithAnswers
from odesteer.extraction.tokenize import TokenizedTexts, texts
from odesteer.models.batching import batches, pad
from odesteer.models.capture import evaluating, logits_at
from odesteer.models.hooks.positions import PositionRule, select_tokens
from odesteer.models.hooks.token_tracker import ForwardCall
from odesteer.models.layers import (
    block_output,
    find_layers,
    hidden_size,
    input_device,
    layer_index,
    replace_output,
    text_config,
)

# A token is a sink where its norm exceeds this many times the median of its text. Measured norms
# of sinks are 14 to 140 times the others'.
SINK = 8.0
BATCH_LOGITS = 2**24  # 64 MB in float32, of which five or six live at once
_FLOAT16_SCALE = 1024.0  # gradients of a token are near float16's smallest numbers


class Sensitivity(NamedTuple):
    """Sensitivities of n texts at one block, in float32 on the CPU.

    Attributes:
        margins: g of each text, [n, d].
        scores: s of each text and draw, [n, draws, d].
        activations: mean of each text's activations that are steered, sinks left out, [n, d].
        tokens: |y|, the number of predicted tokens, [n].
    """

    margins: Tensor
    scores: Tensor
    activations: Tensor
    tokens: Tensor


@forgiving(layer="layers")
def sensitivities(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast | Any,
    layers: Sequence[int],
    *,
    positions: str = "last+generated",
    mean: bool = True,
    draws: int = 1,
    seed: int = 0,
    max_tokens: int | None = None,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    cache: CacheChoice = False,
) -> dict[int, tuple[Sensitivity, Sensitivity]]:
    """Return the sensitivities of both classes of a contrast, by block.

    Args:
        model: a transformers causal language model, encoder-free.
        tokenizer: its tokenizer.
        contrast: the texts; the first two tokens of a bare text count as its prompt.
        layers: 0-based block indices, negative from the end.
        positions: which tokens will be steered, see `odesteer.models.hooks.positions`.
        mean: log-likelihoods in nats a token; False sums over the tokens of a response.
        draws: scores of each text, one more backward pass each; more make F less noisy.
        seed: of the drawn labels.
        max_tokens: longer texts lose their beginning, with a warning.
        batch_tokens: tokens in a pass, padding included; None: what suits the device. It bounds the
            memory of the backward pass.
        progress: called with (texts done, texts in all).
        cache: True or a folder keeps what is computed on disk, see `odesteer.activations`.

    Raises:
        ValueError: for a model with an encoder, a layer it does not have, unknown positions, or a
            text of one token, after which nothing is predicted.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} has an encoder: methods that learn through the model need a "
            f"decoder-only language model. Use a method that learns from activations, such as "
            f"odesteer."
        )
    rule = PositionRule.parse(positions)
    tokenized = texts(model, tokenizer, Contrast.of(contrast), "response", max_tokens)
    rows, starts = tokenized.rows, response_starts(tokenized)
    indices = sorted({layer_index(model, layer) for layer in layers})
    kind = f"sensitivity-{rule}-{'mean' if mean else 'sum'}-{draws}-{seed}"
    store = ActivationCache.of(cache, model, "residual", kind)
    results: dict[int, Tensor] = {}
    done = 0

    def keep(batch: Sequence[int], columns: dict[int, Tensor]) -> None:
        nonlocal done
        for index, values in columns.items():
            if index not in results:
                results[index] = torch.empty(len(rows), values.shape[1])
            results[index][list(batch)] = values
        done += len(batch)
        if progress is not None:
            progress(done, len(rows))

    size = batch_tokens or default_batch_tokens(input_device(model))
    vocabulary = int(text_config(model).vocab_size)
    run = _Backward(model, indices, rule, mean, draws, seed)
    with evaluating(model), frozen(model):
        for batch in batches(
            [len(row) for row in rows],
            tokens=size,
            weights=[(len(r) - s) * vocabulary for r, s in zip(rows, starts, strict=True)],
            weight=BATCH_LOGITS,
            longest_first=True,
        ):
            members, first = [rows[i] for i in batch], [starts[i] for i in batch]
            content = Content(members, first, [len(batch)])
            columns = {} if store is None else store.get(content, indices)
            if len(columns) < len(indices):
                columns = run(members, first)
                if store is not None:
                    store.put(content, columns)
            keep(batch, columns)
    if store is not None:
        store.close()
    n = len(tokenized.positive)
    both = {index: _unpacked(values, draws) for index, values in results.items()}
    return {
        index: (Sensitivity(*(x[:n] for x in each)), Sensitivity(*(x[n:] for x in each)))
        for index, each in both.items()
    }


def response_starts(tokenized: TokenizedTexts) -> list[int]:
    """Return where each text's response starts: its first predicted token.

    The first two tokens of a bare text count as its prompt, so that its first, which is often an
    attention sink, is not steered.

    Raises:
        ValueError: for a text of one token, after which nothing is predicted.
    """
    if min(map(len, tokenized.rows)) < 2:
        raise ValueError(
            "A text of a single token predicts nothing, so no likelihood can be measured; give "
            "texts of two tokens or more."
        )
    pairs = zip(tokenized.starts, tokenized.rows, strict=True)
    return [min(start or 2, len(row) - 1) for start, row in pairs]


def split_texts(
    model: nn.Module, tokenizer: Any, contrast: Contrast, max_tokens: int | None = None
) -> list[PromptWithAnswers]:
    """Split every text of a contrast, positives first, where its response starts; see `texts`."""
    tokenized = texts(model, tokenizer, contrast, "response", max_tokens)
    pairs = zip(tokenized.rows, response_starts(tokenized), strict=True)
    return [PromptWithAnswers(row[:start], [row[start:]]) for row, start in pairs]


def _unpacked(values: Tensor, draws: int) -> Sensitivity:
    """Split columns (margin, scores, activation, tokens) [n, (draws + 2) d + 1]."""
    width = (values.shape[1] - 1) // (draws + 2)
    margins, scores, activations, tokens = values.split([width, draws * width, width, 1], dim=1)
    return Sensitivity(margins, scores.unflatten(1, (draws, width)), activations, tokens[:, 0])


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Take no gradients of the weights while open, which would cost memory."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class _Backward:
    """Forward pass of a batch, and the backward passes from its log-likelihoods."""

    def __init__(
        self,
        model: nn.Module,
        indices: Sequence[int],
        positions: PositionRule,
        mean: bool,
        draws: int,
        seed: int,
    ):
        self._model, self._indices = model, indices
        self._positions, self._mean, self._draws, self._seed = positions, mean, draws, seed
        self._blocks, self._width = find_layers(model), hidden_size(model)
        self._device = input_device(model)

    def __call__(self, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> dict[int, Tensor]:
        """Return (margin, scores, activation, tokens) as columns [b, ...] of each block."""
        ids, mask = pad(rows, left=False, device=self._device)
        read = [(i, t) for i, s in enumerate(starts) for t in range(s - 1, len(rows[i]) - 1)]
        where = torch.tensor([i for i, _ in read]), torch.tensor([t for _, t in read])
        counts = torch.tensor([len(r) - s for r, s in zip(rows, starts, strict=True)])
        with torch.enable_grad(), self._recorded(tuple(ids.shape)) as hidden:
            logits = logits_at(self._model, where, input_ids=ids, attention_mask=mask)
            log_p = logits.float().log_softmax(dim=-1)
        if len(hidden) < len(self._indices):
            missing = min(set(self._indices) - set(hidden))
            raise RuntimeError(f"The model never ran its decoder block {missing}.")
        row, column = (index.to(log_p.device) for index in where)
        targets = ids.to(log_p.device)[row, column + 1]
        weights = (1.0 / counts if self._mean else torch.ones(len(counts))).to(log_p.device)[row]
        streams = [hidden[index] for index in self._indices]
        steered = [self._shifts(stream.detach(), mask, starts) for stream in streams]
        scale = _FLOAT16_SCALE if streams[0].dtype == torch.float16 else 1.0

        def gradient(labels: Tensor, weights: Tensor | float, last: bool) -> list[Tensor]:
            value = (log_p.gather(-1, labels[:, None])[:, 0] * weights).sum() * scale
            gradients = torch.autograd.grad(value, streams, retain_graph=not last)
            return [
                torch.einsum("btd,bt->bd", each.float(), shift).cpu() / scale
                for each, (shift, _) in zip(gradients, steered, strict=True)
            ]

        columns = [[each] for each in gradient(targets, weights, self._draws == 0)]
        cumulative = log_p.detach().exp().cumsum(dim=-1) if self._draws else log_p
        for draw in range(self._draws):
            uniform = torch.cat(
                [self._uniform(r, s, draw) for r, s in zip(rows, starts, strict=True)]
            )
            # Of the rounded total, so that no label is beyond the vocabulary.
            level = uniform.to(log_p.device) * cumulative[:, -1]
            labels = torch.searchsorted(cumulative, level[:, None])[:, 0]
            labels = labels.clamp_max(log_p.shape[-1] - 1)
            for part, each in zip(
                columns, gradient(labels, 1.0, draw + 1 == self._draws), strict=True
            ):
                part.append(each)
        for part, stream, (_, share) in zip(columns, streams, steered, strict=True):
            part.append(torch.einsum("btd,bt->bd", stream.detach().float(), share).cpu())
            part.append(counts[:, None].float())
        return {
            index: torch.cat(part, 1) for index, part in zip(self._indices, columns, strict=True)
        }

    def _shifts(self, stream: Tensor, mask: Tensor, starts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return ||a_t|| of steered tokens and 0 of others, and their share of a mean: [b, t]."""
        mask = mask.to(stream.device).bool()
        norms = stream.float().norm(dim=-1)
        median = norms.masked_fill(~mask, torch.nan).nanmedian(dim=1, keepdim=True).values
        start = torch.tensor(starts, device=mask.device)
        call = ForwardCall(0, start, mask, start - 1, mask=mask)
        selected = select_tokens(self._positions, call, stream)
        assert selected is not None  # the padding is known
        chosen = selected & (norms <= SINK * median)
        share = chosen / chosen.sum(dim=1, keepdim=True).clamp_min(1)
        return norms * chosen, share

    def _uniform(self, row: Sequence[int], start: int, draw: int) -> Tensor:
        """Return one number in [0, 1) for each predicted token, of the text alone."""
        content = np.array([self._seed, draw, start, *row], dtype="<i8").tobytes()
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "little")
        generator = np.random.default_rng(seed)
        return torch.from_numpy(generator.random(len(row) - start, dtype=np.float32))

    @contextmanager
    def _recorded(self, tokens: tuple[int, ...]) -> Iterator[dict[int, Tensor]]:
        """Record the streams after the blocks while open; the graph begins at the first of them."""
        hidden: dict[int, Tensor] = {}

        def record(index: int) -> Callable[..., Any]:
            def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
                stream = block_output(output, tokens, self._width)
                if index == self._indices[0]:
                    stream = stream.detach().requires_grad_(True)
                    output = replace_output(output, stream)
                hidden[index] = stream
                return output

            return hook

        with ExitStack() as undo:
            for index in self._indices:
                undo.callback(self._blocks[index].register_forward_hook(record(index)).remove)
            yield hidden
