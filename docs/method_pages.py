"""Markdown pages of the methods, from their classes and modules.

The equation, the source and the prose are those of the docstrings, the table is the one of
`odesteer methods NAME`, and the example runs.
"""

import inspect
import re
import sys
from dataclasses import fields
from typing import Any

from odesteer.cli.methods import argument_meanings, facts_of, in_words, prose_of
from odesteer.methods import Method

_PICTURED = (
    "Two moons, two Gaussians, two rings: blue is wanted. Shades are the barrier, arrows the "
    "field, black lines the paths of held-out negatives; the percentage is of those that arrive."
)


def method_page(method: type[Method], picture: str | None = None) -> str:
    """Return the page of a method.

    Args:
        method: the class.
        picture: address of its portrait (`experiments/method_portraits.py`), or None.
    """
    module = inspect.cleandoc(sys.modules[method.__module__].__doc__ or "")
    facts = in_words(facts_of(method))
    parts = [
        f"# {method.__name__}",
        f"`{method.name}`",
        *_markdown(module),
        *([] if picture is None else [f"![{method.__name__}]({picture})", f"*{_PICTURED}*"]),
        "## What it learns",
        *_markdown(prose_of(method)),
        _table(("in short", ""), [(f"**{name}**", _cell(value)) for name, value in facts.items()]),
        "## Hyperparameters",
        _hyperparameters(method),
        "## Use",
        _use(method),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> list[str]:
    """Split a docstring into paragraphs; indented ones are equations and become code."""
    parts = []
    for paragraph in re.split(r"\n\s*\n", text):
        if paragraph.startswith("    ") or re.match(r"\w+\(a\) = ", paragraph):
            parts.append(f"```text\n{inspect.cleandoc(paragraph)}\n```")
        else:
            # Symbols such as a* and ||a|| are no markup.
            parts.append(re.sub(r"(?<!`)([*_|<])", r"\\\1", " ".join(paragraph.split())))
    return parts


def _hyperparameters(method: type[Method]) -> str:
    row, meanings = facts_of(method), argument_meanings(method)
    shown = {"steps": row["steps"], "solver": row["solver"], **row["hyperparameters"]}
    order = [field.name for field in fields(method)]
    return _table(
        ("name", "default", "meaning"),
        [(f"`{name}`", f"`{shown[name]}`", _cell(meanings.get(name, ""))) for name in order],
    )


def _use(method: type[Method]) -> str:
    pairs = "it needs pairs; " if method.needs_pairs else ""
    if method.reads_sensitivities:
        example = f"""import odesteer as ods
from odesteer.models.loading import load_model

model, tokenizer = load_model("smollm2")
contrast = ods.Contrast.from_pairs(
    ["What a lovely day!", "I love this song.", "The food was great."],
    ["What an awful day!", "I hate this song.", "The food was bad."],
)
steering = ods.fit(model, tokenizer, contrast, "{method.name}", layer=14, strength=ods.KL("light"))
positive, negative = ods.activations(model, tokenizer, contrast, 14)
steered = steering(negative)"""
    else:
        example = f"""import torch
import odesteer as ods

generator = torch.Generator().manual_seed(0)
positive = torch.randn(64, 16, generator=generator) + 0.5  # yours: odesteer.activations(...)
negative = torch.randn(64, 16, generator=generator) - 0.5
steering = ods.{method.__name__}().fit(positive, negative, layer=3)
steered = steering(negative)"""
    return f"""```python
{example}
```

On a language model ({pairs}a line of `pairs.jsonl` is a prompt, a positive and a negative answer):

```sh
odesteer generate smollm2 "How was the concert?" --method {method.name} \\
  --contrast pairs.jsonl --layer 14
```"""


def _cell(text: Any) -> str:
    return re.sub(r"([*_|<])", r"\\\1", " ".join(str(text).split()))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
