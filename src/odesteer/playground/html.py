"""HTML of a text whose tokens carry barrier values.

Everything a person or a model wrote is escaped.
"""

import math
from collections.abc import Sequence
from html import escape

from odesteer.data import Contrast
from odesteer.evaluation.assessment import BREAKS, NOTHING, WEAK, WORKS, Assessment
from odesteer.playground.session import Session
from odesteer.playground.side_by_side import GeneratedText, GeneratedToken
from odesteer.playground.svg_charts import FULL

EMPTY = (
    '<div class="pg-sides"><section class="pg-side"><h3>Unsteered</h3></section>'
    '<section class="pg-side"><h3>Steered</h3><p class="pg-wait">Generate, and then move the '
    "slider: the texts follow.</p></section></div>"
)
KEY = (
    '<p class="pg-key"><span><i style="background:color-mix(in srgb,var(--pg-wanted) 55%,'
    'transparent)"></i>as wanted</span><span><i style="background:color-mix(in srgb,'
    'var(--pg-unwanted) 55%,transparent)"></i>not as wanted</span><span>background: after '
    "steering; underline: before</span><span>point at a word, or use Tab and the arrow keys"
    "</span></p>"
)
# What a verdict means, and what to do.
WORDS = {
    WORKS: ("works", "Move the slider for more or less of it."),
    WEAK: ("has a weak effect", "Move the slider up, or give more examples, or plainer ones."),
    NOTHING: ("changes nothing", "Move the slider up, or give examples that show it more plainly."),
    BREAKS: ("breaks the text", "Move the slider down, or choose another layer."),
}
_STRONGEST = 60  # per cent of a colour, at which the ink on it is still read easily


def texts(session: Session, titles: Sequence[str], wanted: str, writing: bool) -> str:
    """Render the texts of a session side by side, after the earlier turns of a chat."""
    sides = []
    for side, (title, text) in enumerate(zip(titles, session.texts, strict=True)):
        earlier = "".join(
            f'<p class="pg-said">{escape(turn.prompt)}</p><p>{escape(turn.text(side))}</p>'
            for turn in session.turns
        )
        question = f'<p class="pg-said">{escape(session.prompt)}</p>' if session.turns else ""
        caret = '<span class="pg-caret"></span>' if writing and not text.ended else ""
        if not text.text.strip() and not caret:
            caret = '<i class="pg-wait">nothing: the model ended at once</i>'
        sides.append(
            f'<section class="pg-side" aria-label="{escape(title)} text"><h3>{escape(title)}</h3>'
            f'{earlier}{question}<p class="pg-text" data-side="{side}" '
            f'aria-busy="{str(writing).lower()}">{_tokens(text.tokens)}{caret}</p>'
            f"{_reading(text, wanted)}</section>"
        )
    return f'<div class="pg-sides">{"".join(sides)}</div>'


def _reading(text: GeneratedText, wanted: str) -> str:
    """Render what the unsteered model finds when it reads a complete text."""
    if text.perplexity is None:
        return ""
    words = f"perplexity (surprise) {text.perplexity:.1f}"
    if text.log_odds is not None:
        share = f"<strong>{probability(text.log_odds)}</strong>"
        words = f"{share} probability that this is {escape(wanted)} · {words}"
    return f'<p class="pg-read">{words}</p>'


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
    moved = f"moved by {token.relative:.0%} of its size" if token.moved else "not moved"
    if token.before is None or token.after is None:
        return f"{moved}; this method gives no probabilities"
    change = "" if not token.moved else f" → {probability(token.after)}"
    return f"probability {probability(token.before)}{change}; {moved}"


def probability(log_odds: float) -> str:
    """Format sigmoid(h) as a percentage."""
    return f"{1.0 / (1.0 + math.exp(-max(min(log_odds, 50.0), -50.0))):.0%}"


def facts(text: GeneratedText) -> str:
    """Render how much of the steered text was moved, as a row of numbers."""
    cells = [
        ("tokens moved", f"{text.share_moved:.0%}"),
        (
            "mean displacement",
            f"{text.displacement:.1f} <small>{text.relative_displacement:.2f} ‖a‖</small>",
        ),
    ]
    odds = [
        (t.before, t.after) for t in text.tokens if t.before is not None and t.after is not None
    ]
    if odds:
        before, after = (sum(values) / len(odds) for values in zip(*odds, strict=True))
        cells.append(("mean log-odds h", f"{before:+.1f} → {after:+.1f}"))
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cells)
    return f'<dl class="pg-facts">{items}</dl>'


def verdict(name: str, contrast: Contrast, assessment: Assessment) -> str:
    """Render a verdict in plain words, with its effect, interval and cost."""
    effect, (does, advice) = assessment.effect, WORDS[assessment.verdict]
    counts = f"{len(contrast.positive)} positive and {len(contrast.negative)} negative examples"
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in assessment.warnings)
    return (
        f'<div class="pg-verdict" role="status" data-verdict="{assessment.verdict}">'
        f"<p><b>{escape(name)} {does}.</b> In {effect.n} answers, the text moved by "
        f"{effect.mean:+.0%} of the distance from unwanted to wanted examples (95 % interval "
        f"{effect.low:+.0%} to {effect.high:+.0%}); the unsteered model finds it "
        f"{assessment.perplexity_ratio:.1f} times as surprising. {advice}</p>"
        f'<p class="pg-note">Learnt from {counts}. The slider stands at the dose that the answers '
        f"allow.</p>{f'<ul>{warnings}</ul>' if warnings else ''}</div>"
    )


def link(query: str) -> str:
    """Render a link that restores a state."""
    return (
        '<p class="pg-note">What you fitted or saved yourself is not in this link: '
        f'<a href="?{escape(query)}">the page as it is now</a></p>'
    )


def error(words: object) -> str:
    """Render an error on one line."""
    line = " ".join(str(words).split()) or type(words).__name__
    return f'<p class="pg-error" role="alert">{escape(line)}</p>'


def note(words: str) -> str:
    """Render a line that is not an error."""
    return f'<p class="pg-note" role="status">{escape(words)}</p>'
