"""HTML of texts whose tokens carry barrier values, and SVG charts of the tokens' paths.

Everything a person or a model wrote is escaped. Charts use the page's colours, light or dark. Each
token's path has `data-way`, by which the page highlights it without the server.
"""

import base64
import io
import math
from collections.abc import Sequence
from html import escape

import contourpy
import numpy as np
from matplotlib.image import imsave

from odesteer.data import Contrast
from odesteer.evaluation.assessment import BREAKS, NOTHING, OPPOSITE, WEAK, WORKS, Assessment
from odesteer.playground.session import Session
from odesteer.playground.side_by_side import GeneratedText, GeneratedToken
from odesteer.playground.token_paths import PhasePortrait, TokenPaths

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
    OPPOSITE: (
        "moves the text the other way",
        "Let the model choose the direction: take the method natural-gradient.",
    ),
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


_WIDE, _HIGH, _LEFT, _BOTTOM = 460.0, 300.0, 44.0, 40.0
# Blue is wanted and orange is not, as everywhere on the page; readable on white and on black.
WANTED, UNWANTED = (0, 114, 178), (213, 94, 0)
FULL = 5.0  # nats at which a colour is at its strongest


def flow(paths: TokenPaths, words: Sequence[str]) -> str:
    """Draw h along the path of each token."""
    if paths.h is None:
        return _none("This method has no barrier, so there is no h to draw.")
    x_top = max(float(paths.length.max()), 1e-3)
    low, high = min(float(paths.h.min()), 0.0), max(float(paths.h.max()), 0.0)
    room = 0.08 * max(high - low, 1.0)
    low, high = low - room, high + room

    def project(x: np.ndarray, y: np.ndarray) -> str:
        px = _LEFT + (_WIDE - _LEFT - 8) * x / x_top
        py = (_HIGH - _BOTTOM) * (1 - (y - low) / (high - low)) + 4
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(px, py, strict=True))

    zero = project(np.array([0.0, x_top]), np.zeros(2))
    ticks = "".join(
        f'<text x="{_LEFT - 6}" y="{project(np.zeros(1), np.array([v])).split(",")[1]}" dy=".32em" '
        f'text-anchor="end">{v:g}</text>'
        for v in _ticks(low, high)
    )
    across = "".join(
        f'<text x="{project(np.array([v]), np.zeros(1)).split(",")[0]}" y="{_HIGH - _BOTTOM + 19}" '
        f'text-anchor="middle">{v:g}</text>'
        for v in _ticks(0.0, x_top)
    )
    lines = "".join(
        f'<g class="way" data-way="{i}"><polyline points="'
        f'{project(paths.length[:, i], paths.h[:, i])}"/>'
        f"{_dots(project(paths.length[:, i], paths.h[:, i]))}</g>"
        for i in range(len(words))
    )
    zero_y = float(zero.split()[0].split(",")[1])
    body = (
        f'<polyline class="zero" points="{zero}"/><text class="faint" x="{_WIDE - 10}" '
        f'y="{zero_y - 5:.1f}" text-anchor="end">h = 0</text>{ticks}{across}{lines}'
        f'<text x="{(_LEFT + _WIDE) / 2}" y="{_HIGH - 5}" text-anchor="middle">'
        "path length / ‖a‖</text>"
    )
    return _figure(
        "h along the flow",
        body,
        "Log-odds of the wanted class from where each token was written to where the steering "
        "took it. Point at a token to light up its way.",
    )


def portrait(plane: PhasePortrait) -> str:
    """Draw a plane with h, v and the path of each token."""
    span = plane.high - plane.low
    wide, high = _WIDE, _HIGH

    def project(xy: np.ndarray) -> np.ndarray:
        return (xy - plane.low) / span * [wide, -high] + [0, high]

    body = ""
    if plane.h is not None:
        body += (
            f'<image href="{_shade(plane.h)}" width="{wide}" height="{high}" '
            'preserveAspectRatio="none"/>'
        )
        for line in contourpy.contour_generator(z=plane.h).lines(0.0):
            rows, columns = plane.h.shape
            xy = (np.asarray(line) + 0.5) / [columns, rows] * span + plane.low
            body += f'<polyline class="level" points="{_pairs(project(xy))}"/>'
    length = np.linalg.norm(plane.arrows, axis=1, keepdims=True)
    unit = plane.arrows / np.maximum(length, 1e-12)
    for at, to in zip(project(plane.arrow_starts), unit * [1, -1], strict=True):
        if np.abs(to).max() > 0:
            tip = at + 13 * to
            side = 3.0 * np.array([-to[1], to[0]])
            back = tip - 4.5 * to
            head = _pairs(np.stack([back + side, tip, back - side]))
            body += f'<polyline class="arrow" points="{_pairs(np.stack([at, tip]))} {head}"/>'
    for i in range(plane.tracks.shape[1]):
        points = _pairs(project(plane.tracks[:, i]))
        body += f'<g class="way" data-way="{i}"><polyline points="{points}"/>{_dots(points)}</g>'
    return _figure(
        "Phase portrait",
        body,
        "The plane of the mean displacement (across) and of what else varies most (up), with h "
        f"and v on it: blue is wanted, the line is h = 0. It holds {plane.share:.0%} of the "
        "displacements; ways are projected onto it, so a token's own h may differ.",
    )


def _ticks(low: float, high: float) -> list[float]:
    raw = max((high - low) / 4, 1e-9)
    unit = 10 ** np.floor(np.log10(raw))
    step = unit * min((1, 2, 5, 10), key=lambda m: abs(m * unit - raw))
    first = np.ceil(low / step)
    return [round(float(k * step), 6) + 0.0 for k in np.arange(first, high / step + 1e-9)]


def _shade(h: np.ndarray) -> str:
    """Encode h as a PNG, one pixel per value, top row first; the browser smooths it."""
    share = np.clip(np.abs(h) / FULL, 0.0, 1.0)
    colour = np.where((h >= 0)[..., None], WANTED, UNWANTED)
    pixels = np.concatenate([colour, 130 * share[..., None]], axis=-1).astype(np.uint8)
    out = io.BytesIO()
    imsave(out, pixels[::-1].copy(order="C"), format="png")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _pairs(points: np.ndarray) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _dots(points: str) -> str:
    """Draw a ring where a path begins and a dot where it ends."""
    (x0, y0), (x1, y1) = (pair.split(",") for pair in (points.split()[0], points.split()[-1]))
    return f'<circle class="from" cx="{x0}" cy="{y0}" r="3"/><circle cx="{x1}" cy="{y1}" r="3"/>'


def _figure(title: str, body: str, caption: str) -> str:
    return (
        f'<figure class="pg-figure"><figcaption><b>{escape(title)}</b></figcaption>'
        f'<svg viewBox="0 0 {_WIDE:g} {_HIGH:g}" role="img" aria-label="{escape(title)}">'
        f"{body}</svg><figcaption>{escape(caption)}</figcaption></figure>"
    )


def _none(words: str) -> str:
    return f'<p class="pg-note">{escape(words)}</p>'
