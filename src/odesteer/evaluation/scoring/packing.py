"""Packing of several answers to one prompt into one row.

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

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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
