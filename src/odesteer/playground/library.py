"""Library of selectable steerings and the shared model.

Two kinds share a shelf: those that were saved, whose method and layer are what they are, and
contrasts that were read, from which any method is learnt at any layer when it is asked for.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from odesteer.data import Contrast
from odesteer.extraction.extract import Progress
from odesteer.fitting import (
    RANKING_METHOD,
    ActivationSet,
    best_layer,
    fit,
    fit_readings,
    rank_layers,
    read,
)
from odesteer.methods import find_method
from odesteer.steering import Steering
from odesteer.steering.expression import NAME


@dataclass(frozen=True)
class SharedModel:
    """A model that several people share, one forward pass at a time.

    Attributes:
        model, tokenizer: a transformers causal language model.
        name: as `load_model` knows it.
        lock: held while the model runs, and never from one token to the next.
    """

    model: Any
    tokenizer: Any
    name: str
    lock: Any = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class SavedSteering:
    """A steering that was read from `path`."""

    steering: Steering
    path: str

    @property
    def layer(self) -> int | None:
        """Where it acts; None where that is several places."""
        layer = self.steering.layer
        return None if isinstance(layer, tuple) else layer

    def obtain(self, desk: SharedModel, method: str, layer: int) -> Steering:
        """The steering; `method` and `layer` were decided when it was fitted."""
        return self.steering

    def python(self, method: str, layer: int) -> tuple[list[str], str]:
        """(lines needed before, expression) of Python that obtains it."""
        return [], f"ods.load({self.path!r})"


@dataclass(frozen=True)
class FittableContrast:
    """A contrast and its activations at several layers.

    Attributes:
        contrast: what is learnt from.
        readings: by layer.
        best: the layer with the smallest held-out loss.
        imports, code: Python that makes the contrast.
    """

    contrast: Contrast
    readings: Mapping[int, ActivationSet]
    best: int
    imports: tuple[str, ...]
    code: str
    _learnt: dict[tuple[str, int], Steering] = field(default_factory=dict, repr=False)

    layer: None = None

    def obtain(self, desk: SharedModel, method: str, layer: int) -> Steering:
        """The steering of a method at a layer, learnt at most once.

        Raises:
            ValueError: for an unknown method, or a contrast that it cannot learn from.
        """
        key = (method, layer)
        if key not in self._learnt:
            self._learnt[key] = self._learn(desk, method, layer)
        return self._learnt[key]

    def _learn(self, desk: SharedModel, method: str, layer: int) -> Steering:
        chosen = find_method(method)()
        known = self.readings.get(layer)
        paired = self.contrast.is_paired or not chosen.needs_pairs
        usable = chosen.site == "residual" and not chosen.reads_prompts and paired
        if known is not None and usable and known.tokens == chosen.tokens:
            readings = {layer: known}
            return fit_readings(desk.model, desk.tokenizer, self.contrast, chosen, readings)[0]
        # What was read does not do for this method: read what it needs.
        with desk.lock:
            return fit(desk.model, desk.tokenizer, self.contrast, method, layer)

    def python(self, method: str, layer: int) -> tuple[list[str], str]:
        """(lines needed before, expression) of Python that obtains it."""
        call = f"ods.fit(model, tokenizer, {self.code}, method={method!r}, layer={layer})"
        return list(self.imports), call


Source = SavedSteering | FittableContrast
SteeringLibrary = Mapping[str, Source]


def learnable(
    desk: SharedModel,
    contrast: Contrast,
    layers: Sequence[int],
    progress: Progress | None = None,
    *,
    imports: tuple[str, ...] = (),
    code: str | None = None,
    cache: bool = False,
) -> FittableContrast:
    """Read a contrast at some layers and rank them.

    Args:
        desk: whose model reads.
        contrast: at least two groups a class, so that some can be held out.
        layers: block indices.
        progress: called with (texts read, texts in all).
        imports, code: Python that makes the contrast; None: written out from its texts.
        cache: keep activations on disk.

    Raises:
        ValueError: if there are too few examples to compare layers.
    """
    if code is None:
        imports, code = (), spelled(contrast)
    with desk.lock:
        readings = read(
            desk.model, desk.tokenizer, contrast, layers, RANKING_METHOD, progress, cache=cache
        )
    data = {index: (each.positive, each.negative) for index, each in readings.items()}
    best = best_layer(rank_layers(data, contrast.groups))
    return FittableContrast(contrast, readings, best, imports, code)


def spelled(contrast: Contrast) -> str:
    """Python that makes a contrast of bare texts."""
    sides = ",\n    ".join(
        f"{side}=[\n" + "".join(f"        {each.response!r},\n" for each in examples) + "    ]"
        for side, examples in (("positive", contrast.positive), ("negative", contrast.negative))
    )
    return f"ods.Contrast.from_pairs(\n    {sides},\n)"


def check_name(name: str) -> str:
    """A name that an expression can use; ValueError for any other."""
    name = name.strip()
    if not NAME.fullmatch(name):
        raise ValueError(
            f"A steering's name has letters, digits, '.', '_' and '-', and begins with a letter or "
            f"digit; got '{name}'."
        )
    return name
