"""Log-probabilities of given answers under many conditions.

One unsteered pass a batch, then one a condition in which the blocks below the steered one are
replayed (`odesteer.evaluation.scoring.replay`) and logits are computed only where an answer's
token is predicted. For each answer y to a prompt x:

    logprob       sum_t log q(y_t | x, y_<t)                       q steered, in nats
    unsteered     sum_t log p(y_t | x, y_<t)                       p unsteered
    kl            sum_t sum_v p(v | ...) log p(v | ...) / q(v | ...)
    displacement  sum_t ||a_t(T) - a_t|| / ||a_t||                 at the first steered block

where a_t is the activation from which y_t is predicted.

Packing of several answers to one prompt into one row.

    row         prompt, answer 1, answer 2, ...
    position    0 .. P - 1, P .. P + |1| - 2, P .. P + |2| - 2, ...
    sees        a token of the prompt: the prompt before it; of an answer: the prompt, and the
                tokens of its own answer before it

so that each answer gets the log-probability it would have had in a row of its own, and the
prompt is computed once. An answer's last token is left out: nothing is predicted from it.

Models that do not take such masks (recurrent ones, some with position biases) get a row an
answer. Rows are padded on the right: under a causal mask real tokens cannot see what comes after
them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from odesteer.evaluation.scoring.divergence import ROWS, kl
from odesteer.evaluation.scoring.replay import LayerCache
from odesteer.models.hooks.attach import scoring
from odesteer.models.layers import block_output, find_layers, input_device, unwrap
from odesteer.steering import Steering

_BATCH_TOKENS = 2048
_BATCH_LOGITS = 2**25  # 128 MB in float32, of which three or four live at once


class PromptWithAnswers(NamedTuple):
    """Token ids of a prompt and of each answer to it; none is empty."""

    prompt: list[int]
    answers: list[list[int]]


Row = tuple[int, Sequence[int]]  # an asked one's index, and those of its answers


class AnswerSlot(NamedTuple):
    """Where an answer stands: the asked one's index, the answer's, its row, its first token."""

    asked: int
    answer: int
    row: int
    start: int


class PackedBatch(NamedTuple):
    """Rows of a forward pass.

    Attributes:
        ids: [b, t].
        positions: [b, t].
        mask: [b, t] where a row holds one answer; else [b, 1, t, t], true where a token sees.
        prompts: [b], the length of each row's prompt.
        places: of the answers, in the order of `read`.
        read: (row, column) of every position whose logits are wanted: before each answer token.
        targets: [n], the token that stands after each of them.
        lengths: how many of them belong to each answer.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    prompts: Tensor
    places: list[AnswerSlot]
    read: tuple[Tensor, Tensor]
    targets: Tensor
    lengths: list[int]


def batches(
    asked: Sequence[PromptWithAnswers], packed: bool, vocabulary: int = 1
) -> Iterator[PackedBatch]:
    """All answers to all prompts, rows of similar length together.

    Args:
        asked: prompts and answers.
        packed: all answers to a prompt in one row; else each in its own.
        vocabulary: logits a position, which bounds the batch.
    """
    rows: list[Row] = [
        (i, some)
        for i, one in enumerate(asked)
        for some in (
            [range(len(one.answers))] if packed else [[k] for k in range(len(one.answers))]
        )
    ]

    def said(row: Row) -> int:
        return sum(len(asked[row[0]].answers[k]) for k in row[1])

    def width(row: Row) -> int:
        return len(asked[row[0]].prompt) + said(row) - len(row[1])

    batch: list[Row] = []
    widest = logits = 0
    for row in sorted(rows, key=lambda row: -width(row)):
        if batch and (
            widest * (len(batch) + 1) > _BATCH_TOKENS
            or (logits + said(row)) * vocabulary > _BATCH_LOGITS
        ):
            yield _batch(asked, batch, packed)
            batch, widest, logits = [], 0, 0
        batch.append(row)
        widest, logits = max(widest, width(row)), logits + said(row)
    if batch:
        yield _batch(asked, batch, packed)


def _batch(asked: Sequence[PromptWithAnswers], rows: Sequence[Row], packed: bool) -> PackedBatch:
    tokens: list[list[int]] = []
    positions: list[list[int]] = []
    segments: list[list[int]] = []  # 0 for the prompt, k for the k-th answer of the row
    places: list[AnswerSlot] = []
    read: list[tuple[int, int]] = []
    targets: list[int] = []
    for row, (i, some) in enumerate(rows):
        prompt = asked[i].prompt
        tokens.append(list(prompt))
        positions.append(list(range(len(prompt))))
        segments.append([0] * len(prompt))
        for k in some:
            answer, start = asked[i].answers[k], len(tokens[row])
            places.append(AnswerSlot(i, k, row, start))
            columns = [len(prompt) - 1, *range(start, start + len(answer) - 1)]
            read += [(row, column) for column in columns]
            targets += answer
            tokens[row] += answer[:-1]
            positions[row] += range(len(prompt), len(prompt) + len(answer) - 1)
            segments[row] += [len(places)] * (len(answer) - 1)
    segment = _padded(segments, -1)
    real = segment >= 0
    if packed:
        t = segment.shape[1]
        shared = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
        mask = (shared & torch.ones(t, t, dtype=torch.bool).tril())[:, None]
    else:
        mask = real.long()
    return PackedBatch(
        _padded(tokens, 0),
        _padded(positions, 0),
        mask,
        torch.tensor([len(asked[i].prompt) for i, _ in rows]),
        places,
        (torch.tensor([row for row, _ in read]), torch.tensor([column for _, column in read])),
        torch.tensor(targets),
        [len(asked[place.asked].answers[place.answer]) for place in places],
    )


def _padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


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
        packed: all answers to a prompt in one row, see `odesteer.evaluation.scoring.score_texts`.
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
