"""Log-probabilities, KL and displacement of given answers under many steerings.

One unsteered pass per batch, then one per steering in which the blocks below the steered one are
replayed: they compute what they compute unsteered, so their outputs are given again, to the bit
the same, in about half the time. Logits are computed only where an answer's token is predicted.
For each answer y to a prompt x:

    logprob       sum_t log q(y_t | x, y_<t)                       q steered, in nats
    unsteered     sum_t log p(y_t | x, y_<t)                       p unsteered
    kl            sum_t sum_v p(v | ...) log p(v | ...) / q(v | ...)
    displacement  sum_t ||a_t(T) - a_t|| / ||a_t||                 at the first steered block

where a_t is the activation from which y_t is predicted. Steered are the prompt's last token and
all that follow, as in generation.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from odesteer.extraction.packing import (
    GivenText,
    PackedBatch,
    PromptWithAnswers,
    batches,
)
from odesteer.models.capture import at, logits_at
from odesteer.models.hooks.attach import scoring
from odesteer.models.layers import Blocks, block_output, find_layers, input_device
from odesteer.steering import Steering

ROWS = 16  # of the vocabulary's size: few enough to stay in a processor's cache
# Relative; packing rounds otherwise, and a mask that is not taken differs by far more.
TOLERANCE = 1e-3


class TextScore(NamedTuple):
    """Number of tokens of one answer, and the sums of the equations above."""

    tokens: int
    logprob: float
    unsteered: float
    kl: float
    displacement: float


class TokenScores(NamedTuple):
    """Terms of the sums above, [t] each, one per token."""

    logprob: Tensor
    unsteered: Tensor
    kl: Tensor
    displacement: Tensor

    def sums(self) -> TextScore:
        """Return the sums over the tokens."""
        return TextScore(len(self.kl), *(float(term.double().sum()) for term in self))


class SteeredPass(NamedTuple):
    """Results of a forward pass at the n positions that are read.

    Attributes:
        log_q: [n, vocabulary] in float32.
        hidden: [n, d], the output of the block that was asked for; None without one.
    """

    log_q: Tensor
    hidden: Tensor | None


class LayerCache:
    """Outputs of some blocks of a model for one batch.

    Works with any block, since all it replaces is the block's `forward`.

    Args:
        blocks: of the model, first to last.
        keep: indices of those that are recorded.
    """

    def __init__(self, blocks: Blocks, keep: Iterable[int]):
        self._blocks = blocks
        self._keep = {index for index in keep if index >= 0}
        self._outputs: dict[int, Any] = {}

    def output(self, index: int) -> Tensor:
        """Return the recorded stream [b, t, d] after a block."""
        return block_output(self._outputs[index])

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record a forward pass of the unsteered model while open."""
        with ExitStack() as undo:
            for i in self._keep:
                block = self._blocks[i]
                undo.enter_context(_forward_is(block, self._recording(block.forward, i)))
            yield

    @contextmanager
    def replayed(self, below: int) -> Iterator[None]:
        """Make the first `below` blocks return the recorded output of their last while open."""
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
    """Replace `forward` of the instance while open, and put back what was there."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


class Baseline:
    """Unsteered pass over one batch, with which steered ones are compared.

    Args:
        model, batch: see `score_texts`.
        steerings: every one that will be asked for, at whatever dose.
    """

    def __init__(self, model: Any, batch: PackedBatch, steerings: Sequence[Steering | None]):
        self.batch = batch
        self._model, self._blocks = model, find_layers(model)
        firsts = {steering.first_layer for steering in steerings if steering is not None}
        # With the steered block itself, whose unsteered output displacement is measured from.
        self._lower = LayerCache(self._blocks, {i for first in firsts for i in (first - 1, first)})
        with self._lower.recorded():
            self.log_p = log_probabilities(model, batch)

    def run(
        self, steering: Steering, positions: str = "last+generated", block: int | None = None
    ) -> SteeredPass:
        """Run the batch under a steering; `block`: whose output is returned as well."""
        hidden: list[Tensor] = []
        with ExitStack() as undo:
            undo.enter_context(self._lower.replayed(steering.first_layer))
            undo.enter_context(scoring(self._model, self.batch.prompts.to(self.log_p.device)))
            undo.enter_context(steering.attach(self._model, positions=positions))
            if block is not None:
                undo.enter_context(_watched(self._blocks[block], self.batch, hidden))
            log_q = log_probabilities(self._model, self.batch)
        return SteeredPass(log_q, hidden[-1] if hidden else None)

    def compare(
        self, steering: Steering | None, positions: str = "last+generated", damage: bool = True
    ) -> list[TokenScores]:
        """Score each answer of the batch; without `damage`, KL and displacement are 0."""
        if steering is None:
            return compared(self.batch, self.log_p, self.log_p)
        first = steering.first_layer
        log_q, hidden = self.run(steering, positions, first if damage else None)
        if hidden is None:
            return compared(self.batch, self.log_p, log_q, damage=damage)
        a = at(self._lower.output(first), self.batch.read).float()
        length = (hidden.float() - a).norm(dim=-1)
        relative = length / a.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        return compared(self.batch, self.log_p, log_q, relative.cpu())


def score_texts(
    model: Any,
    prompts: Sequence[PromptWithAnswers],
    steerings: Sequence[Steering | None],
    **settings: Any,
) -> list[list[list[TextScore]]]:
    """Return the sums of `score_tokens`, whose keyword arguments it takes."""
    tokens = score_tokens(model, prompts, steerings, **settings)
    return [[[scores.sums() for scores in row] for row in rows] for rows in tokens]


def score_tokens(
    model: Any,
    prompts: Sequence[PromptWithAnswers],
    steerings: Sequence[Steering | None],
    *,
    packed: bool = True,
    positions: str = "last+generated",
    compare: bool = True,
    progress: Callable[[int], None] | None = None,
    passes: Iterable["Baseline"] | None = None,
) -> list[list[list[TokenScores]]]:
    """Score every token of every answer to every prompt under every steering.

    Args:
        model: a transformers causal language model, in eval mode.
        prompts: with their answers.
        steerings: each with its dose; None is the unsteered model.
        packed: all answers to a prompt in one row, see `odesteer.extraction.packing`.
        positions: which tokens are steered.
        compare: also KL and displacement, which are 0 without it.
        progress: called with the number of answers under one condition since the last call.
        passes: the unsteered passes over these prompts, if they are kept; see `baselines`.

    Returns:
        Scores by steering, prompt and answer.
    """
    nothing = TokenScores(*[torch.empty(0)] * 4)
    results = [[[nothing] * len(prompt.answers) for prompt in prompts] for _ in steerings]
    for baseline in passes or baselines(model, prompts, steerings, packed=packed):
        for rows, steering in zip(results, steerings, strict=True):
            scores = baseline.compare(steering, positions, compare)
            for slot, score in zip(baseline.batch.slots, scores, strict=True):
                rows[slot.prompt][slot.answer] = score
            if progress is not None:
                progress(len(scores))
    return results


class Damage(NamedTuple):
    """Damage over all tokens of texts that the unsteered model wrote; 0, 0 and 1 without any.

    The mean KL says how much changes on the whole; its 95th percentile says how bad the worst
    tokens are, which is where fluency breaks. The perplexity ratio exp(mean(log p - log q)) says
    how much less likely the model finds its own words.
    """

    kl: float  # mean, nats a token
    kl_95: float  # 95th percentile over tokens
    perplexity_ratio: float
    tokens: int


def measure_damage(
    model: nn.Module,
    texts: Sequence[GivenText],
    steerings: Sequence[Steering],
    progress: Callable[[int], None] | None = None,
) -> list[Damage]:
    """Measure the damage that each steering does to texts, see `continuations`."""
    rows = [PromptWithAnswers(text.prompt, [text.answer]) for text in texts]
    results = []
    for scores in score_tokens(model, rows, steerings, packed=False, progress=progress):
        p, q, kl = (
            torch.cat([getattr(tokens, name) for [tokens] in scores]).double()
            for name in ("unsteered", "logprob", "kl")
        )
        kl_95 = float(np.quantile(kl.numpy(), 0.95))
        results.append(Damage(float(kl.mean()), kl_95, float((p - q).mean().exp()), len(kl)))
    return results


def baselines(
    model: Any,
    prompts: Sequence[PromptWithAnswers],
    steerings: Sequence[Steering | None],
    *,
    packed: bool,
) -> Iterator[Baseline]:
    """Yield the unsteered pass of each batch; nothing large is kept between them."""
    for batch in batches(prompts, packed, vocabulary_size(model)):
        yield Baseline(model, batch, steerings)


def last_activations(
    model: Any,
    texts: Sequence[GivenText],
    steerings: Sequence[Steering],
    block: int,
    progress: Callable[[int], None],
) -> Iterator[tuple[int, list[int], Tensor]]:
    """Yield the output [b, d] of a block at the last token of texts that are read steered.

    Args:
        model: a transformers causal language model, in eval mode.
        texts: what is read.
        steerings: each with its dose.
        block: whose output is read.
        progress: called with the number of texts since the last call.

    Yields:
        Index of the steering, indices of the texts, their activations.
    """
    # A row leaves out its last token: one more, and all of the text is read.
    rows = [PromptWithAnswers(text.prompt, [[*text.answer, 0]]) for text in texts]
    for batch in batches(rows, packed=False):
        baseline = Baseline(model, batch.last(), steerings)
        for number, steering in enumerate(steerings):
            hidden = baseline.run(steering, block=block).hidden
            assert hidden is not None  # a block was given
            yield number, [slot.prompt for slot in batch.slots], hidden
            progress(len(batch.slots))


def compare_prompts(
    model: Any,
    plain: Sequence[PromptWithAnswers],
    prompted: Sequence[PromptWithAnswers],
    *,
    packed: bool = True,
) -> list[list[TextScore]]:
    """Score answers after other prompts: q stands after `prompted`, p after `plain`.

    Raises:
        ValueError: unless the answers are the same tokens after both.
    """
    if [prompt.answers for prompt in plain] != [prompt.answers for prompt in prompted]:
        raise ValueError("Answers can be compared only where they are the same tokens.")
    scores: list[list[TextScore]] = []
    for pair in zip(plain, prompted, strict=True):
        # One at a time: rows of both are then in the same order, whatever their lengths.
        [before], [after] = (list(batches([x], packed, vocabulary_size(model))) for x in pair)
        log_p, log_q = (log_probabilities(model, batch) for batch in (before, after))
        scores.append([tokens.sums() for tokens in compared(before, log_p, log_q)])
    return scores


def takes_packed(model: Any, prompts: Sequence[PromptWithAnswers]) -> bool:
    """Return whether the model gives packed answers what it gives each in a row of its own."""
    try:
        together = score_texts(model, prompts, [None], packed=True, compare=False)[0]
    except Exception:
        # Any exception means that the model does not support 4-D masks.
        return False
    apart = score_texts(model, prompts, [None], packed=False, compare=False)[0]
    tolerance = max(TOLERANCE, 4 * torch.finfo(model.dtype).eps)
    return all(
        abs(a.logprob - b.logprob) <= tolerance * max(1.0, abs(b.logprob))
        for row, other in zip(together, apart, strict=True)
        for a, b in zip(row, other, strict=True)
    )


def compared(
    batch: PackedBatch,
    log_p: Tensor,
    log_q: Tensor,
    displacement: Tensor | None = None,
    damage: bool = True,
) -> list[TokenScores]:
    """Compare two log-softmaxes [n, vocabulary] over a batch, answer by answer."""
    targets = batch.targets.to(log_p.device)[:, None]
    zeros = torch.zeros(len(targets))
    same = log_q is log_p or not damage
    columns = (
        log_q.gather(-1, targets).flatten().cpu(),
        log_p.gather(-1, targets).flatten().cpu(),
        zeros if same else kl(log_p, log_q).cpu(),
        zeros if displacement is None else displacement,
    )
    parts = zip(*(column.split(batch.lengths) for column in columns), strict=True)
    return [TokenScores(*part) for part in parts]


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) in nats, [..., vocabulary] -> [...]; rounding never makes it negative."""
    flat = (log_p.reshape(-1, log_p.shape[-1]), log_q.reshape(-1, log_q.shape[-1]))
    # So many rows at a time are four times as fast as all, to the same bits.
    parts = zip(*(rows.split(ROWS) for rows in flat), strict=True)
    sums = [(p.exp() * (p - q)).sum(dim=-1) for p, q in parts]
    return torch.cat(sums).clamp_min(0.0).reshape(log_p.shape[:-1])


def vocabulary_size(model: Any) -> int:
    """Return the number of logits per position."""
    return int(model.config.get_text_config().vocab_size)


def log_probabilities(model: Any, batch: PackedBatch, gradients: bool = False) -> Tensor:
    """Return the log-softmax at the positions that are read: [n, vocabulary] in float32."""
    device = input_device(model)
    mask = batch.mask.to(device)
    if mask.dim() == 4:
        # Added to the attention scores, the form that every attention implementation takes.
        low = torch.finfo(model.dtype).min
        mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill_(~mask, low)
    with torch.set_grad_enabled(gradients):
        chosen = logits_at(
            model,
            batch.read,
            input_ids=batch.ids.to(device),
            attention_mask=mask,
            position_ids=batch.positions.to(device),
        )
    chosen = chosen.float()
    if gradients:
        return chosen.log_softmax(dim=-1)
    for rows in chosen.split(ROWS):
        rows.copy_(rows.log_softmax(dim=-1))
    return chosen


@contextmanager
def _watched(block: nn.Module, batch: PackedBatch, hidden: list[Tensor]) -> Iterator[None]:
    def see(_module: nn.Module, _args: Any, output: Any) -> None:
        hidden.append(at(block_output(output), batch.read))

    handle = block.register_forward_hook(see)
    try:
        yield
    finally:
        handle.remove()
