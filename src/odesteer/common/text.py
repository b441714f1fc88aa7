"""Escaping of values for Markdown tables."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from odesteer.common.limits import brief

_BAR = 20


def table(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table of any values."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(text(cell) for cell in line) + " |" for line in lines)


def text(value: Any, limit: int = 200) -> str:
    """One line that is text wherever Markdown puts it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return ""
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    words = brief(words, limit) + ("." if words.endswith(".") else "")
    return words.replace("|", "\\|").replace("<", "&lt;")


def bar(share: float) -> str:
    """A share in 0..1 as a bar of 20 characters."""
    full = round(_BAR * min(max(share, 0.0), 1.0))
    return "█" * full + "░" * (_BAR - full)
