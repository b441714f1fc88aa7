"""Settings of a search: candidates, doses, prompts and the held-out split."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import nn

from odesteer.data import Contrast
from odesteer.evaluation.scoring.replay import as_texts
from odesteer.methods import Method
from odesteer.models.chat_template import Messages, encode
from odesteer.models.layers import find_layers, layer_index
from odesteer.ode import Angle, Dose, as_dose

if TYPE_CHECKING:
    from odesteer.evaluation.judges import Judge

Layer = int | str | tuple[int, ...]
Prompt = str | Messages
T = TypeVar("T")

DOSES: tuple[Dose, ...] = tuple(Angle(angle) for angle in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3))
FIT_SHARE = 2 / 3  # of the groups
# Enough for an interval that tells neighbouring doses apart, few enough for two CPU cores.
TEXTS, PROMPTS, NEW_TOKENS = 48, 24, 24


def amounts_of(doses: Sequence[Dose | float] | None) -> list[Dose]:
    amounts = [as_dose(dose) for dose in (DOSES if doses is None else doses)]
    amounts = [dose for dose in amounts if not dose.is_zero]
    if not amounts:
        raise ValueError(
            "doses needs at least one that is not 0, such as odesteer.Angle(0.2); the unsteered "
            "model is a candidate anyway."
        )
    return list(dict.fromkeys(amounts))


def candidates_of(
    model: nn.Module, method: Method, layers: Sequence[int | Sequence[int]] | None
) -> list[Layer]:
    """What to fit at; nothing where the layers are still to be ranked."""
    if layers is None:
        return ["auto"] if method.site == "heads" else []
    found: list[Layer] = [
        layer_index(model, layer)
        if isinstance(layer, int)
        else tuple(sorted({layer_index(model, each) for each in layer}))
        for layer in layers
    ]
    if not found or () in found:
        raise ValueError("layers holds no layer; name at least one block, or leave it out.")
    return list(dict.fromkeys(found))


def late_block(model: nn.Module, candidates: Sequence[Layer]) -> int:
    """Where the probe reads: nine tenths up, and above where each candidate begins."""
    depth = len(find_layers(model))
    begin = max(
        (c[0] if isinstance(c, tuple) else c if isinstance(c, int) else 0 for c in candidates),
        default=0,
    )
    if begin == depth - 1:
        raise ValueError(
            f"Layer {begin} is the last block: no later one is left to read the effect from. "
            f"Choose an earlier layer, or give a judge and prompts."
        )
    return max(int(0.9 * depth), begin + 1)


def split(contrast: Contrast, seed: int) -> tuple[Contrast, Contrast]:
    try:
        return contrast.split(FIT_SHARE, seed)
    except ValueError as error:
        groups = len({*contrast.groups[0], *contrast.groups[1]})
        raise ValueError(
            f"Tuning holds out a third of the groups and needs both classes on both sides; this "
            f"contrast has {groups} group{'s' if groups != 1 else ''}: {error}"
        ) from None


def prompts_of(
    tokenizer: Any,
    held_out: Contrast,
    prompts: Sequence[Prompt] | None,
    judge: "Judge | None",
    seed: int,
) -> list[tuple[list[int], Prompt | None]]:
    """Neutral prompts, as token ids and, where there is one, as it was given."""
    examples = [*held_out.positive, *held_out.negative]
    given = [e.prompt for e in examples if e.prompt is not None] if prompts is None else prompts
    if given:
        # Rows of one prompt ask it once.
        unique = {
            tuple(encode(tokenizer, prompt, None, held_out.template)): prompt for prompt in given
        }
        asked: list[tuple[list[int], Prompt | None]] = [
            (list(ids), prompt) for ids, prompt in unique.items()
        ]
        return asked if prompts is not None else some(asked, PROMPTS, seed)
    if prompts is not None:
        raise ValueError("prompts is empty; give at least one, or leave it out.")
    if judge is not None:
        raise ValueError(
            f"The judge {judge.name} scores answers, and this contrast has no prompts to answer: "
            f"give prompts=[...]."
        )
    both = [text for text, _ in as_texts(tokenizer, examples, held_out.template)]
    return [(text.prompt, None) for text in some(both, PROMPTS, seed)]


def some(items: Sequence[T], count: int, seed: int) -> list[T]:
    """At most `count` of them, drawn without replacement, in their order."""
    if len(items) <= count:
        return list(items)
    drawn = np.random.default_rng(seed).permutation(len(items))[:count]
    return [items[i] for i in sorted(drawn)]
