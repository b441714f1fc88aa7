"""Library of behaviours: packaged contrasts, written for odesteer.

24 files of 64 pairs (melancholy: 384, of which 64 are used), on varied topics. Both sides of a pair
answer one prompt; their lengths, punctuation, first and last words are balanced, so that no bag of
trivial features tells them apart. Most files give two behaviours, one for each side.
"""

import json
from importlib.resources import files

from odesteer.common.catalogue import BEHAVIOURS
from odesteer.common.registry import lookup
from odesteer.data.contrast import Contrast

PAIRS = 64


def names() -> tuple[str, ...]:
    """Return the names of the packaged behaviours."""
    return tuple(BEHAVIOURS)


def load(name: str, pairs: int = PAIRS) -> Contrast:
    """Load a packaged behaviour as a contrast.

    Args:
        name: one of `names()`.
        pairs: how many pairs to use, spread over the file.

    Raises:
        ValueError: for an unknown name, naming the nearest, or fewer pairs than two.

    Example:
        >>> load("formal").is_paired
        True
    """
    if pairs < 2:
        raise ValueError(f"A behaviour needs 2 pairs or more; got pairs={pairs}.")
    file, wanted, _ = lookup(BEHAVIOURS, name, "behaviour")
    rows = read(file)
    kept = [rows[i * len(rows) // min(pairs, len(rows))] for i in range(min(pairs, len(rows)))]
    unwanted = "negative" if wanted == "positive" else "positive"
    return Contrast.from_rows(
        {"prompt": row["prompt"], "positive": row[wanted], "negative": row[unwanted]}
        for row in kept
    )


def read(file: str) -> list[dict[str, str]]:
    """Return the rows of a packaged file: prompt, positive, negative, and for some a topic."""
    text = files("odesteer").joinpath("data", "behaviours", f"{file}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]
