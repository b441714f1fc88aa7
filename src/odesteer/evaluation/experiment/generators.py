"""Text generation: the in-process model, a vLLM engine, or a plugin backend.

Fitting, validation and scoring stay with the model in this process: they need activations. vLLM
takes over the costliest part, the generations for the test cases. It has to know its steerings
when it starts, so it is started at a fold's first generations, when everything is fitted. Each
process that computes units has its own engine: on a Ray cluster they are replicas.

Another package adds a `Backend` class with `beside` under the entry-point group
"odesteer.backends".
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from odesteer.backends import Backend, Sampling, TransformersBackend
from odesteer.backends.vllm.backend import VLLMBackend, check_sampling
from odesteer.backends.vllm.engine import Engine, import_vllm
from odesteer.backends.vllm.registry import dose_fits_request
from odesteer.common.registry import resolve, version_of
from odesteer.evaluation.experiment.config import Experiment
from odesteer.models.loading import SMOLLM2, local_copy
from odesteer.steering import Steering

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
