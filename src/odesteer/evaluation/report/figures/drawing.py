"""Figures as files or inline SVG."""

import io
import re
from dataclasses import dataclass, field
from html import escape

import matplotlib
from matplotlib.figure import Figure

from odesteer.evaluation.report.figures.style import INK, NIGHT, PAGE, STYLE_HERE


@dataclass(frozen=True)
class Drawing:
    """A figure with what it shows in words.

    Attributes:
        name: of its file.
        title: a line.
        caption: what is drawn, and how to read it.
        figure: drawn under `STYLE_HERE`.
    """

    name: str
    title: str
    caption: str
    figure: Figure = field(repr=False, compare=False)

    def file(self, kind: str) -> bytes:
        """As a "png", "pdf" or "svg" file, on a white page."""
        with matplotlib.rc_context(STYLE_HERE):
            out = io.BytesIO()
            # Without dates, the same run gives the same bytes.
            dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
            self.figure.savefig(out, format=kind, facecolor="white", metadata=dates or None)
        return out.getvalue()

    def inline(self, page: str = "figure") -> str:
        """As an SVG element of an HTML page, in the page's own colours.

        HTML knows SVG without namespaces. Ids begin with `page` and the name, since a page has
        several figures.
        """
        with matplotlib.rc_context(STYLE_HERE):
            out = io.StringIO()
            self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
        text = out.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
        text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
        text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{page}-{self.name}-", text)
        text = text.replace(INK, "currentColor").replace(PAGE, "var(--page)")
        for colour, variable in NIGHT.items():
            text = text.replace(colour, f"var({variable})")
        text = re.sub(r"\n\s*", "\n", text)
        size = re.search(r'viewBox="[^"]*"', text)
        assert size is not None  # matplotlib always writes one
        opening = f'<svg {size[0]} role="img" aria-label="{escape(self.title, quote=True)}">'
        return opening + text[text.index(">", text.index("<svg")) + 1 :]
