"""Fitted steerings of a run, and the engine that generates with them.

The activations of the fit part are read in one pass for all layers and methods that read the same
tokens at the same site, and kept on disk (`odesteer.extraction.cache`). Every steering is saved in
the run directory and used as it was read back, so an interrupted run uses the same as any other.

Fitting, validation and scoring stay with the model in this process: they need activations. vLLM or
a plugin takes over the costliest part, the generations for the test cases. It has to know its
steerings when it starts, so it is started at a fold's first generations, when everything is
fitted. Each process that computes units has its own engine: on a Ray cluster they are replicas.

Another package adds a `Backend` class with `beside` under the entry-point group
"odesteer.backends".
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from odesteer.backends import Backend, Sampling, TransformersBackend
from odesteer.backends.vllm.backend import VLLMBackend, check_sampling
from odesteer.backends.vllm.engine import Engine, import_vllm
from odesteer.backends.vllm.registry import dose_fits_request
from odesteer.common.registry import resolve, version_of
from odesteer.data import Contrast
from odesteer.evaluation.benchmarks import Benchmark
from odesteer.evaluation.benchmarks.base import Part
from odesteer.evaluation.experiment.config import Experiment
from odesteer.evaluation.experiment.plan import Condition, FitSpec, Plan
from odesteer.evaluation.experiment.run_directory import RunFolder
from odesteer.extraction.tokenize import Tokens
from odesteer.fitting import ActivationSet, fit, fit_readings, read
from odesteer.methods import Method, find_method
from odesteer.models.layers import layer_index
from odesteer.models.loading import SMOLLM2, local_copy
from odesteer.ode import Dose
from odesteer.steering import Steering, load
from odesteer.steering.serialization import CONFIG


class Kind(NamedTuple):
    """Kind of activations; methods with equal kinds share what is read of the texts."""

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


TRANSFORMERS, VLLM = "transformers", "vllm"
GROUP = "odesteer.backends"
BACKENDS: Mapping[str, type[Backend]] = {TRANSFORMERS: TransformersBackend, VLLM: VLLMBackend}
# Share for vLLM of the memory that the model in this process leaves on its device.
SHARE = 0.9

Say = Callable[[str], None]
Ready = Callable[[], Iterable[Steering]]
# (template, steered positions, batch size) -> a backend.
Make = Callable[[str, str, int], Backend]


def describe(backend: str, experiment: Experiment) -> dict[str, str] | None:
    """Describe a backend for the results; None for transformers, the default.

    Raises:
        ValueError: where the experiment does not fit the backend.
        ImportError: without vLLM.
    """
    kind = find_backend(backend)
    if backend == TRANSFORMERS:
        return None
    if experiment.task != "generations":
        raise ValueError(
            f'The backend "{backend}" generates, and this experiment\'s task is '
            f'"{experiment.task}": leave --backend out.'
        )
    if backend != VLLM:
        return {"name": backend, "version": version_of(kind)}
    check_sampling(Sampling(**experiment.sampling))
    return {"name": VLLM, "version": str(import_vllm().__version__)}


def find_backend(name: str) -> type[Backend]:
    """Find a backend's class by its name, ours or another package's.

    Raises:
        ValueError: for an unknown name; lists the known ones.
    """
    kind: type[Backend] = resolve(BACKENDS, name, "backend", GROUP, Backend)
    return kind


@dataclass(frozen=True)
class InMemory:
    """Generator that runs the model in this process: transformers, or a plugin."""

    kind: type[Backend]
    model: Any
    tokenizer: Any

    def backend_factory(self, steering: Steering | None, ready: Ready) -> Make:
        """Return a factory of backends that generate with `steering`."""
        return partial(self.kind.beside, self.model, self.tokenizer)

    def close(self) -> None:
        pass


def generator(
    about: Mapping[str, str] | None,
    experiment: Experiment,
    model: Any,
    tokenizer: Any,
    say: Say | None = None,
) -> "Generator":
    """Return the generator of a run, as its results describe it."""
    name = TRANSFORMERS if about is None else about["name"]
    if name == VLLM:
        return VLLMGenerator(experiment, model, tokenizer, say)
    return InMemory(find_backend(name), model, tokenizer)


class VLLMGenerator:
    """Generator that runs vLLM beside the model, started when it is needed.

    Args:
        experiment: names the model.
        model: the one in this process, whose precision vLLM gets too.
        tokenizer: its tokenizer.
        say: called with a line before a start.
    """

    def __init__(self, experiment: Experiment, model: Any, tokenizer: Any, say: Say | None = None):
        self._chosen, self._model, self._tokenizer = experiment.model, model, tokenizer
        self._say = say
        self._engine: Engine | None = None

    def backend_factory(self, steering: Steering | None, ready: Ready) -> Make:
        """Return a factory of backends that generate with `steering`; see `engine`."""
        engine = self.engine(steering, ready)  # which takes any number of prompts at once
        return lambda template, positions, _: VLLMBackend(
            engine, self._tokenizer, template, positions
        )

    def engine(self, steering: Steering | None, ready: Ready) -> Engine:
        """Return an engine that has `steering`.

        Args:
            steering: None for the unsteered model.
            ready: steerings that will soon be needed; called only when an engine is started.
        """
        if self._engine is not None and self._engine.registered.supports(steering):
            return self._engine
        self.close()
        wanted = _several([*ready(), *([] if steering is None else [steering])])
        if self._say is not None:
            self._say(f"Starting vLLM with {len(wanted)} steerings")
        name = str(local_copy()) if self._chosen.name == SMOLLM2 else self._chosen.name
        self._engine = Engine(name, wanted, **self._settings(wanted.values()))
        return self._engine

    def close(self) -> None:
        """Stop the engine, if it was started."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _settings(self, wanted: Iterable[Steering]) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "revision": self._chosen.revision,
            "max_model_len": -1,  # the longest that its memory holds
        }
        if not torch.cuda.is_available():
            # Compiling takes minutes there and gains little.
            return {**settings, "enforce_eager": True}
        free, total = torch.cuda.mem_get_info()
        deciding = any(part.data_dependent for each in wanted for part in each.parts)
        return {
            **settings,
            "gpu_memory_utilization": SHARE * free / total,
            "enforce_eager": deciding,  # a CUDA graph takes no decisions
        }


Generator = InMemory | VLLMGenerator


def _several(steerings: Iterable[Steering]) -> dict[str, Steering]:
    """Name each distinct steering: in a CUDA graph, each costs time in every step."""
    kept: dict[Any, Steering] = {}
    for steering in steerings:
        parts = steering.parts
        dose = None if dose_fits_request(steering) else tuple(part.dose for part in parts)
        key = tuple((id(part.field), part.layer, part.solver, part.steps) for part in parts)
        kept.setdefault((key, dose), steering)
    return {f"steering-{i}": steering for i, steering in enumerate(kept.values())}
