"""Cache of the fitted steerings of a run.

The activations of the fit part are read in one pass for all layers and methods that read the same
tokens at the same site, and kept on disk (`odesteer.extraction.cache`). Every steering is saved in
the run directory and used as it was read back, so an interrupted run uses the same as any other.
"""

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from torch import Tensor

from odesteer.data import Contrast
from odesteer.evaluation.benchmarks import Benchmark
from odesteer.evaluation.benchmarks.base import Part
from odesteer.evaluation.experiment.plan import Condition, FitSpec, Plan
from odesteer.evaluation.experiment.run_directory import RunFolder
from odesteer.extraction.tokenize import Tokens
from odesteer.fitting import ActivationSet, fit, fit_readings, read
from odesteer.methods import Method, find_method
from odesteer.models.layers import layer_index
from odesteer.ode import Dose
from odesteer.steering import Steering, load
from odesteer.steering.serialization.directory import CONFIG


class Kind(NamedTuple):
    """What is read of the texts; methods with equal ones share it."""

    site: str
    tokens: Tokens
    prompts: bool
    sensitivities: bool


class FitCache:
    """Activations and fitted steerings of a run.

    Args:
        model, tokenizer: to steer.
        benchmark, plan: say what is fitted.
        folder: the run directory.
    """

    def __init__(
        self, model: Any, tokenizer: Any, benchmark: Benchmark, plan: Plan, folder: RunFolder
    ):
        self._model, self._tokenizer = model, tokenizer
        self._benchmark, self.plan, self.folder = benchmark, plan, folder
        self._choices = {method.id: method for method in plan.experiment.methods}
        self._readings: dict[tuple[int, Kind], dict[int, ActivationSet]] = {}
        self._steerings: dict[tuple[int, FitSpec], Steering] = {}

    def method(self, fitting: FitSpec) -> Method:
        chosen = self._choices[fitting.method]
        drawn = {} if fitting.seed is None else {"seed": fitting.seed}
        return find_method(chosen.name)(**{**chosen.hyperparameters, **drawn})

    def read(self, fold: int) -> None:
        """Read everything that the fold's fits need."""
        for kind, (method, layers) in self._kinds().items():
            self._reading(fold, kind, method, layers)

    def _kind(self, fitting: FitSpec) -> Kind:
        method, tokens = self.method(fitting), self._choices[fitting.method].tokens
        return Kind(
            method.site,
            cast(Tokens, tokens or method.tokens),
            method.reads_prompts,
            method.reads_sensitivities,
        )

    def fit(self, fold: int, fitting: FitSpec) -> Steering:
        """Fit a steering, or load it where it is fitted already."""
        path = self.folder.steering(fold, fitting.folder)
        if (fold, fitting) not in self._steerings:
            if not (path / CONFIG).is_file():
                with warnings.catch_warnings():
                    # Calibration warnings: the quality is in the receipts.
                    warnings.simplefilter("ignore", UserWarning)
                    self._learn(fold, fitting).save_pretrained(path)
            self._steerings[fold, fitting] = load(path)
        return self._steerings[fold, fitting]

    def dosed(self, fold: int, condition: Condition, layer: Any, dose: Dose | None) -> Steering:
        """Return the condition's steering at a layer and a dose (None: its own)."""
        steering = self.fit(fold, condition.fitting(layer))
        if condition.steps is not None:
            steering = steering.replace(steps=condition.steps)
        return steering if dose is None else steering.with_strength(dose)

    def held_out(
        self, fold: int, part: Part, fitting: FitSpec
    ) -> tuple[Contrast, Tensor, Tensor] | None:
        """Read a part's contrast and its activations at a fit's layer; None without any."""
        if not isinstance(fitting.layer, int):
            return None
        try:
            contrast = self._benchmark.contrast(self.plan.folds[fold], part)
        except ValueError:  # an empty class
            return None
        kind = self._kind(fitting)
        data = self._read(contrast, kind, *self._kinds()[kind])[
            layer_index(self._model, fitting.layer)
        ]
        return contrast, data.positive, data.negative

    def _learn(self, fold: int, fitting: FitSpec) -> Steering:
        method = self.method(fitting)
        contrast = self._benchmark.contrast(self.plan.folds[fold], "fit")
        model, tokenizer = self._model, self._tokenizer
        choice = self._choices[fitting.method]
        if not isinstance(fitting.layer, int):
            return fit(
                model,
                tokenizer,
                contrast.shuffled() if choice.shuffled else contrast,
                method,
                layer="auto" if fitting.layer is None else list(fitting.layer),
                tokens=choice.tokens,
                positions=self.plan.experiment.positions,
                cache=self.folder.activations,
            )
        index = layer_index(model, fitting.layer)
        kind = self._kind(fitting)
        reading = self._reading(fold, kind, *self._kinds()[kind])[index]
        if choice.shuffled:
            reading = reading.select(*contrast.shuffled_rows())
            contrast = contrast.shuffled()
        if method.needs_pairs and not contrast.is_paired:
            contrast, reading = _paired(contrast, reading)
        [steering] = fit_readings(
            model,
            tokenizer,
            contrast,
            method,
            {index: reading},
            positions=self.plan.experiment.positions,
        )
        return steering

    def _reading(
        self, fold: int, kind: Kind, method: Method, layers: list[int]
    ) -> dict[int, ActivationSet]:
        if (fold, kind) not in self._readings:
            # One fold at a time stays in memory: folds follow one another.
            self._readings = {key: value for key, value in self._readings.items() if key[0] == fold}
            contrast = self._benchmark.contrast(self.plan.folds[fold], "fit")
            self._readings[fold, kind] = self._read(contrast, kind, method, layers)
        return self._readings[fold, kind]

    def _read(
        self, contrast: Contrast, kind: Kind, method: Method, layers: list[int]
    ) -> dict[int, ActivationSet]:
        return read(
            self._model,
            self._tokenizer,
            contrast,
            layers,
            method,
            tokens=kind.tokens,
            positions=self.plan.experiment.positions,
            cache=self.folder.activations,
        )

    def _kinds(self) -> dict[Kind, tuple[Method, list[int]]]:
        """Return a method of each kind, and all layers that methods of the kind read."""
        kinds: dict[Kind, tuple[Method, list[int]]] = {}
        for fitting in self._fittings():
            if isinstance(fitting.layer, int):
                method = self.method(fitting)
                layers = kinds.setdefault(self._kind(fitting), (method, []))[1]
                index = layer_index(self._model, fitting.layer)
                if index not in layers:
                    layers.append(index)
        return kinds

    def _fittings(self) -> Iterator[FitSpec]:
        for condition in self.plan.conditions:
            yield from condition.fittings


def _paired(contrast: Contrast, reading: ActivationSet) -> tuple[Contrast, ActivationSet]:
    """Select the pairs of a contrast, and their rows of its activations."""
    indices = [
        {id(example): i for i, example in enumerate(examples)}
        for examples in (contrast.positive, contrast.negative)
    ]
    pairs = contrast.paired()
    above = [indices[0][id(example)] for example in pairs.positive]
    below = [indices[1][id(example)] for example in pairs.negative]
    n = len(contrast.positive)
    return pairs, reading.select(above, [n + i for i in below])
