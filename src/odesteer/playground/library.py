"""Library of selectable steerings and the shared model.

A library holds saved steerings, whose method and layer are fixed, and contrasts, on which any
method is fitted at any layer on demand. The packaged behaviours are contrasts that everyone has.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from odesteer.common.expression import NAME
from odesteer.data import Contrast, behaviours
from odesteer.evaluation.assessment import Assessment, Assessor
from odesteer.extraction.extract import Progress
from odesteer.extraction.tokenize import Tokens
from odesteer.fitting import KL, fit
from odesteer.fitting.fit import takes_kl
from odesteer.methods import ODESteer
from odesteer.steering import Steering

# Of every method, so that equal multiples of two methods' doses have about equal KL; they are what
# `fit` gives ODESteer where no dose is named.
FREE_DOSE = KL(str(ODESteer.default_kl))
FREE_TOKENS: Tokens = "response"


@dataclass(frozen=True)
class SharedModel:
    """Model that several people share, one forward pass at a time.

    Attributes:
        model, tokenizer: a transformers causal language model.
        name: the argument of `load_model`.
        cache: keep what is read for fits on disk.
        lock: held while the model runs, and released after each token.
    """

    model: Any
    tokenizer: Any
    name: str
    cache: bool = False
    lock: Any = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class SavedSteering:
    """Steering loaded from `path`; `amount` is the multiple of its dose that a page begins with."""

    steering: Steering
    path: str
    amount: float = 1.0

    @property
    def layer(self) -> int | None:
        """Layer of the steering, or None for several."""
        layer = self.steering.layer
        return None if isinstance(layer, tuple) else layer

    def ready(self, method: str = "", layer: int | None = None) -> bool:
        """Whether it can be used at once."""
        return True

    def get(self, shared: SharedModel, method: str, layer: int | None) -> Steering:
        """Return the steering; its method and layer were decided when it was fitted."""
        return self.steering

    def python(self, method: str, layer: int | None) -> str:
        """Return Python that makes it."""
        return f"ods.load({self.path!r})"


@dataclass(eq=False)
class FittableContrast:
    """Contrast on which any method is fitted at any layer, each at most once.

    Attributes:
        load: makes the contrast, at first use.
        code: Python that makes it.
        amount: the multiple of the dose that a page begins with: that of KL "medium", since KL
            grows with its square, until the written text has chosen another.
        best: the layer of the first fit that was free to choose it.
        assessed: amount and verdict, by method.
    """

    load: Callable[[], Contrast]
    code: str
    amount: float = 0.7
    best: int | None = None
    assessed: dict[str, tuple[float, Assessment]] = field(default_factory=dict)
    layer: None = None
    _fitted: dict[tuple[str, int], Steering] = field(default_factory=dict, repr=False)
    _lock: Any = field(default_factory=threading.RLock, repr=False)

    @cached_property
    def contrast(self) -> Contrast:
        """Texts of both classes."""
        return self.load()

    def ready(self, method: str = "", layer: int | None = None) -> bool:
        """Whether a method, or any, is fitted at a layer, by default the best one."""
        layer = self.best if layer is None else layer
        return (method, layer) in self._fitted if method else bool(self._fitted)

    def get(
        self,
        shared: SharedModel,
        method: str,
        layer: int | None,
        progress: Progress | None = None,
    ) -> Steering:
        """Return the steering of a method at a layer, by default the best one.

        Raises:
            ValueError: for an unknown method or layer, or a contrast that it cannot learn from.
        """
        with self._lock:
            layer = self.best if layer is None else layer
            if layer is None or (method, layer) not in self._fitted:
                steering = self._fit(shared, method, layer, progress)
                if layer is None:
                    self.best = layer = steering.first_layer
                self._fitted[method, layer] = steering
            return self._fitted[method, layer]

    def _fit(
        self, shared: SharedModel, method: str, layer: int | None, progress: Progress | None
    ) -> Steering:
        # Whether the texts have a KL does not depend on the method.
        free = takes_kl(ODESteer(), self.contrast, shared.tokenizer)
        with shared.lock:
            return fit(
                shared.model,
                shared.tokenizer,
                self.contrast,
                method,
                "auto" if layer is None else layer,
                FREE_DOSE if free else None,
                progress=progress,
                tokens=FREE_TOKENS if free else None,
                cache=shared.cache,
            )

    def assess(
        self, shared: SharedModel, method: str, progress: Callable[[str], Progress] | None = None
    ) -> tuple[float, Assessment]:
        """Fit a method, let the written text choose its dose, and return both, once.

        Args:
            shared: the model.
            method: a name in `METHODS`.
            progress: given a description, returns what is called with (steps done, steps in all).

        Returns:
            the multiple of the fitted dose, and the verdict on it.
        """
        with self._lock:
            if method not in self.assessed:
                report = progress or (lambda words: lambda done, of: None)
                steering = self.get(shared, method, None, report("Reading the examples"))
                assessor = Assessor(
                    shared.model, shared.tokenizer, self.contrast, cache=shared.cache
                )
                writing = report("Writing before and after")
                with shared.lock:
                    if "kl" not in steering.parts[0].receipts:
                        self.assessed[method] = 1.0, assessor.assess(steering, writing)
                    else:
                        chosen, verdict = assessor.with_fluent_dose(steering, writing)
                        ratio = chosen.dose.size / steering.dose.size
                        self.assessed[method] = round(ratio, 2), verdict
            self.amount = self.assessed[method][0]
            return self.assessed[method]

    def python(self, method: str, layer: int | None) -> str:
        """Return Python that makes the steering."""
        layer = self.best if layer is None else layer
        call = f"ods.fit(model, tokenizer, {self.code}, method={method!r}, layer={layer}"
        if layer is not None and "kl" in self._fitted[method, layer].parts[0].receipts:
            call += f", strength=ods.KL({FREE_DOSE.budget}), tokens={FREE_TOKENS!r}"
        return f"{call})"


Source = SavedSteering | FittableContrast
SteeringLibrary = Mapping[str, Source]


def presets() -> dict[str, FittableContrast]:
    """Return the packaged behaviours, read and fitted at first use."""
    return {
        name: FittableContrast(partial(behaviours.load, name), f"ods.behaviours.load({name!r})")
        for name in behaviours.names()
    }


def check_name(name: str) -> str:
    """Return a name without surrounding space; ValueError if expressions cannot use it."""
    name = name.strip()
    if not NAME.fullmatch(name):
        raise ValueError(
            f"A steering's name has letters, digits, '.', '_' and '-', and begins with a letter or "
            f"digit; got '{name}'."
        )
    return name
