"""Meaning of a rule of positions, read by Python's own slices."""

import functools
import re
from typing import Any

WORDS = {"all": "(prompt + generated)", "last": "prompt[-1:]"}
TERM = re.compile(r"([+-]?)([a-z]+)((?:\[[^]]*\])?)")


@functools.cache
def code(text: str) -> Any:
    return compile(text, "rule", "eval")


def meant(rule: str, prompt: list[int], generated: list[int]) -> set[int]:
    """Return the tokens that a rule chooses of those of a text, named by their places."""
    chosen: set[int] = set()
    for sign, word, window in TERM.findall(rule.replace(" ", "")):
        names = {"prompt": prompt, "generated": generated}
        if window and ":" not in window:
            window = f"[{window[1:-1]}:{int(window[1:-1]) + 1 or None}]"
        tokens = set(eval(code(WORDS.get(word, word) + window), names))
        chosen = chosen - tokens if sign == "-" else chosen | tokens
    return chosen
