"""Registry of the steerings of a server.

What the operator asked for is written once, as plain JSON, into the engine's `additional_config`:
from there it reaches every process of every machine. Each of them reads the same files and checks
that they are the same.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from safetensors.torch import save

from odesteer import __version__
from odesteer.backends.vllm.request import KEY, LONGEST_NAME, START_OF, SteeringRequest, ask, parse
from odesteer.common.registry import lookup
from odesteer.models.compatibility import LEVELS
from odesteer.ode import Angle, Dose, PathLength, Target, Time, VectorField
from odesteer.steering import LayerSteering, Steering, load
from odesteer.steering.expression import NAME, build
from odesteer.steering.hub import locate
from odesteer.steering.serialization.directory import CONFIG
from odesteer.steering.serialization.tree import describe

_PLUGIN = "odesteer"

Site = tuple[int, str]  # layer, site


def configuration(
    steerings: Mapping[str, str | os.PathLike[str]],
    compose: Mapping[str, str] | None = None,
    check: str = "architecture",
) -> dict[str, Any]:
    """What goes into the engine's `additional_config`.

    Args:
        steerings: directories (or Hub repositories) by the name that clients use.
        compose: expressions over those names, by a name of their own.
        check: how much the model must be the one they were fitted on, see
            `odesteer.models.compatibility`.

    Raises:
        ValueError: for no steerings, a name that no client could use, or what cannot be read.
        FileNotFoundError: for a directory that is not there.
    """
    compose = dict(compose or {})
    lookup(dict.fromkeys(LEVELS), check, "compatibility check")
    if not steerings:
        raise ValueError("A server that steers needs at least one steering: name=directory.")
    for name in (*steerings, *compose):
        if not NAME.fullmatch(name) or len(name) > LONGEST_NAME:
            raise ValueError(
                f"'{name}' is no name for a steering: use up to {LONGEST_NAME} letters, digits, "
                f"dots and dashes."
            )
    twice = set(steerings) & set(compose)
    if twice:
        raise ValueError(f"The name '{min(twice)}' is given twice.")
    entries = []
    for name, path in steerings.items():
        folder = locate(path, None).resolve()
        load(folder)  # refuses what no process could read
        entries.append({"name": name, "path": str(folder), "sha256": _digest(folder)})
    asked = {
        "version": __version__,
        "check": check,
        "steerings": entries,
        "compose": [{"name": name, "of": text} for name, text in compose.items()],
    }
    SteeringRegistry.of({KEY: asked})
    return {KEY: asked}


def options(
    steerings: Mapping[str, str | os.PathLike[str]],
    compose: Mapping[str, str] | None = None,
    check: str = "architecture",
) -> dict[str, Any]:
    """Arguments for `vllm.LLM` or `vllm.EngineArgs`: `LLM(model, **options({...}))`.

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
    """The steerings of a server, in the order in which they act.

    Attributes:
        steerings: by name.
        digests: what decides each of them, as a hash.
        check: see `configuration`.
    """

    steerings: dict[str, Steering]
    digests: dict[str, str]
    check: str

    @classmethod
    def of(cls, additional_config: Any) -> "SteeringRegistry | None":
        """That of an engine's `additional_config`; None where it says nothing of steering.

        Raises:
            ValueError: if a file is not the one that the server was started with, or cannot be
                read; names it.
        """
        asked = additional_config.get(KEY) if isinstance(additional_config, Mapping) else None
        return None if asked is None else _catalogue(json.dumps(asked, sort_keys=False))

    @cached_property
    def places(self) -> dict[Site, dict[str, LayerSteering]]:
        """The parts by the place where they act, first layer first."""
        found: dict[Site, dict[str, LayerSteering]] = {}
        for name, steering in self.steerings.items():
            for part in steering.parts:
                if part.layer is None:
                    raise ValueError(
                        f"The steering '{name}' does not know its layer: fit it with layer=...."
                    )
                found.setdefault((part.layer, part.site), {})[name] = part
        return dict(sorted(found.items()))

    def check_ask(self, ask: SteeringRequest) -> None:
        """Refuse what none of the processes could do.

        Raises:
            ValueError: in one line for the client.
        """
        steering = lookup(self.steerings, ask.name, "steering")
        for part in steering.parts:
            budget = part.dose if ask.dose is None else ask.dose
            if ask.probability is not None and budget.size <= 0:
                raise ValueError(
                    f"{KEY}: a target needs a positive budget, and '{ask.name}' has {budget}; give "
                    f"a strength or an angle with it."
                )
            if ask.dose_at(part.dose).stop_at is not None and part.field.barrier is None:
                raise ValueError(
                    f"{KEY}: '{ask.name}' has no barrier, so it cannot stop at a target; give a "
                    f"strength."
                )
            late = ask.start in ("last_prompt", "generated")
            if part.field.prompt_conditioned and not late:
                raise ValueError(
                    f"{KEY}: '{ask.name}' reads the prompt's last token first, so it starts at "
                    f"last_prompt or generated; got {ask.start!r}."
                )

    def key(self, ask: SteeringRequest) -> str:
        """All that decides what an ask does to an activation."""
        return json.dumps([self.digests[ask.name], ask.as_value()], sort_keys=True)

    def about(self) -> list[dict[str, Any]]:
        """What a client may know of them (JSON values)."""
        return [
            {
                "name": name,
                "method": steering.method,
                "layers": [part.layer for part in steering.parts],
                "dose": str(steering.dose),
                "has_barrier": all(part.field.barrier is not None for part in steering.parts),
                "fitted_on": steering.parts[0].model.get("name"),
                "sha256": self.digests[name],
            }
            for name, steering in self.steerings.items()
        ]


@lru_cache(maxsize=8)
def _catalogue(text: str) -> SteeringRegistry:
    asked = json.loads(text)
    if asked.get("version") != __version__:
        raise ValueError(
            f"The server was started with odesteer {asked.get('version')} and this machine has "
            f"{__version__}: install the same on all."
        )
    steerings: dict[str, Steering] = {}
    digests: dict[str, str] = {}
    for entry in asked["steerings"]:
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
    for entry in asked["compose"]:
        steerings[entry["name"]] = build(entry["of"], loaded)
        whole = json.dumps([entry["of"], digests], sort_keys=True)
        digests[entry["name"]] = hashlib.sha256(whole.encode()).hexdigest()
    return SteeringRegistry(steerings, digests, asked["check"])


def _digest(folder: Path) -> str:
    """Of its configuration, which holds the hash of its tensors."""
    return hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()


def starts(positions: Any) -> str:
    """Where steering starts in a request, for the library's name of its positions.

    Raises:
        ValueError: for a mask or "prompt": an engine steers everything from a position on.
    """
    found = START_OF.get(positions) if isinstance(positions, str) else None
    if found is None:
        what = repr(positions) if isinstance(positions, str) else "a mask"
        raise ValueError(
            f"vLLM steers from a position on: {', '.join(map(repr, START_OF))}; got {what}. "
            f"TransformersBackend also takes 'prompt'."
        )
    return found


class RegisteredSteerings:
    """The steerings of an engine.

    Args:
        catalogue: what it was started with; None for an engine that does not steer.
    """

    def __init__(self, catalogue: SteeringRegistry | None = None):
        self._catalogue = catalogue
        # A field is never changed, and hashing one is slower than asking for it.
        self._prints: WeakKeyDictionary[VectorField, str] = WeakKeyDictionary()
        self._names: dict[tuple[Any, ...], list[str]] = {}
        for name, steering in self.steerings.items():
            self._names.setdefault(self._print(steering), []).append(name)

    @property
    def steerings(self) -> Mapping[str, Steering]:
        """By name, each with its own dose."""
        return {} if self._catalogue is None else self._catalogue.steerings

    def serves(self, steering: Steering | None) -> bool:
        """Whether a request can ask for it."""
        try:
            self.ask(steering, "last_prompt")
        except ValueError:
            return False
        return True

    def ask(self, steering: Steering | None, start: str | int) -> dict[str, str] | None:
        """The `extra_args` of a request that is steered so from `start` on; None: not at all.

        Raises:
            ValueError: for a steering that the engine does not have, or a dose that a request
                cannot say; says what to do.
        """
        if steering is None or all(part.dose.is_zero for part in steering.parts):
            return None
        names = self._names.get(self._print(steering), [])
        if not names:
            raise ValueError(
                f"This engine does not have the steering '{steering.method}' of layer "
                f"{steering.layer}: start it with all that it shall serve "
                f"(it has: {', '.join(self.steerings) or 'none'}). A dose may change later, "
                f"nothing else."
            )
        doses = _doses(steering)
        own = [name for name in names if _doses(self.steerings[name]) == doses]
        if own:
            found = ask(own[0], start=start)
        else:
            found = ask(names[0], start=start, **_said(steering))
        assert self._catalogue is not None
        for one in parse(found[KEY]):
            self._catalogue.check_ask(one)
        return found

    def _print(self, steering: Steering) -> tuple[Any, ...]:
        """Equal for steerings that differ in nothing but their doses."""
        return tuple(
            (self._of(part.field), part.layer, part.site, part.solver, part.steps, part.calibration)
            for part in steering.parts
        )

    def _of(self, field: VectorField) -> str:
        if field not in self._prints:
            tree, tensors = describe(field, "field")
            plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
            said = json.dumps(tree, sort_keys=True).encode()
            self._prints[field] = hashlib.sha256(said + save(plain)).hexdigest()
        return self._prints[field]


def dose_fits_request(steering: Steering) -> bool:
    """Whether a request can say its dose, so that the engine need not be started with it."""
    try:
        return steering.dose.is_zero or bool(_said(steering))
    except ValueError:
        return False


def _doses(steering: Steering) -> list[Dose]:
    return [part.dose for part in steering.parts]


def _said(steering: Steering) -> dict[str, float]:
    """A steering's dose in the words of a request."""
    parts = steering.parts
    dose = parts[0].dose
    if any(part.dose != dose for part in parts):
        raise ValueError(
            f"A request says one dose for all layers; this steering has "
            f"{', '.join(str(part.dose) for part in parts)}. Start the engine with it at these "
            f"doses."
        )
    if isinstance(dose, Target):
        return {"target": dose.probability, **_amount(dose.budget, parts)}  # type: ignore[arg-type]
    return _amount(dose, parts)


def _amount(dose: Dose, parts: tuple[LayerSteering, ...]) -> dict[str, float]:
    if isinstance(dose, Angle):
        return {"angle": dose.size}
    as_time = isinstance(dose, PathLength) and all(part.field.unit_speed for part in parts)
    if isinstance(dose, Time) or as_time:
        return {"strength": dose.size}
    raise ValueError(
        f"A request says a strength, an angle or a target; got {dose}. Start the engine with the "
        f"steering at this dose."
    )
