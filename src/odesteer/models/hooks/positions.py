"""Positions of a forward pass that a steering acts on.

    "last+generated"  the last token of the prompt and every generated one (the paper)
    "generated"       every generated token
    "prompt"          every token of the prompt
    "all"             every token
    "last"            the last token of the prompt
    "prompt[:4]"      a window of the prompt, as in Python: also [-4:], [2:10], [0]
    "generated[:32]"  a window of what is generated, from its first token: also [8:], [8:32], [0]
    + and -           unions and exclusions, from left to right: "all - prompt[:1]"
    a mask            [t] or [batch, t], true at the positions to steer, counted from the
                      start of the (padded) prompt

Windows count the real tokens of each row. Padding and the virtual tokens of a soft prompt (PEFT)
are neither counted nor steered. `odesteer.models.hooks.token_tracker` tells the kinds of tokens
apart.
"""

import difflib
import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from odesteer.common.catalogue import POSITIONS
from odesteer.common.limits import brief
from odesteer.models.hooks.token_tracker import ForwardCall

Positions = str | Tensor
Span = tuple[int, int | None]  # first position, and the one after the last; None without an end

_PARTS = ("all", "prompt", "generated", "last")
_LONGEST = 200
_TERM = re.compile(
    r"\s*(?P<part>[A-Za-z_]+)\s*"
    r"(?P<window>\[\s*(?P<start>-?[0-9]{1,9})?\s*(?P<colon>:)?\s*(?P<stop>-?[0-9]{1,9})?\s*\])?\s*"
)


@dataclass(frozen=True)
class Window:
    """Slice of the prompt or of what is generated, with the bounds of a Python slice.

    Attributes:
        part: "prompt", "generated", or "all" for both, which has no bounds.
        start: of the first token; negative ones count from the prompt's end.
        stop: after the last token; None without a bound.
    """

    part: str
    start: int = 0
    stop: int | None = None

    def __str__(self) -> str:
        if (self.start, self.stop) == (0, None):
            return self.part
        if self == LAST:
            return "last"
        return f"{self.part}[{self.start or ''}:{'' if self.stop is None else self.stop}]"

    def contains(self, index: Tensor, length: Tensor | int) -> Tensor:
        """Return which tokens are inside; see `PositionRule.contains`."""
        if self.part == "all":
            return index >= 0
        if self.part == "generated":
            inside = index >= length + self.start
            return inside if self.stop is None else inside & (index < length + self.stop)
        inside = index < length
        if self.start:
            inside &= index >= (self.start if self.start > 0 else length + self.start)
        if self.stop is not None:
            inside &= index < (self.stop if self.stop >= 0 else length + self.stop)
        return inside

    def edges(self, length: int) -> list[int]:
        """Return the positions at which `contains` may change, for a prompt of that length."""
        bounds = [self.start] if self.stop is None else [self.start, self.stop]
        after = self.part == "generated"
        return [length + bound if after or bound < 0 else bound for bound in bounds]


LAST = Window("prompt", -1)


@dataclass(frozen=True)
class PositionRule:
    """Choice of tokens: windows joined by + and taken out by -, from left to right.

    >>> rule = PositionRule.parse("all - prompt[0:1]")
    >>> str(rule), rule.spans(5)
    ('all-prompt[:1]', ((1, None),))

    Attributes:
        text: the canonical form, which `parse` reads.
        terms: a sign, "+" or "-", and a window each.
    """

    text: str
    terms: tuple[tuple[str, Window], ...] = field(compare=False, repr=False)

    @staticmethod
    def parse(text: str) -> "PositionRule":
        """Read a rule, written as in this module's docstring.

        Raises:
            ValueError: for anything else, in one line.
        """
        if not isinstance(text, str):
            raise _refusal(type(text).__name__, "it is no text and no mask")
        if len(text) > _LONGEST:
            raise _refusal(text, f"it has more than {_LONGEST} characters")
        return _parse(text)

    def __str__(self) -> str:
        return self.text

    @property
    def everything(self) -> bool:
        """Whether it is "all", the one rule that does not tell prompts from what follows."""
        return self.text == "all"

    @property
    def after_prompt(self) -> bool:
        """Whether it is written without any token before the prompt's last one."""
        early = [w for sign, w in self.terms if sign == "+" and w.part != "generated"]
        return all(window == LAST for window in early)

    @cached_property
    def generated(self) -> tuple[Span, ...]:
        """The spans of generated tokens, counted from the first of them."""
        return self.spans(0)

    @cached_property
    def counts_prompt(self) -> bool:
        """Whether it has windows of the prompt, so that its tokens have to be counted."""
        words = (Window("prompt"), LAST)
        return any(w.part == "prompt" and w not in words for _, w in self.terms)

    def contains(self, index: Tensor, length: Tensor | int, last: Tensor | None = None) -> Tensor:
        """Return which tokens are chosen.

        Args:
            index: of each token among the real ones of its text, from 0 on.
            length: the number of real tokens of the prompt; of a shape that broadcasts.
            last: the index of the prompt's last token, for a rule without windows of the prompt
                whose other arguments count padding as well.
        """
        chosen: Tensor | None = None
        for sign, window in self.terms:
            if last is not None and window == LAST:
                inside = index == last
            else:
                inside = window.contains(index, length)
            if chosen is None:
                chosen = inside
            else:
                chosen = chosen | inside if sign == "+" else chosen & ~inside
        assert chosen is not None  # a rule has a term
        return chosen

    def spans(self, length: int) -> tuple[Span, ...]:
        """Return the chosen positions of a text without padding as disjoint, ascending spans.

        Args:
            length: the number of tokens of the prompt.
        """
        windows = [window for _, window in self.terms]
        edges = {0, length, *(edge for window in windows for edge in window.edges(length))}
        bounds = sorted(edge for edge in edges if edge >= 0)
        spans: list[Span] = []
        chosen = self.contains(torch.tensor(bounds), length).tolist()
        for first, inside, stop in zip(bounds, chosen, [*bounds[1:], None], strict=True):
            if inside and spans and spans[-1][1] == first:
                spans[-1] = (spans[-1][0], stop)
            elif inside:
                spans.append((first, stop))
        return tuple(spans)


def parse_positions(positions: Positions) -> PositionRule | Tensor:
    """Return a mask as it is, and anything else parsed; see `PositionRule.parse`."""
    return positions if isinstance(positions, Tensor) else PositionRule.parse(positions)


def check_packed(obstacle: str, positions: PositionRule | Tensor, rows: bool, prompt: bool) -> None:
    """Raise if prompts must be told from generated tokens and cannot be.

    A wrong guess would be silent.

    Args:
        obstacle: why they cannot be told apart: several texts share a row, or the like.
        positions: which tokens.
        rows: whether rows of the batch are told apart.
        prompt: whether the field reads the prompt.

    Raises:
        ValueError: naming the obstacle and what cannot be done because of it.
    """
    mask = isinstance(positions, Tensor)
    selection = "a mask of positions" if mask else f"positions='{positions}'"
    selective = {
        selection: isinstance(positions, Tensor) or not positions.everything,
        "rows of their own": rows,
        "a field that reads the prompt": prompt,
    }
    obstacles = " and ".join(name for name, selects in selective.items() if selects)
    if obstacles:
        raise ValueError(
            f"{obstacle}, where {obstacles} would mean other tokens than asked for. Use "
            f"positions='all', or plain `generate` and batches with padding."
        )


def select_tokens(
    positions: PositionRule | Tensor, call: ForwardCall, hidden: Tensor
) -> Tensor | None:
    """Return a mask [b, t] of the tokens of `hidden` to steer; None for all.

    Raises:
        ValueError: if a mask is of another batch, or windows of generated tokens cannot be told.
    """
    batch, t = hidden.shape[:2]
    device = hidden.device
    if isinstance(positions, Tensor):
        position = call.offset + torch.arange(t, device=device)
        return _given(positions.to(device), position, batch)
    real = None if call.real is None else call.real.to(device)
    if positions.everything:
        return real
    if not call.prompt_known and positions.generated not in ((), ((0, None),)):
        raise ValueError(
            f"positions='{positions}' counts generated tokens, and a cache of this kind does not "
            f"say where its prompt ended: use `generate`, or the words "
            f"{', '.join(POSITIONS[:-1])} or {POSITIONS[-1]}."
        )
    length = call.prompt_length
    if isinstance(length, int) and call.offset >= length:
        first = call.offset - length
        if any(
            start <= first and (stop is None or first + t <= stop)
            for start, stop in positions.generated
        ):
            return real
        mask = positions.contains(first + torch.arange(t, device=device), 0)
    elif positions.counts_prompt:
        mask = positions.contains(*call.indices(t, device))
    else:
        position = call.offset + torch.arange(t, device=device)
        padded = length.to(device)[:, None] if isinstance(length, Tensor) else length
        mask = positions.contains(position, padded, call.prompt_ends(batch, device)[:, None])
    mask = mask.expand(batch, t)
    return mask if real is None else mask & real


@lru_cache(maxsize=1024)
def _parse(text: str) -> PositionRule:
    terms: list[tuple[str, Window]] = []
    sign, end = "+", 0
    while True:
        match = _TERM.match(text, end)
        if match is None:
            rest = brief(text[end:], 20)
            raise _refusal(text, f"'{rest}' is no word" if rest else "a word is missing")
        terms.append((sign, _window(text, match)))
        end = match.end()
        if end == len(text):
            break
        sign = text[end]
        if sign not in "+-":
            raise _refusal(text, f"'{brief(text[end:], 20)}' is no window and no sign")
        end += 1
    canonical = "".join(f"{sign}{window}" for sign, window in terms)
    rule = PositionRule(canonical.removeprefix("+"), tuple(terms))
    if any(sign == "-" for sign, _ in terms):
        # In longer prompts windows from both ends do not meet.
        longest = 2 + sum(abs(bound) for _, window in terms for bound in window.edges(0))
        if not any(rule.spans(length) for length in (longest, *range(min(longest, 32)))):
            raise _refusal(text, "it leaves no token")
    return rule


def _window(text: str, match: re.Match[str]) -> Window:
    """Return the window of a matched term."""
    part, written = match["part"], match[0].strip()
    if part not in _PARTS:
        close = difflib.get_close_matches(part, _PARTS, n=1)
        hint = f", did you mean '{close[0]}'?" if close else ""
        raise _refusal(text, f"no tokens are called '{brief(part, 40)}'{hint}")
    if match["window"] is None:
        return LAST if part == "last" else Window(part)
    if part not in ("prompt", "generated"):
        raise _refusal(text, f"'{part}' has no windows, prompt and generated have")
    start, stop = (None if match[name] is None else int(match[name]) for name in ("start", "stop"))
    if match["colon"] is None:
        if start is None or stop is not None:
            raise _refusal(text, f"'{written}' is no window")
        stop = None if start == -1 else start + 1
    if part == "generated" and min(start or 0, stop or 0) < 0:
        raise _refusal(text, f"'{written}' counts from an end that is not known yet")
    start = start or 0
    if stop is not None and (stop == 0 or ((start < 0) == (stop < 0) and start >= stop)):
        raise _refusal(text, f"'{written}' is empty")
    return Window(part, start, stop)


def _refusal(text: str, reason: str) -> ValueError:
    return ValueError(
        f"positions='{brief(text, 60)}': {reason}; use one of {', '.join(POSITIONS)}, last, or "
        f"windows such as 'prompt[:4]+generated[:32]' or 'all-prompt[:1]'."
    )


def _given(mask: Tensor, position: Tensor, batch: int) -> Tensor:
    """Look up the user's mask at positions; false before its start and beyond its end."""
    mask = mask.bool().reshape(-1, mask.shape[-1])
    if batch % len(mask):
        raise ValueError(
            f"The positions mask has {len(mask)} rows; the model is running a batch of {batch}."
        )
    inside = (position >= 0) & (position < mask.shape[-1])
    values = mask[:, position.clamp(0, mask.shape[-1] - 1)] & inside
    return values.repeat_interleave(batch // len(mask), dim=0)  # beams
