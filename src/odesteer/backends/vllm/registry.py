"""Registry of the steerings of an engine.

The operator's choice is written once, as plain JSON, into the engine's `additional_config`, which
reaches every process of every machine. Each process reads the files and checks their hashes.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from safetensors.torch import save

from odesteer import __version__
from odesteer.backends.vllm.request import KEY, SteeringRequest, ask, parse
from odesteer.common.expression import build, check_served
from odesteer.common.registry import lookup
from odesteer.models.hooks.positions import PositionRule, Span
from odesteer.ode import Angle, Dose, PathLength, Target, Time, VectorField
from odesteer.steering import LayerSteering, Steering, load
from odesteer.steering.hub import locate
from odesteer.steering.serialization import CONFIG, describe

_PLUGIN = "odesteer"

Site = tuple[int, str]  # layer, site


def configuration(
    steerings: Mapping[str, str | os.PathLike[str]],
    compose: Mapping[str, str] | None = None,
    check: str = "architecture",
) -> dict[str, Any]:
    """Return the engine's `additional_config`.

    Args:
        steerings: directories (or Hub repositories) by the name that clients use.
        compose: expressions over those names, by new names.
        check: how much the model must be the one they were fitted on, see
            `odesteer.models.compatibility`.

    Raises:
        ValueError: for no steerings, a name that no client could use, or what cannot be read.
        FileNotFoundError: for a directory that is not there.
    """
    compose = dict(compose or {})
    check_served(steerings, compose, check)
    entries = []
    for name, path in steerings.items():
        folder = locate(path, None).resolve()
        load(folder)  # raises what every process would
        entries.append({"name": name, "path": str(folder), "sha256": _digest(folder)})
    config = {
        "version": __version__,
        "check": check,
        "steerings": entries,
        "compose": [{"name": name, "of": text} for name, text in compose.items()],
    }
    SteeringRegistry.of({KEY: config})
    return {KEY: config}


def options(
    steerings: Mapping[str, str | os.PathLike[str]],
    compose: Mapping[str, str] | None = None,
    check: str = "architecture",
) -> dict[str, Any]:
    """Return arguments for `vllm.LLM` or `vllm.EngineArgs`: `LLM(model, **options({...}))`.

    Args:
        steerings: directories written by `save_pretrained` (or Hub repositories), by the name that
            requests use.
        compose: expressions over those names, such as {"safe": "truthful & ~toxic"}.
        check: how much the model must be the one they were fitted on, see
            `odesteer.models.compatibility`.

    Raises:
        ValueError: for no steerings, one that cannot be read, or where VLLM_PLUGINS leaves
            odesteer out.
        FileNotFoundError: for a directory that is not there.
    """
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and _PLUGIN not in allowed.split(","):
        raise ValueError(
            f"VLLM_PLUGINS is '{allowed}', which leaves odesteer out: requests would not be "
            f"steered. Add '{_PLUGIN}' to it."
        )
    return {"additional_config": configuration(steerings, compose, check)}


@dataclass(frozen=True, eq=False)
class SteeringRegistry:
    """Steerings of a server, in the order in which they act.

    Attributes:
        steerings: by name.
        digests: a hash of each steering's files and expression.
        check: see `configuration`.
    """

    steerings: dict[str, Steering]
    digests: dict[str, str]
    check: str

    @classmethod
    def of(cls, additional_config: Any) -> "SteeringRegistry | None":
        """Load the registry of an `additional_config`; None if that says nothing of steering.

        Raises:
            ValueError: if a file is not the one that the server was started with, or cannot be
                read; names it.
        """
        config = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        return None if config is None else _load_registry(json.dumps(config, sort_keys=False))

    @cached_property
    def parts(self) -> dict[Site, dict[str, LayerSteering]]:
        """The parts of all steerings by layer and site, first layer first."""
        parts: dict[Site, dict[str, LayerSteering]] = {}
        for name, steering in self.steerings.items():
            for part in steering.parts:
                if part.layer is None:
                    raise ValueError(
                        f"The steering '{name}' does not know its layer: fit it with layer=...."
                    )
                parts.setdefault((part.layer, part.site), {})[name] = part
        return dict(sorted(parts.items()))

    def check_request(self, request: SteeringRequest) -> None:
        """Refuse a request that no process could serve.

        Raises:
            ValueError: in one line for the client.
        """
        steering = lookup(self.steerings, request.name, "steering")
        for part in steering.parts:
            budget = part.dose if request.dose is None else request.dose
            if request.probability is not None and budget.size <= 0:
                raise ValueError(
                    f"{KEY}: a target needs a positive budget, and '{request.name}' has {budget}; "
                    f"give a strength or an angle with it."
                )
            if request.dose_at(part.dose).stop_at is not None and part.field.barrier is None:
                raise ValueError(
                    f"{KEY}: '{request.name}' has no barrier, so it cannot stop at a target; give "
                    f"a strength."
                )
            try:
                part.resolve(request.dose_at(part.dose))
            except ValueError as error:
                raise ValueError(f"{KEY}: '{request.name}': {error}") from None
            positions = part.positions if request.positions is None else request.positions
            late = isinstance(positions, str) and PositionRule.parse(positions).after_prompt
            if part.field.prompt_conditioned and not late:
                raise ValueError(
                    f"{KEY}: '{request.name}' reads the prompt's last token first, so it starts at "
                    f"last_prompt or generated; got {positions!r}."
                )

    def cache_key(self, request: SteeringRequest, spans: Sequence[Span]) -> str:
        """Return a key of all that decides what a request does to the activations of a text.

        Args:
            request: what is asked for.
            spans: the positions that it means there.
        """
        what = replace(request, positions=None).as_value()
        key = [self.digests[request.name], what, spans]
        return json.dumps(key, sort_keys=True)

    def describe(self) -> list[dict[str, Any]]:
        """Return what a client may know of the steerings (JSON values)."""
        return [
            {
                "name": name,
                "method": steering.method,
                "layers": [part.layer for part in steering.parts],
                "dose": str(steering.dose),
                "positions": steering.positions,
                "has_barrier": all(part.field.barrier is not None for part in steering.parts),
                "fitted_on": steering.parts[0].model.get("name"),
                "sha256": self.digests[name],
            }
            for name, steering in self.steerings.items()
        ]


@lru_cache(maxsize=8)
def _load_registry(text: str) -> SteeringRegistry:
    config = json.loads(text)
    if config.get("version") != __version__:
        raise ValueError(
            f"The server was started with odesteer {config.get('version')} and this machine has "
            f"{__version__}: install the same on all."
        )
    steerings: dict[str, Steering] = {}
    digests: dict[str, str] = {}
    for entry in config["steerings"]:
        folder = Path(entry["path"])
        if not folder.is_dir():
            raise ValueError(
                f"The steering '{entry['name']}' is at '{folder}', which this machine does not "
                f"have: keep steerings where every machine sees them under the same path."
            )
        if _digest(folder) != entry["sha256"]:
            raise ValueError(
                f"The steering '{entry['name']}' at '{folder}' is not the one that the server was "
                f"started with: restart it to serve another."
            )
        steerings[entry["name"]] = load(folder)
        digests[entry["name"]] = entry["sha256"]
    loaded = dict(steerings)
    for entry in config["compose"]:
        steerings[entry["name"]] = build(entry["of"], loaded)
        whole = json.dumps([entry["of"], digests], sort_keys=True)
        digests[entry["name"]] = hashlib.sha256(whole.encode()).hexdigest()
    return SteeringRegistry(steerings, digests, config["check"])


def _digest(folder: Path) -> str:
    """Hash a steering's configuration, which holds the hash of its tensors."""
    return hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()


class RegisteredSteerings:
    """Steerings of an engine, found by content and dose.

    An engine has steerings by name; a caller has objects: the one that the engine was started
    with, the same read from its directory, or either `with_strength`. They are recognised by
    field, layer, site, solver, calibration and coverage. The dose travels with each request.

    Args:
        registry: of the engine; None for an engine that does not steer.
    """

    def __init__(self, registry: SteeringRegistry | None = None):
        self._registry = registry
        # Fields are immutable, and hashing one is slower than a look-up.
        self._hashes: WeakKeyDictionary[VectorField, str] = WeakKeyDictionary()
        self._names_of: dict[tuple[Any, ...], list[str]] = {}
        for name, steering in self.steerings.items():
            self._names_of.setdefault(self._content(steering), []).append(name)

    @property
    def steerings(self) -> Mapping[str, Steering]:
        """Steerings by name, each with its own dose."""
        return {} if self._registry is None else self._registry.steerings

    def supports(self, steering: Steering | None) -> bool:
        """Return whether a request can ask for a steering."""
        try:
            self.extra_args(steering)
        except ValueError:
            return False
        return True

    def extra_args(
        self, steering: Steering | None, positions: str | None = None
    ) -> dict[str, str] | None:
        """Return the `extra_args` of a steered request, or None for one that is not.

        Args:
            steering: with its dose.
            positions: which tokens; None: the steering's own.

        Raises:
            ValueError: for a steering that the engine does not have, or a dose that a request
                cannot say; says what to do.
        """
        if steering is None or all(part.dose.is_zero for part in steering.parts):
            return None
        names = self._names_of.get(self._content(steering), [])
        if not names:
            raise ValueError(
                f"This engine does not have the steering '{steering.method}' of layer "
                f"{steering.layer}: start it with all that it shall serve "
                f"(it has: {', '.join(self.steerings) or 'none'}). A dose may change later, "
                f"nothing else."
            )
        positions = positions or steering.positions
        doses = _doses(steering)
        exact = [name for name in names if _doses(self.steerings[name]) == doses]
        if exact:
            extra = ask(exact[0], positions=positions)
        else:
            extra = ask(names[0], positions=positions, **_dose_fields(steering))
        assert self._registry is not None
        for request in parse(extra[KEY]):
            self._registry.check_request(request)
        return extra

    def _content(self, steering: Steering) -> tuple[Any, ...]:
        """Equal for steerings that differ in nothing but their doses."""
        return tuple(
            (
                self._hash(part.field),
                part.layer,
                part.site,
                part.solver,
                part.steps,
                part.calibration,
                part.coverage,
            )
            for part in steering.parts
        )

    def _hash(self, field: VectorField) -> str:
        if field not in self._hashes:
            tree, tensors = describe(field, "field")
            contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            structure = json.dumps(tree, sort_keys=True).encode()
            self._hashes[field] = hashlib.sha256(structure + save(contiguous)).hexdigest()
        return self._hashes[field]


def dose_fits_request(steering: Steering) -> bool:
    """Return whether a request can say the steering's dose, so that the engine need not."""
    try:
        return steering.dose.is_zero or bool(_dose_fields(steering))
    except ValueError:
        return False


def _doses(steering: Steering) -> list[Dose]:
    return [part.dose for part in steering.parts]


def _dose_fields(steering: Steering) -> dict[str, Any]:
    """Return a steering's dose as fields of a request."""
    parts = steering.parts
    dose = parts[0].dose
    if any(part.dose != dose for part in parts):
        raise ValueError(
            f"A request says one dose for all layers; this steering has "
            f"{', '.join(str(part.dose) for part in parts)}. Start the engine with it at these "
            f"doses."
        )
    if isinstance(dose, Target):
        fields = {"target": dose.probability, **_size_field(dose.budget, parts)}  # type: ignore[arg-type]
        return fields if dose.coverage is None else {**fields, "coverage": dose.coverage}
    return _size_field(dose, parts)


def _size_field(dose: Dose, parts: tuple[LayerSteering, ...]) -> dict[str, float]:
    if isinstance(dose, Angle):
        return {"angle": dose.size}
    as_time = isinstance(dose, PathLength) and all(part.field.unit_speed for part in parts)
    if isinstance(dose, Time) or as_time:
        return {"strength": dose.size}
    raise ValueError(
        f"A request says a strength, an angle or a target; got {dose}. Start the engine with the "
        f"steering at this dose."
    )
