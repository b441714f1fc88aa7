"""HTML of a text whose tokens carry barrier values.

Everything a person or a model wrote is escaped.
"""

import math
from collections.abc import Sequence
from html import escape

from odesteer.playground.generate_pair import GeneratedText, GeneratedToken
from odesteer.playground.session import Turn
from odesteer.playground.svg_charts import FULL

EMPTY = (
    '<div class="pg-two"><section class="pg-side"><h3>Unsteered</h3></section>'
    '<section class="pg-side"><h3>Steered</h3><p class="pg-wait">Generate, and then move the '
    "angle: the texts follow.</p></section></div>"
)
KEY = (
    '<p class="pg-key"><span><i style="background:color-mix(in srgb,var(--pg-wanted) 55%,'
    'transparent)"></i>wanted, h &gt; 0</span><span><i style="background:color-mix(in srgb,'
    'var(--pg-unwanted) 55%,transparent)"></i>unwanted, h &lt; 0</span><span>background: after '
    "steering; underline: before</span><span>point at a token, or use Tab and the arrow keys"
    "</span></p>"
)
_STRONGEST = 60  # per cent of a colour, at which the ink on it is still read easily


def texts(
    turns: Sequence[Turn],
    prompt: str,
    pair: tuple[GeneratedText, GeneratedText],
    label: str,
    writing: bool,
) -> str:
    """Render both texts side by side, after the earlier turns of a chat."""
    sides = []
    for side, (title, text) in enumerate(zip(("Unsteered", label), pair, strict=True)):
        earlier = "".join(
            f'<p class="pg-said">{escape(turn.prompt)}</p><p>{escape(turn.texts[side])}</p>'
            for turn in turns
        )
        question = f'<p class="pg-said">{escape(prompt)}</p>' if turns else ""
        caret = '<span class="pg-caret"></span>' if writing and not text.ended else ""
        if not text.text.strip() and not caret:
            caret = '<i class="pg-wait">nothing: the model ended at once</i>'
        sides.append(
            f'<section class="pg-side" aria-label="{escape(title)} text"><h3>{escape(title)}</h3>'
            f'{earlier}{question}<p class="pg-text" data-side="{side}" '
            f'aria-busy="{str(writing).lower()}">{_tokens(text.tokens)}{caret}</p></section>'
        )
    return f'<div class="pg-two">{"".join(sides)}</div>'


def _tokens(tokens: Sequence[GeneratedToken]) -> str:
    return "".join(
        f'<span class="tok" data-i="{i}" tabindex="{0 if i == 0 else -1}" style="{_style(token)}" '
        f'data-tip="{escape(tip(token))}">{escape(token.text)}</span>'
        for i, token in enumerate(tokens)
    )


def _style(token: GeneratedToken) -> str:
    if token.before is None or token.after is None:
        return ""
    return f"--now:{_colour(token.after)};--was:{_colour(token.before)}"


def _colour(log_odds: float) -> str:
    share = min(abs(log_odds) / FULL, 1.0) * _STRONGEST
    name = "wanted" if log_odds >= 0 else "unwanted"
    return f"color-mix(in srgb,var(--pg-{name}) {share:.0f}%,transparent)"


def tip(token: GeneratedToken) -> str:
    """Describe a token that is pointed at."""
    if token.before is None or token.after is None:
        return f"moved by {token.relative:.2f} of its norm; this method has no barrier"
    if token.moved == 0:
        return f"h = {token.before:+.2f}, P(wanted) = {probability(token.before)}; not moved"
    return (
        f"h = {token.before:+.2f} → {token.after:+.2f}, P(wanted) = {probability(token.before)} → "
        f"{probability(token.after)}; moved by {token.relative:.2f} of its norm"
    )


def probability(log_odds: float) -> str:
    """Format sigmoid(h) as a percentage."""
    return f"{1.0 / (1.0 + math.exp(-max(min(log_odds, 50.0), -50.0))):.0%}"


def facts(pair: tuple[GeneratedText, GeneratedText]) -> str:
    """Render how much was moved and what it cost, as a row of numbers."""
    plain, steered = pair
    if not steered.tokens:
        return ""
    cells = [
        ("tokens moved", f"{steered.share_moved:.0%}"),
        (
            "mean displacement",
            f"{steered.displacement:.1f} <small>{steered.relative_displacement:.2f} ‖a‖</small>",
        ),
    ]
    before, after = _mean_odds(steered.tokens)
    if before is not None and after is not None:
        cells.append(("mean h of the steered text", f"{before:+.1f} → {after:+.1f}"))
    if steered.perplexity is not None:
        first = "–" if plain.perplexity is None else f"{plain.perplexity:.1f}"
        cells.append(("perplexity, unsteered → steered", f"{first} → {steered.perplexity:.1f}"))
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cells)
    return f'<dl class="pg-facts">{items}</dl>'


def _mean_odds(tokens: Sequence[GeneratedToken]) -> tuple[float | None, float | None]:
    before = [token.before for token in tokens if token.before is not None]
    after = [token.after for token in tokens if token.after is not None]
    if not before or not after:
        return None, None
    return sum(before) / len(before), sum(after) / len(after)


def error(words: object) -> str:
    """Render an error on one line."""
    line = " ".join(str(words).split()) or type(words).__name__
    return f'<p class="pg-error" role="alert">{escape(line)}</p>'


def note(words: str) -> str:
    """Render a line that is not an error."""
    return f'<p class="pg-note" role="status">{escape(words)}</p>'
