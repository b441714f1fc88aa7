"""Given texts as tokens, and the packing of several answers to a prompt into one row.

    row         prompt, answer 1, answer 2, ...
    position    0 .. P - 1, P .. P + |1| - 2, P .. P + |2| - 2, ...
    sees        a token of the prompt: the prompt before it; of an answer: the prompt, and the
                tokens of its own answer before it

Each answer gets the log-probability that it would have in a row of its own, and the prompt is
computed once. An answer's last token is left out: nothing is predicted from it.

On 12 questions of TruthfulQA (SmolLM2-135M, one core) packed rows took 5.5 s, answers that
continue a cached prompt (`models.prefix_cache`) 8.9 s, and a row per answer 10.3 s.

Models that do not take such masks (recurrent ones, some with position biases) get one row per
answer. Rows are padded on the right: under a causal mask, real tokens cannot see what comes after
them.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesteer.data import Example
from odesteer.models import batching
from odesteer.models.chat_template import encode
from odesteer.models.layers import input_device

_PROMPTS = 16  # continued at once
_BATCH_TOKENS = 2048
_BATCH_LOGITS = 2**25  # 128 MB in float32, of which three or four live at once


class GivenText(NamedTuple):
    """Token ids of a prompt and of what follows; neither is empty."""

    prompt: list[int]
    answer: list[int]


def as_text(tokenizer: Any, example: Example, template: str) -> GivenText | None:
    """Split an example into a prompt and what follows; a bare text is halved.

    None for a text of less than two tokens, which has no such halves.
    """
    ids = encode(tokenizer, example.prompt, example.response, template)
    if len(ids) < 2:
        return None
    if example.prompt is None:
        start = (len(ids) + 1) // 2
    else:
        start = len(encode(tokenizer, example.prompt, None, template))
    # The last token is the response's own, should it have melted into its prompt's tokens.
    start = min(max(start, 1), len(ids) - 1)
    return GivenText(ids[:start], ids[start:])


def as_texts(
    tokenizer: Any, examples: Sequence[Example], template: str
) -> list[tuple[GivenText, Example]]:
    """Split those of the examples that have two tokens or more."""
    texts = [(as_text(tokenizer, example, template), example) for example in examples]
    return [(text, example) for text, example in texts if text is not None]


def continuations(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], new_tokens: int
) -> list[GivenText]:
    """Continue each prompt greedily, unsteered, up to the end-of-sequence token.

    Returns:
        Texts in the order of their prompts' lengths.
    """
    texts = []
    ends = batching.end_tokens(model, tokenizer)
    for batch in batching.batches([len(prompt) for prompt in prompts], rows=_PROMPTS):
        rows = [list(prompts[i]) for i in batch]
        ids, mask = batching.pad(rows, left=True, device=input_device(model))
        with torch.no_grad():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                do_sample=False,
                repetition_penalty=1.0,  # some models' own settings are not the model's argmax
                pad_token_id=0 if not ends else min(ends),
            )
        for prompt, row in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
            last = next((i for i, token in enumerate(row) if token in ends), len(row) - 1)
            texts.append(GivenText(prompt, row[: last + 1]))
    return texts


class PromptWithAnswers(NamedTuple):
    """Token ids of a prompt and of each answer to it; none is empty."""

    prompt: list[int]
    answers: list[list[int]]


class AnswerSlot(NamedTuple):
    """Index of a prompt, and of one of its answers."""

    prompt: int
    answer: int


class PackedBatch(NamedTuple):
    """Rows of a forward pass.

    Attributes:
        ids: [b, t].
        positions: [b, t].
        mask: [b, t] where a row holds one answer; else [b, 1, t, t], true where a token sees.
        prompts: [b], the length of each row's prompt.
        slots: the answers, in the order of `read`.
        read: (row, column) of every position whose logits are wanted: before each answer token.
        targets: [n], the token that stands after each of them.
        lengths: how many of them belong to each answer.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    prompts: Tensor
    slots: list[AnswerSlot]
    read: tuple[Tensor, Tensor]
    targets: Tensor
    lengths: list[int]

    def last(self) -> "PackedBatch":
        """Return the batch with only the last position of each answer read."""
        ends = torch.tensor(self.lengths).cumsum(dim=0) - 1
        read = (self.read[0][ends], self.read[1][ends])
        return self._replace(read=read, targets=self.targets[ends], lengths=[1] * len(ends))


def batches(
    prompts: Sequence[PromptWithAnswers], packed: bool, vocabulary: int = 1
) -> Iterator[PackedBatch]:
    """Yield all answers to all prompts, rows of similar length together.

    Args:
        prompts: with their answers.
        packed: all answers to a prompt in one row; else each in its own.
        vocabulary: logits per position, which bounds the batch.
    """
    rows: list[list[AnswerSlot]] = []
    for i, (_, answers) in enumerate(prompts):
        slots = [AnswerSlot(i, k) for k in range(len(answers))]
        rows += [slots] if packed else [[slot] for slot in slots]
    predicted = [sum(len(prompts[i].answers[k]) for i, k in row) for row in rows]
    widths = [
        len(prompts[row[0].prompt].prompt) + n - len(row)
        for row, n in zip(rows, predicted, strict=True)
    ]
    for batch in batching.batches(
        widths,
        tokens=_BATCH_TOKENS,
        weights=[n * vocabulary for n in predicted],
        weight=_BATCH_LOGITS,
        longest_first=True,
    ):
        yield make_batch(prompts, [rows[i] for i in batch], packed)


def make_batch(
    prompts: Sequence[PromptWithAnswers], rows: Sequence[Sequence[AnswerSlot]], packed: bool
) -> PackedBatch:
    """Make one batch; each row holds some answers to one prompt, only one unless `packed`."""
    tokens: list[list[int]] = []
    positions: list[list[int]] = []
    segments: list[list[int]] = []  # 0 for the prompt, k for the k-th answer of the batch
    slots: list[AnswerSlot] = []
    read: list[tuple[int, int]] = []
    targets: list[int] = []
    for row, row_slots in enumerate(rows):
        prompt = prompts[row_slots[0].prompt].prompt
        tokens.append(list(prompt))
        positions.append(list(range(len(prompt))))
        segments.append([0] * len(prompt))
        for slot in row_slots:
            answer, start = prompts[slot.prompt].answers[slot.answer], len(tokens[row])
            slots.append(slot)
            columns = [len(prompt) - 1, *range(start, start + len(answer) - 1)]
            read += [(row, column) for column in columns]
            targets += answer
            tokens[row] += answer[:-1]
            positions[row] += range(len(prompt), len(prompt) + len(answer) - 1)
            segments[row] += [len(slots)] * (len(answer) - 1)
    ids, mask = batching.pad(tokens, left=False)
    if packed:
        segment, _ = batching.pad(segments, -1, left=False)
        t = segment.shape[1]
        visible = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])
        mask = (visible & torch.ones(t, t, dtype=torch.bool).tril())[:, None]
    return PackedBatch(
        ids,
        batching.pad(positions, left=False)[0],
        mask,
        torch.tensor([len(prompts[row[0].prompt].prompt) for row in rows]),
        slots,
        (torch.tensor([row for row, _ in read]), torch.tensor([column for _, column in read])),
        torch.tensor(targets),
        [len(prompts[slot.prompt].answers[slot.answer]) for slot in slots],
    )
