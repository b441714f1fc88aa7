"""SVG charts of token paths.

They use the page's colours, light or dark. Each token's path has `data-way`, by which the page
highlights it without the server.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

import contourpy
import numpy as np
from matplotlib.image import imsave

from odesteer.playground.token_paths import PhasePortrait, TokenPaths

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
