"""Steerings that an engine has registered, matched by content and dose.

An engine has steerings by name; a caller has objects: the one that the engine was started with,
the same read from its directory, or either `with_strength`. They are recognised by what they do:
field, place, solver and calibration. The dose travels with each request.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from safetensors.torch import save

from odesteer.backends.vllm.config import ask
from odesteer.backends.vllm.registry import SteeringRegistry
from odesteer.backends.vllm.request import KEY, START_OF, parse
from odesteer.ode import Angle, Dose, PathLength, Target, Time, VectorField
from odesteer.steering import LayerSteering, Steering
from odesteer.steering.serialization.tree import describe


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
