"""Shell completion of methods, models and steerings.

`odesteer --install-completion` teaches the shell to ask. It asks at every press of the key, so
nothing here may import what takes long.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

_SMOLLM2 = "smollm2"


def among(words: Sequence[str]) -> Callable[[str], list[str]]:
    """Those that begin with what was typed."""

    def matching(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return matching


def models(incomplete: str) -> list[str]:
    """smollm2, the models in the Hub's cache, and directories that hold a model or others."""
    known = [_SMOLLM2, *_from_the_hub()]
    return [*among(known)(incomplete), *_directories(incomplete)]


def _from_the_hub() -> list[str]:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    folder = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    prefix = "models--"
    return sorted(
        each.name.removeprefix(prefix).replace("--", "/", 1) for each in folder.glob(f"{prefix}*")
    )


def _directories(incomplete: str) -> list[str]:
    start, _, name = incomplete.rpartition("/")
    folder = Path(start or ("/" if incomplete.startswith("/") else "."))
    lead = incomplete[: len(incomplete) - len(name)]
    try:
        found = sorted(each.name for each in folder.iterdir() if each.is_dir())
    except OSError:
        return []
    # A hidden one is completed where its dot was typed.
    shown = [each for each in found if name.startswith(".") or not each.startswith(".")]
    return [f"{lead}{each}" for each in shown if each.startswith(name)]
