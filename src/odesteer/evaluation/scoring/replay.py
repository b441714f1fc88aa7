"""Replay of given texts under a steering, from cached lower blocks.

A text is a prompt and what follows it; steered are the prompt's last token and all that
follow, as in generation. Blocks below the first steered one compute what they compute
unsteered, so their outputs are replayed instead: the result is the same to the bit, in about
half the time.

Cache of the blocks below a steered layer.

They compute what they compute unsteered, so what the last of them gave the unsteered model is
given again: to the bit the same. Works with any block, since all it replaces is its `forward`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from odesteer.data import Example
from odesteer.models.chat_template import encode
from odesteer.models.hooks.attach import scoring
from odesteer.models.layers import Blocks, block_output, find_layers, input_device
from odesteer.steering import Steering


class LayerCache:
    """What some blocks of a model gave for one batch.

    Args:
        blocks: of the model, first to last.
        keep: indices of those that are recorded.
    """

    def __init__(self, blocks: Blocks, keep: Iterable[int]):
        self._blocks = blocks
        self._keep = {index for index in keep if index >= 0}
        self._outputs: dict[int, Any] = {}

    def output(self, index: int) -> Tensor:
        """The recorded stream [b, t, d] after a block."""
        return block_output(self._outputs[index])

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """While open, a forward pass of the unsteered model is recorded."""
        with ExitStack() as undo:
            for i in self._keep:
                block = self._blocks[i]
                undo.enter_context(_forward_is(block, self._recording(block.forward, i)))
            yield

    @contextmanager
    def replayed(self, below: int) -> Iterator[None]:
        """While open, the first `below` blocks give what the last of them gave, unasked."""
        with ExitStack() as undo:
            for block in self._blocks[:below]:
                undo.enter_context(_forward_is(block, _always(self._outputs[below - 1])))
            yield

    def _recording(self, original: Callable[..., Any], i: int) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            self._outputs[i] = original(*args, **kwargs)
            return self._outputs[i]

        return forward


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: value


@contextmanager
def _forward_is(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another `forward` in the instance; it is taken out again, or what was there put back."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


_BATCH_TOKENS = 2048
_BATCH_LOGITS = 2**23  # 32 MB in float32, of which three or four live at once


class GivenText(NamedTuple):
    """Token ids of a prompt and of what follows; neither is empty."""

    prompt: list[int]
    answer: list[int]


class ReplayPass(NamedTuple):
    """One forward pass over a batch, whose rows are padded on the left.

    `logits`: [b, keep, vocabulary] at the last `keep` positions. `hidden`: [b, d] in float32,
    the output of the block asked for at each row's last token; None where none was.
    """

    logits: Tensor
    hidden: Tensor | None


class ReplayStats(NamedTuple):
    """A batch of texts (their indices), unsteered and under one of the steerings (its index)."""

    texts: list[int]
    steering: int
    unsteered: ReplayPass
    steered: ReplayPass


def as_text(tokenizer: Any, example: Example, template: str) -> GivenText | None:
    """An example as a prompt and what follows; a bare text's first half counts as its prompt.

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
    """Those of the examples that have two tokens or more."""
    texts = [(as_text(tokenizer, example, template), example) for example in examples]
    return [(text, example) for text, example in texts if text is not None]


def replay(
    model: nn.Module,
    texts: Sequence[GivenText],
    steerings: Sequence[Steering],
    *,
    block: int | None = None,
    keep: int | None = None,
    vocabulary: int = 1,
) -> Iterator[ReplayStats]:
    """Every batch of texts under every steering, batch by batch: nothing large is kept.

    Args:
        model: a transformers causal language model, in eval mode.
        texts: what is written.
        steerings: each with its dose.
        block: whose output is read at each text's last token; None for no block.
        keep: logits of so many last positions; None: of every answer's tokens (the position
            before each).
        vocabulary: how many logits a position has, which bounds the batch.
    """
    below = {steering.first_layer - 1 for steering in steerings}
    for batch in _batches(texts, vocabulary if keep is None else 1):
        rows = [texts[i] for i in batch]
        wanted = keep or 1 + max(len(row.answer) for row in rows)
        run = _runner(model, rows, block, wanted, below)
        unsteered = run(None)
        for number, steering in enumerate(steerings):
            yield ReplayStats(batch, number, unsteered, run(steering))


def padded(model: nn.Module, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and mask [b, t], padded on the left, on the model's device."""
    width = max(len(row) for row in rows)
    device = input_device(model)
    # Which token pads does not matter: it is masked everywhere.
    ids = [[0] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _runner(
    model: Any, rows: Sequence[GivenText], block: int | None, wanted: int, below: set[int]
) -> Callable[[Steering | None], ReplayPass]:
    """A pass over the rows; the first one, unsteered, records the blocks right below."""
    blocks = find_layers(model)
    lower = LayerCache(blocks, below)
    ids, mask = padded(model, [row.prompt + row.answer for row in rows])
    prompts = torch.tensor([ids.shape[1] - len(row.answer) for row in rows], device=ids.device)
    seen: dict[str, Tensor] = {}

    def forward() -> ReplayPass:
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp_min(0),
            logits_to_keep=wanted,
            use_cache=False,
        ).logits
        return ReplayPass(logits, seen.get("hidden"))

    def see(_module: nn.Module, _args: Any, output: Any) -> None:
        hidden = block_output(output)
        seen["hidden"] = hidden[:, -1].float()

    def run(steering: Steering | None) -> ReplayPass:
        with ExitStack() as undo, torch.no_grad():
            undo.enter_context(scoring(model, prompts))
            if steering is None:
                undo.enter_context(lower.recorded())
            else:
                undo.enter_context(lower.replayed(steering.first_layer))
                undo.enter_context(steering.attach(model))
            if block is not None:
                undo.callback(blocks[block].register_forward_hook(see).remove)
            return forward()

    return run


def _batches(texts: Sequence[GivenText], vocabulary: int) -> Iterator[list[int]]:
    """Indices of texts of similar length, so many that neither tokens nor logits are too many."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i].prompt) - len(texts[i].answer))
    batch: list[int] = []
    tokens = logits = 0
    for i in order:
        wide = max(tokens, len(texts[i].prompt) + len(texts[i].answer))
        kept = max(logits, (1 + len(texts[i].answer)) * vocabulary)
        size = len(batch) + 1
        if batch and (wide * size > _BATCH_TOKENS or kept * size > _BATCH_LOGITS):
            yield batch
            batch, wide = [], len(texts[i].prompt) + len(texts[i].answer)
            kept = (1 + len(texts[i].answer)) * vocabulary
        batch.append(i)
        tokens, logits = wide, kept
    if batch:
        yield batch
