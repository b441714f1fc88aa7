"""Defaults of a running server's steerings, which the operator changes without a restart.

    POST /v1/steerings/truthful {"angle": 0.2}        the dose of requests that name none
    POST /v1/steerings/truthful {"enabled": false}    nobody is steered by it
    POST /v1/steerings/truthful {}                    as the server was started

A request gets its dose when it arrives and keeps it to its end, so no text changes in its middle.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from odesteer.backends.vllm.registry import SteeringRegistry
from odesteer.backends.vllm.request import KEY, SteeringRequest, parse
from odesteer.common.registry import lookup
from odesteer.ode import Time

_FIELDS = ("strength", "angle", "target", "coverage", "enabled")


class LiveDefaults:
    """Defaults by steering, of one process of the API server.

    Args:
        registry: the steerings of the server.
    """

    def __init__(self, registry: SteeringRegistry):
        self._registry = registry
        # Replaced as a whole, never changed: a request that has read it keeps what it read.
        self.changed: Mapping[str, SteeringRequest | None] = {}

    @property
    def names(self) -> list[str]:
        """Names of the server's steerings."""
        return list(self._registry.steerings)

    def set(self, name: str, fields: Any) -> None:
        """Change the default of one steering.

        Args:
            name: of a steering that the server has.
            fields: "strength" or "angle", "target", "enabled"; none of them: as it was started.

        Raises:
            ValueError: for anything that no request could ask for, in one line.
        """
        lookup(self._registry.steerings, name, "steering")
        if not isinstance(fields, Mapping):
            raise ValueError(f"A default is an object; got {type(fields).__name__}.")
        unknown = [str(key) for key in fields if key not in _FIELDS]
        if unknown:
            lookup(dict.fromkeys(_FIELDS), unknown[0], "field")
        enabled = fields.get("enabled", True)
        if not isinstance(enabled, bool):
            raise ValueError(f"enabled is true or false; got {type(enabled).__name__}.")
        dose = {key: value for key, value in fields.items() if key != "enabled"}
        if dose and not enabled:
            raise ValueError("A steering that is not enabled has no dose: leave one of them out.")
        changed = {key: value for key, value in self.changed.items() if key != name}
        if not enabled:
            changed[name] = None
        elif dose:
            [request] = parse({"name": name, **dose})
            self._registry.check_request(request)
            changed[name] = request
        self.changed = changed

    def describe(self) -> list[dict[str, Any]]:
        """Return what a client may know of the steerings, with their defaults of now."""
        return [entry | self._now(entry["name"]) for entry in self._registry.describe()]

    def _now(self, name: str) -> dict[str, Any]:
        request = self.changed.get(name)
        enabled = name not in self.changed or request is not None
        if request is None:
            return {"enabled": enabled}
        own = self._registry.steerings[name].dose
        return {"enabled": enabled, "dose": str(request.dose_at(own))}


def with_defaults(
    requests: tuple[SteeringRequest, ...], changed: Mapping[str, SteeringRequest | None]
) -> tuple[SteeringRequest, ...]:
    """Give requests that name no dose the default of now; one that is not enabled gets dose 0.

    Args:
        requests: as clients have made them.
        changed: of `LiveDefaults`, when the requests arrived.
    """
    return tuple(
        _with_default(each, changed) if each.name in changed else each for each in requests
    )


def _with_default(
    request: SteeringRequest, changed: Mapping[str, SteeringRequest | None]
) -> SteeringRequest:
    default = changed[request.name]
    if default is None:
        return replace(request, dose=Time(0.0), probability=None, coverage=None)
    if request.dose is not None or request.probability is not None:
        return request
    return replace(
        request, dose=default.dose, probability=default.probability, coverage=default.coverage
    )


def check_one_process(count: Any) -> None:
    """Refuse changes where several processes of the API server would each have their own.

    Raises:
        ValueError: for more than one.
    """
    if isinstance(count, int) and count > 1:
        raise ValueError(
            f"{KEY}: this server has {count} API processes (--api-server-count), and a change "
            f"would reach one of them: restart it with one, or with another steering."
        )
