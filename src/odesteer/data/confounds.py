"""Trivial differences between the classes of a contrast, which a method would learn instead."""

import re
from collections.abc import Callable, Sequence

import numpy as np

from odesteer.data.contrast import Contrast, Example

FEW = 10  # pairs; with fewer, directions are mostly noise
UNBALANCED = 4  # times as many texts of one class as of the other
REPEATED = 0.05  # share of texts that are repetitions
SHARE = 0.6  # a feature is reported where its shares in both classes differ by more
SEPARATES = 0.9  # so is a length whose AUC is beyond this
MARKS = ".!?,;:\"'-"


def confounds(contrast: Contrast) -> list[str]:
    """Describe what would tell the classes apart without any understanding.

    Returns:
        One sentence each, none if nothing was found: too few examples, many more of one class,
        repeated texts, texts that are in both classes, lengths, punctuation, capitals, first and
        last words.

    Example:
        >>> pairs = Contrast.from_pairs(["So nice."] * 12, ["so bad"] * 12)
        >>> print(confounds(pairs)[1])
        12 of 12 positive texts start with a capital letter, 0 of 12 negative ones do.
    """
    sides = [
        [_text(example) for example in side] for side in (contrast.positive, contrast.negative)
    ]
    n, m = len(sides[0]), len(sides[1])
    notes = []
    if min(n, m) < FEW:
        notes.append(
            f"There are {n} positive and {m} negative texts: with fewer than {FEW} of each, what "
            f"is learnt is mostly noise."
        )
    if max(n, m) >= UNBALANCED * min(n, m):
        notes.append(
            f"There are {n} positive and {m} negative texts: what is measured is mostly about the "
            f"larger class."
        )
    for name, members in (("positive", contrast.positive), ("negative", contrast.negative)):
        again = len(members) - len({(str(e.prompt), e.response) for e in members})
        if again > REPEATED * len(members):
            notes.append(
                f"{again} of {len(members)} {name} texts repeat an earlier one: held-out texts may "
                f"have been learnt from."
            )
    shared = set(sides[0]) & set(sides[1])
    if shared:
        notes.append(f"{len(shared)} text(s) are in both classes, such as {min(shared)[:60]!r}.")
    if not all(all(side) for side in sides):
        return [*notes, "Some texts are empty."]
    for unit, size in _SIZES.items():
        first, second = (np.array([size(text) for text in side]) for side in sides)
        auc = float(np.mean(np.sign(first[:, None] - second) + 1) / 2)
        if not 1 - SEPARATES <= auc <= SEPARATES:
            longer = "longer" if auc > 0.5 else "shorter"
            notes.append(
                f"Positive texts are {longer} ({np.mean(first):.0f} {unit} against "
                f"{np.mean(second):.0f} on average)."
            )
            break
    for words, found in _features(sides).items():
        counts = [sum(map(found, side)) for side in sides]
        if abs(counts[0] / n - counts[1] / m) > SHARE:
            notes.append(
                f"{counts[0]} of {n} positive texts {words}, {counts[1]} of {m} negative ones do."
            )
    return notes


def ends_apart(contrast: Contrast) -> bool:
    """Return whether the last character of a text tells most texts of one class from the other."""
    ends = [[_text(example)[-1:] for example in s] for s in (contrast.positive, contrast.negative)]
    marks = {end for side in ends for end in side if end and not end.isalnum()}
    shares = [[side.count(mark) / len(side) for side in ends] for mark in marks]
    return any(abs(first - second) > SHARE for first, second in shares)


_SIZES: dict[str, Callable[[str], int]] = {
    "words": lambda text: len(text.split()),
    "characters": len,
}


def _text(example: Example) -> str:
    return example.response.strip()


def _features(sides: Sequence[Sequence[str]]) -> dict[str, Callable[[str], bool]]:
    """Return yes-or-no features by the words that describe them."""

    def ends_with(end: str) -> Callable[[str], bool]:
        return lambda text: text.endswith(end)

    def contains(mark: str) -> Callable[[str], bool]:
        return lambda text: mark in text[:-1]

    def at(place: int, word: str) -> Callable[[str], bool]:
        return lambda text: _words(text)[place : place + 1 or None] == [word]

    found: dict[str, Callable[[str], bool]] = {
        "start with a capital letter": lambda text: text[0].isupper(),
        "contain a digit": lambda text: any(map(str.isdigit, text)),
    }
    found |= {f"contain {mark!r} before their end": contains(mark) for mark in MARKS}
    ends = sorted({text[-1] for side in sides for text in side if not text[-1].isalnum()})
    found |= {f"end in {end!r}": ends_with(end) for end in ends}
    for place, label in ((0, "begin"), (-1, "end")):
        words = sorted({w for side in sides for text in side for w in _words(text)[place:][:1]})
        found |= {f"{label} with the word {word!r}": at(place, word) for word in words}
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())
