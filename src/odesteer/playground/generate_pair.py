"""Simultaneous generation of the unsteered and the steered text.

Both texts are written token by token, the unsteered one beside the steered one in a batch. The
model is locked for one token at a time, and the steering is on it for no longer: several people
take turns, and a person who leaves leaves nothing behind.

The values of a token are those of the position that wrote it: the last token read before it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from odesteer.models.batching import end_tokens
from odesteer.models.generation import Sampling
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


class Stream:
    """Batch of rows with one prompt, read once and continued token by token."""

    def __init__(
        self,
        shared: SharedModel,
        prompt: Sequence[int],
        steerings: list[Steering | None],
        positions: Positions,
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
            for row, steering in enumerate(self._steerings):
                if steering is not None:
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
        for row, steering in enumerate(self._steerings):
            # Several layers would need every layer's prompt; no method makes such steerings.
            if (
                steering is not None
                and len(steering.parts) == 1
                and steering.field.prompt_conditioned
            ):
                velocity = steering.only.velocity(prompt[row])
                fixed = GivenField(velocity, steering.field.barrier)
                self._steerings[row] = steering.replace(field=fixed)


@contextmanager
def _watched(model: nn.Module, part: LayerSteering) -> Iterator[list[Tensor]]:
    """Collect the last activations [rows, d] where `part` acts, after a forward pass."""
    assert part.layer is not None
    block = find_layers(model)[layer_index(model, part.layer)]
    seen: list[Tensor] = []
    width = hidden_size(model)

    def on_output(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(block_output(output, None, width)[:, -1].float().clone())

    def on_input(_module: nn.Module, args: Any) -> None:
        seen.append(args[0][:, -1].float().clone())

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
    """

    tokens: list[GeneratedToken] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    starts: list[Tensor] = field(default_factory=list)
    ends: list[Tensor] = field(default_factory=list)
    ended: bool = False
    perplexity: float | None = None

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
    prompts: tuple[Sequence[int], Sequence[int]],
    steering: Steering,
    positions: Positions = "last+generated",
    sampling: Sampling = Sampling(),
) -> Iterator[tuple[GeneratedText, GeneratedText]]:
    """Write the unsteered and the steered text, and yield them as they grow.

    Args:
        shared: the model.
        prompts: token ids for the unsteered and for the steered text (in a chat they differ).
        steering: of the second text.
        positions: tokens that it acts on.
        sampling: of both texts, which use the same random draws.

    Yields:
        (unsteered, steered), the same two objects each time; with perplexities at the end.
    """
    texts = (GeneratedText(), GeneratedText())
    part = steering.parts[-1]
    if list(prompts[0]) == list(prompts[1]):
        streams = [Stream(shared, prompts[0], [None, steering], positions, part)]
        sides = [list(texts)]
    else:
        streams = [
            Stream(shared, prompt, [row], positions, part)
            for prompt, row in zip(prompts, (None, steering), strict=True)
        ]
        sides = [[text] for text in texts]
    draws = [torch.Generator().manual_seed(sampling.seed) for _ in texts]
    end_ids = end_tokens(shared.model, shared.tokenizer)
    for _ in range(sampling.max_new_tokens):
        for stream, side in zip(streams, sides, strict=True):
            if all(text.ended for text in side):
                continue
            logits, before, after = stream.step()
            chosen = []
            for row, text in enumerate(side):
                draw = draws[0] if text is texts[0] else draws[1]
                token = _pick(logits[row], sampling, draw)
                chosen.append(token)
                text.ended = text.ended or token in end_ids
                if not text.ended:
                    _append(text, shared.tokenizer, token, before[row], after[row], part)
            stream.feed(chosen)
        yield texts
        if all(text.ended for text in texts):
            break
    for prompt, text in zip(prompts, texts, strict=True):
        text.perplexity = perplexity(shared, prompt, text.ids)
    yield texts


def perplexity(shared: SharedModel, prompt: Sequence[int], ids: Sequence[int]) -> float | None:
    """Return exp of the mean loss of `ids` after `prompt`, unsteered; None for no ids."""
    if not ids:
        return None
    whole = torch.tensor([[*prompt, *ids]], device=input_device(shared.model))
    with shared.lock, torch.no_grad():
        logits = shared.model(input_ids=whole).logits[0, len(prompt) - 1 : -1].float()
    targets = whole[0, len(prompt) :].to(logits.device)
    return float(nn.functional.cross_entropy(logits, targets).exp())


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


def _pick(logits: Tensor, sampling: Sampling, draw: torch.Generator) -> int:
    if sampling.temperature <= 0:
        return int(logits.argmax())
    chances = torch.softmax(logits / sampling.temperature, dim=-1)
    return int(torch.multinomial(chances, 1, generator=draw))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
