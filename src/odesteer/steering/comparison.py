"""Unsteered and steered texts side by side."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from odesteer.models.chat_template import Messages, question

WIDTH = 80


@dataclass(frozen=True, repr=False)
class Comparison:
    """What a model writes unsteered and steered; `print` shows it, and so does a notebook.

    Attributes:
        prompts: n texts or chats.
        unsteered: n generations without the steering.
        steered: n generations with it.
        label: of the steering: its method and its dose.
    """

    prompts: tuple[str | Messages, ...]
    unsteered: tuple[str, ...]
    steered: tuple[str, ...]
    label: str

    def rows(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield each prompt with its two texts, by what wrote them."""
        for prompt, *texts in zip(self.prompts, self.unsteered, self.steered, strict=True):
            yield question(prompt), dict(zip(("unsteered", self.label), texts, strict=True))

    def __str__(self) -> str:
        blocks = []
        for prompt, texts in self.rows():
            lines = [prompt]
            for label, text in texts.items():
                prose = textwrap.fill(" ".join(text.split()), WIDTH - 2)
                lines += [label, textwrap.indent(prose, "  ")]
            blocks.append("\n".join(lines))
        return "\n\n".join(blocks)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        heads = "".join(f"<th>{escape(each)}</th>" for each in ("", "unsteered", self.label))
        rows = "".join(
            f"<tr><th>{escape(prompt)}</th>"
            + "".join(f"<td>{escape(text)}</td>" for text in texts.values())
            + "</tr>"
            for prompt, texts in self.rows()
        )
        return f"<table><tr>{heads}</tr>{rows}</table>"
