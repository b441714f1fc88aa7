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

from odesteer import __version__
from odesteer.backends.vllm.request import KEY, LONGEST_NAME, SteeringRequest
from odesteer.common.registry import lookup
from odesteer.models.compatibility import LEVELS
from odesteer.steering import LayerSteering, Steering, load
from odesteer.steering.expression import NAME, build
from odesteer.steering.hub import locate
from odesteer.steering.serialization.directory import CONFIG

Steering = Steering
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
