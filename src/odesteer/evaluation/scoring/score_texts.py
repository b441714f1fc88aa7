"""Log-probabilities of given answers under many conditions, and their displacement.

One unsteered pass a batch, then one a condition in which the blocks below the steered one are
replayed (`odesteer.evaluation.scoring.layer_cache`) and logits are computed only where an answer's
token is predicted. For each answer y to a prompt x:

    logprob       sum_t log q(y_t | x, y_<t)                       q steered, in nats
    unsteered     sum_t log p(y_t | x, y_<t)                       p unsteered
    kl            sum_t sum_v p(v | ...) log p(v | ...) / q(v | ...)
    displacement  sum_t ||a_t(T) - a_t|| / ||a_t||                 at the first steered block

where a_t is the activation from which y_t is predicted.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from odesteer.evaluation.scoring.divergence import ROWS, kl
from odesteer.evaluation.scoring.layer_cache import LayerCache
from odesteer.evaluation.scoring.packing import PackedBatch, PromptWithAnswers, batches
from odesteer.models.hooks.attach import scoring
from odesteer.models.layers import block_output, find_layers, input_device, unwrap
from odesteer.steering import Steering

# Relative; packing rounds otherwise, and a mask that is not taken differs by far more.
TOLERANCE = 1e-3


class TextScore(NamedTuple):
    """Of one answer: how many tokens, and the sums of the equations above."""

    tokens: int
    logprob: float
    unsteered: float
    kl: float
    displacement: float


def score_texts(
    model: Any,
    asked: Sequence[PromptWithAnswers],
    steerings: Sequence[Steering | None],
    *,
    packed: bool = True,
    positions: str = "last+generated",
    compare: bool = True,
    progress: Callable[[int], None] | None = None,
) -> list[list[list[TextScore]]]:
    """By steering, by asked one, by answer.

    Args:
        model: a transformers causal language model, in eval mode.
        asked: prompts and answers.
        steerings: each with its dose; None is the unsteered model.
        packed: all answers to a prompt in one row, see `odesteer.evaluation.scoring.packing`.
        positions: which tokens are steered.
        compare: also KL and displacement, which are 0 without it.
        progress: called with the number of answers under one condition since the last call.
    """
    nothing = TextScore(0, 0.0, 0.0, 0.0, 0.0)
    found = [[[nothing] * len(one.answers) for one in asked] for _ in steerings]
    vocabulary = model.config.get_text_config().vocab_size
    for batch in batches(asked, packed, vocabulary):
        unsteered = Baseline(model, batch, steerings)
        for own, steering in zip(found, steerings, strict=True):
            heard = unsteered.under(steering, positions, compare)
            for place, one in zip(batch.places, heard, strict=True):
                own[place.asked][place.answer] = one
            if progress is not None:
                progress(len(batch.places))
    return found


def shifted(
    model: Any,
    plain: Sequence[PromptWithAnswers],
    prompted: Sequence[PromptWithAnswers],
    *,
    packed: bool = True,
) -> list[list[TextScore]]:
    """The unsteered model after other prompts: q is said after `prompted`, p after `plain`.

    Raises:
        ValueError: unless the answers are the same tokens after both.
    """
    if [one.answers for one in plain] != [one.answers for one in prompted]:
        raise ValueError("Answers can be compared only where they are the same tokens.")
    found: list[list[TextScore]] = []
    vocabulary = model.config.get_text_config().vocab_size
    for before, after in zip(plain, prompted, strict=True):
        # One at a time: rows of both are then in the same order, whatever their lengths.
        [one], [other] = (list(batches([x], packed, vocabulary)) for x in (before, after))
        log_p, log_q = (_log_probabilities(model, batch) for batch in (one, other))
        found.append(_sums(one, log_p, log_q, torch.zeros(len(log_p))))
    return found


def takes_packed(model: Any, asked: Sequence[PromptWithAnswers]) -> bool:
    """Whether the model gives packed answers what it gives each in a row of its own."""
    try:
        together = score_texts(model, asked, [None], packed=True, compare=False)[0]
    except Exception:
        # Whatever a model says to a mask that it does not know, it does not take it.
        return False
    apart = score_texts(model, asked, [None], packed=False, compare=False)[0]
    tolerance = max(TOLERANCE, 4 * torch.finfo(model.dtype).eps)
    return all(
        abs(one.logprob - other.logprob) <= tolerance * max(1.0, abs(other.logprob))
        for ones, others in zip(together, apart, strict=True)
        for one, other in zip(ones, others, strict=True)
    )


class Baseline:
    """What the unsteered model computes for one batch, kept to hear steerings against it.

    Args:
        model, batch: see `score_texts`.
        steerings: every one that will be asked for, at whatever dose.
    """

    def __init__(self, model: Any, batch: PackedBatch, steerings: Sequence[Steering | None]):
        self.batch = batch
        self._model, self._blocks = model, find_layers(model)
        firsts = {one.first_layer for one in steerings if one is not None}
        # With the steered block itself, whose unsteered output displacement is measured from.
        self._lower = LayerCache(self._blocks, {i for first in firsts for i in (first - 1, first)})
        with self._lower.recorded():
            self._log_p = _log_probabilities(model, batch)

    def under(
        self, steering: Steering | None, positions: str = "last+generated", compare: bool = True
    ) -> list[TextScore]:
        """By place of the batch."""
        batch, still = self.batch, torch.zeros(len(self.batch.targets))
        if steering is None:
            return _sums(batch, self._log_p, self._log_p, still)
        first = steering.first_layer
        seen: list[Tensor] = []
        with ExitStack() as undo:
            undo.enter_context(self._lower.replayed(first))
            undo.enter_context(scoring(self._model, batch.prompts.to(self._log_p.device)))
            undo.enter_context(steering.attach(self._model, positions=positions))
            if compare:
                undo.enter_context(_watched(self._blocks[first], batch, seen))
            log_q = _log_probabilities(self._model, batch)
        if not compare:
            return _sums(batch, self._log_p, log_q, still, compare)
        return _sums(
            batch, self._log_p, log_q, _displacement(self._lower.output(first), seen, batch)
        )


def _log_probabilities(model: Any, batch: PackedBatch) -> Tensor:
    """log-softmax at the positions that are read: [n, vocabulary] in float32."""
    device = input_device(model)
    mask = batch.mask.to(device)
    if mask.dim() == 4:
        # Added to the attention scores, the form that every attention implementation takes.
        low = torch.finfo(model.dtype).min
        mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill_(~mask, low)
    head = _head(model)
    with torch.no_grad(), nullcontext() if head is None else _only(head, batch.read):
        logits = model(
            input_ids=batch.ids.to(device),
            attention_mask=mask,
            position_ids=batch.positions.to(device),
            use_cache=False,
        ).logits
    # All positions are there where a model does not call its head as a module.
    chosen = logits[0] if logits.shape[:2] == (1, len(batch.targets)) else _at(logits, batch.read)
    chosen = chosen.float()
    for rows in chosen.split(ROWS):
        rows.copy_(rows.log_softmax(dim=-1))
    return chosen


def _head(model: Any) -> nn.Module | None:
    inner: Any = unwrap(model)
    return inner.get_output_embeddings()


@contextmanager
def _only(head: nn.Module, read: tuple[Tensor, Tensor]) -> Iterator[None]:
    """While open, the head sees those positions [n] of [b, t], as one row."""

    def select(_module: nn.Module, args: Any) -> Any:
        return (_at(args[0], read)[None], *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _watched(block: nn.Module, batch: PackedBatch, seen: list[Tensor]) -> Iterator[None]:
    def see(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(_at(block_output(output), batch.read))

    handle = block.register_forward_hook(see)
    try:
        yield
    finally:
        handle.remove()


def _at(hidden: Tensor, read: tuple[Tensor, Tensor]) -> Tensor:
    rows, columns = (index.to(hidden.device) for index in read)
    return hidden[rows, columns]


def _displacement(before: Tensor, seen: Sequence[Tensor], batch: PackedBatch) -> Tensor:
    a = _at(before, batch.read).float()
    length = (seen[-1].float() - a).norm(dim=-1)
    return (length / a.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)).cpu()


def _sums(
    batch: PackedBatch, log_p: Tensor, log_q: Tensor, moved: Tensor, compare: bool = True
) -> list[TextScore]:
    targets = batch.targets.to(log_p.device)[:, None]
    one = log_q.gather(-1, targets).flatten().cpu().double()
    other = log_p.gather(-1, targets).flatten().cpu().double()
    far = torch.zeros_like(one)
    if compare and log_q is not log_p:
        far = kl(log_p, log_q).cpu().double()
    columns = (one, other, far, moved.double())
    parts = zip(*(column.split(batch.lengths) for column in columns), strict=True)
    return [
        TextScore(tokens, *(float(part.sum()) for part in row))
        for tokens, row in zip(batch.lengths, parts, strict=True)
    ]
