"""Library of selectable steerings and the shared model.

A library holds saved steerings, whose method and layer are fixed, and contrasts that were read,
on which any method is fitted at any layer on demand.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from odesteer.common.expression import NAME
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
from odesteer.models.layers import find_layers
from odesteer.steering import Steering


@dataclass(frozen=True)
class SharedModel:
    """Model that several people share, one forward pass at a time.

    Attributes:
        model, tokenizer: a transformers causal language model.
        name: the argument of `load_model`.
        lock: held while the model runs, and released after each token.
    """

    model: Any
    tokenizer: Any
    name: str
    lock: Any = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class SavedSteering:
    """Steering loaded from `path`."""

    steering: Steering
    path: str

    @property
    def layer(self) -> int | None:
        """Layer of the steering, or None for several."""
        layer = self.steering.layer
        return None if isinstance(layer, tuple) else layer

    def get(self, shared: SharedModel, method: str, layer: int) -> Steering:
        """Return the steering; its method and layer were decided when it was fitted."""
        return self.steering

    def python(self, method: str, layer: int) -> tuple[list[str], str]:
        """Return Python that makes it: import lines and an expression."""
        return [], f"ods.load({self.path!r})"


@dataclass(frozen=True)
class FittableContrast:
    """Contrast and its activations at several layers.

    Attributes:
        contrast: the texts.
        readings: by layer.
        best: the layer with the smallest held-out loss.
        imports, code: Python that makes the contrast.
    """

    contrast: Contrast
    readings: Mapping[int, ActivationSet]
    best: int
    imports: tuple[str, ...]
    code: str
    _fitted: dict[tuple[str, int], Steering] = field(default_factory=dict, repr=False)

    layer: None = None

    def get(self, shared: SharedModel, method: str, layer: int) -> Steering:
        """Return the steering of a method at a layer, fitted at most once.

        Raises:
            ValueError: for an unknown method, or a contrast that it cannot learn from.
        """
        key = (method, layer)
        if key not in self._fitted:
            self._fitted[key] = self._fit(shared, method, layer)
        return self._fitted[key]

    def _fit(self, shared: SharedModel, method: str, layer: int) -> Steering:
        chosen = find_method(method)()
        known = self.readings.get(layer)
        paired = self.contrast.is_paired or not chosen.needs_pairs
        usable = chosen.site == "residual" and not chosen.reads_more and paired
        if known is not None and usable and known.tokens == chosen.tokens:
            readings = {layer: known}
            return fit_readings(shared.model, shared.tokenizer, self.contrast, chosen, readings)[0]
        # This method needs other activations: read them.
        with shared.lock:
            return fit(shared.model, shared.tokenizer, self.contrast, method, layer)

    def python(self, method: str, layer: int) -> tuple[list[str], str]:
        """Return Python that makes it: import lines and an expression."""
        call = f"ods.fit(model, tokenizer, {self.code}, method={method!r}, layer={layer})"
        return list(self.imports), call


Source = SavedSteering | FittableContrast
SteeringLibrary = Mapping[str, Source]


def prepare_contrast(
    shared: SharedModel,
    contrast: Contrast,
    layers: Sequence[int],
    progress: Progress | None = None,
    *,
    imports: tuple[str, ...] = (),
    code: str | None = None,
    cache: bool = False,
) -> FittableContrast:
    """Read a contrast at several layers and rank them.

    Args:
        shared: the model.
        contrast: at least two groups a class, so that some can be held out.
        layers: block indices.
        progress: called with (texts read, texts in all).
        imports, code: Python that makes the contrast; None: written out from its texts.
        cache: keep activations on disk.

    Raises:
        ValueError: if there are too few examples to compare layers.
    """
    if code is None:
        imports, code = (), contrast_code(contrast)
    with shared.lock:
        readings = read(
            shared.model, shared.tokenizer, contrast, layers, RANKING_METHOD, progress, cache=cache
        )
    data = {index: (each.positive, each.negative) for index, each in readings.items()}
    depth = len(find_layers(shared.model))
    best = best_layer(rank_layers(data, contrast.groups), depth)
    return FittableContrast(contrast, readings, best, imports, code)


def contrast_code(contrast: Contrast) -> str:
    """Return Python that makes a contrast of plain texts."""
    sides = ",\n    ".join(
        f"{side}=[\n" + "".join(f"        {each.response!r},\n" for each in examples) + "    ]"
        for side, examples in (("positive", contrast.positive), ("negative", contrast.negative))
    )
    return f"ods.Contrast.from_pairs(\n    {sides},\n)"


def check_name(name: str) -> str:
    """Return a name without surrounding space; ValueError if expressions cannot use it."""
    name = name.strip()
    if not NAME.fullmatch(name):
        raise ValueError(
            f"A steering's name has letters, digits, '.', '_' and '-', and begins with a letter or "
            f"digit; got '{name}'."
        )
    return name
