"""Simultaneous generation of the unsteered text and of steered ones.

The texts are written token by token, side by side in a batch. The model is locked for one token at
a time, and the steerings are on it for no longer: several people take turns, and a person who
leaves leaves nothing behind.

The values of a token are those of the position that wrote it: the last token read before it. The
first steered side's barrier gives those of all sides, so that they can be compared.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from odesteer.models.batching import end_tokens
from odesteer.models.generation import Sampling, whole_sentences
from odesteer.models.hooks.positions import Positions
from odesteer.models.layers import (
    attention_output,
    block_output,
    find_layers,
    hidden_size,
    input_device,
    layer_index,
)
from odesteer.ode import GivenField
from odesteer.playground.library import SharedModel
from odesteer.steering import LayerSteering, Steering

# On one side: none, one, or two of which the second is attached after the first.
Steerings = tuple[Steering, ...]
# Of models that name no sampling of their own: greedy texts of small models fall into loops.
REPETITION_PENALTY = 1.1


def own_sampling(model: Any) -> Sampling:
    """Return the sampling that a model's generation config names, or a greedy one without loops."""
    config = model.generation_config
    penalty = float(config.repetition_penalty or 1.0)
    if not config.do_sample:
        return Sampling(repetition_penalty=penalty if penalty > 1.0 else REPETITION_PENALTY)
    temperature = 1.0 if config.temperature is None else float(config.temperature)
    return Sampling(temperature=temperature, top_p=config.top_p or 1.0, repetition_penalty=penalty)


class Stream:
    """Batch of rows with one prompt, read once and continued token by token."""

    def __init__(
        self,
        shared: SharedModel,
        prompt: Sequence[int],
        steerings: list[Steerings],
        positions: Positions | None,
        part: LayerSteering,
    ):
        if not prompt:
            raise ValueError("The prompt is empty; write something for the model to answer.")
        self._shared = shared
        self._steerings = steerings
        self._positions = positions
        self._part = part
        self._cache: Any = None
        ids = torch.tensor([list(prompt)], device=input_device(shared.model))
        self._next = ids.expand(len(steerings), -1)

    def step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Run the model once: logits [rows, v], last activations before and after, [rows, d]."""
        model = self._shared.model
        with self._shared.lock, torch.no_grad(), ExitStack() as stack:
            before = stack.enter_context(_watched(model, self._part))
            for row, steerings in enumerate(self._steerings):
                for steering in steerings:
                    stack.enter_context(
                        steering.attach(model, positions=self._positions, rows=[row])
                    )
            after = stack.enter_context(_watched(model, self._part))
            output = model(input_ids=self._next, past_key_values=self._cache, use_cache=True)
        if getattr(output, "past_key_values", None) is None:
            raise ValueError(
                f"{type(model).__name__} keeps no keys and values, and the page writes token by "
                f"token; use `odesteer generate`."
            )
        if self._cache is None:
            self._freeze(before[0])
        self._cache = output.past_key_values
        return output.logits[:, -1].float().cpu(), before[0], after[0]

    def feed(self, tokens: list[int]) -> None:
        """Set the next token of each row."""
        self._next = torch.tensor(tokens, device=self._next.device)[:, None]

    def _freeze(self, prompt: Tensor) -> None:
        """Keep what a prompt-conditioned field read; the handle that kept it is gone."""
        for row, steerings in enumerate(self._steerings):
            # Several layers would need every layer's prompt; no method makes such steerings.
            first = steerings[0] if steerings else None
            if first is not None and len(first.parts) == 1 and first.field.prompt_conditioned:
                velocity = first.only.velocity(prompt[row])
                fixed = GivenField(velocity, first.field.barrier)
                self._steerings[row] = (first.replace(field=fixed), *steerings[1:])


@contextmanager
def _watched(model: nn.Module, part: LayerSteering, start: int = -1) -> Iterator[list[Tensor]]:
    """Collect the activations where `part` acts, after a forward pass.

    [rows, d] of the last position; [rows, n, d] from a `start` that is not negative.
    """
    which = -1 if start < 0 else slice(start, None)
    assert part.layer is not None
    block = find_layers(model)[layer_index(model, part.layer)]
    seen: list[Tensor] = []
    width = hidden_size(model)

    def on_output(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(block_output(output, None, width)[:, which].float().clone())

    def on_input(_module: nn.Module, args: Any) -> None:
        seen.append(args[0][:, which].float().clone())

    if part.site == "heads":
        hook = attention_output(block).register_forward_pre_hook(on_input)
    else:
        hook = block.register_forward_hook(on_output)
    try:
        yield seen
    finally:
        hook.remove()


@dataclass(frozen=True)
class GeneratedToken:
    """One token of a text.

    Attributes:
        text: decoded.
        before, after: calibrated log-odds at the position that wrote it, without and with the
            steering; None where the method has no barrier.
        moved: ||a(T) - a||.
        relative: ||a(T) - a|| / ||a||.
    """

    text: str
    before: float | None
    after: float | None
    moved: float
    relative: float


@dataclass
class GeneratedText:
    """Generated text, complete or not.

    Attributes:
        tokens: text and values of each token.
        ids: their ids.
        starts: the activations that wrote them before steering, [d] each.
        ends: the same after steering.
        ended: whether the model has ended it.
        perplexity: under the unsteered model; None until the text is complete, or empty.
        log_odds: of the whole text, as the unsteered model reads it; None as well without a
            barrier.
    """

    tokens: list[GeneratedToken] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    starts: list[Tensor] = field(default_factory=list)
    ends: list[Tensor] = field(default_factory=list)
    ended: bool = False
    perplexity: float | None = None
    log_odds: float | None = None

    def cut(self) -> None:
        """Leave out what follows the last whole sentence, if there is one before it."""
        end = len(whole_sentences(self.text))
        if self.ended or end == len(self.text):
            return
        length = kept = 0
        while length < end:
            length += len(self.tokens[kept].text)
            kept += 1
        for values in (self.tokens, self.ids, self.starts, self.ends):
            del values[kept:]

    @property
    def text(self) -> str:
        """Text of all tokens."""
        return "".join(token.text for token in self.tokens)

    @property
    def share_moved(self) -> float:
        """Share of tokens that were moved."""
        return _mean([float(token.moved > 0) for token in self.tokens])

    @property
    def displacement(self) -> float:
        """Mean ||a(T) - a|| over all tokens."""
        return _mean([token.moved for token in self.tokens])

    @property
    def relative_displacement(self) -> float:
        """Mean ||a(T) - a|| / ||a|| over all tokens."""
        return _mean([token.relative for token in self.tokens])


def write(
    shared: SharedModel,
    prompts: Sequence[Sequence[int]],
    sides: Sequence[Steerings],
    positions: Positions | None = None,
    sampling: Sampling = Sampling(),
) -> Iterator[tuple[GeneratedText, ...]]:
    """Write a text a side, and yield all as they grow.

    Args:
        shared: the model.
        prompts: token ids for each side (in a chat they differ).
        sides: what steers each of at least two sides; the second's first steering is the one whose
            barrier is shown.
        positions: tokens that they act on; None: each steering's own.
        sampling: of all texts, which use the same random draws.

    Yields:
        a text a side, the same objects each time; at the end without half a sentence, and with
        perplexities.
    """
    texts = tuple(GeneratedText() for _ in sides)
    part = sides[1][0].parts[-1]
    rows: dict[tuple[int, ...], list[int]] = {}
    for side, prompt in enumerate(prompts):
        rows.setdefault(tuple(prompt), []).append(side)
    streams = {
        prompt: Stream(shared, prompt, [sides[side] for side in chosen], positions, part)
        for prompt, chosen in rows.items()
    }
    draws = [torch.Generator().manual_seed(sampling.seed) for _ in sides]
    process = _processors(shared.model, sampling)
    end_ids = end_tokens(shared.model, shared.tokenizer)
    for _ in range(sampling.max_new_tokens):
        for prompt, stream in streams.items():
            if all(texts[side].ended for side in rows[prompt]):
                continue
            logits, before, after = stream.step()
            chosen = []
            for row, side in enumerate(rows[prompt]):
                text = texts[side]
                read: Any = torch.tensor([[*prompt, *text.ids]])
                scores = process(read, logits[row : row + 1])[0]
                token = _pick(scores, sampling, draws[side])
                chosen.append(token)
                text.ended = text.ended or token in end_ids
                if not text.ended:
                    _append(text, shared.tokenizer, token, before[row], after[row], part)
            stream.feed(chosen)
        yield texts
        if all(text.ended for text in texts):
            break
    for prompt, text in zip(prompts, texts, strict=True):
        text.cut()
        text.perplexity, text.log_odds = read_again(shared, prompt, text.ids, part)
    yield texts


def read_again(
    shared: SharedModel, prompt: Sequence[int], ids: Sequence[int], part: LayerSteering
) -> tuple[float | None, float | None]:
    """Let the unsteered model read `ids` after `prompt`.

    Returns:
        perplexity, exp of the mean loss, and the calibrated log-odds of the text at the layer of
        `part`, read at the tokens that `part` was fitted on. None for no ids, or no barrier.
    """
    if not ids:
        return None, None
    whole = torch.tensor([[*prompt, *ids]], device=input_device(shared.model))
    watched = _watched(shared.model, part, start=len(prompt))
    with shared.lock, torch.no_grad(), watched as seen:
        logits = shared.model(input_ids=whole).logits[0, len(prompt) - 1 : -1].float()
    targets = whole[0, len(prompt) :].to(logits.device)
    perplexity = float(nn.functional.cross_entropy(logits, targets).exp())
    if part.field.barrier is None:
        return perplexity, None
    last = part.receipts.get("tokens", "last") == "last"
    return perplexity, float(part.log_odds(seen[0][0, -1] if last else seen[0][0].mean(dim=0)))


def _append(
    text: GeneratedText,
    tokenizer: Any,
    token: int,
    before: Tensor,
    after: Tensor,
    part: LayerSteering,
) -> None:
    text.ids.append(token)
    whole = tokenizer.decode(text.ids, skip_special_tokens=True)
    # Half a character is shown with the token that completes it.
    new = "" if whole.endswith("\ufffd") else whole[len(text.text) :]
    has = part.field.barrier is not None
    moved = float((after - before).norm())
    text.tokens.append(
        GeneratedToken(
            text=new,
            before=float(part.log_odds(before)) if has else None,
            after=float(part.log_odds(after)) if has else None,
            moved=moved,
            relative=moved / max(float(before.norm()), torch.finfo(torch.float32).tiny),
        )
    )
    text.starts.append(before.cpu())
    text.ends.append(after.cpu())


def _processors(model: Any, sampling: Sampling) -> LogitsProcessorList:
    """Return what `generate` of transformers does to the logits for a sampling."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature > 0:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
        processors.append(TopKLogitsWarper(model.generation_config.top_k or 50))
        if sampling.top_p < 1.0:
            processors.append(TopPLogitsWarper(sampling.top_p))
    return processors


def _pick(scores: Tensor, sampling: Sampling, draw: torch.Generator) -> int:
    if sampling.temperature <= 0:
        return int(scores.argmax())
    return int(torch.multinomial(torch.softmax(scores, dim=-1), 1, generator=draw))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
