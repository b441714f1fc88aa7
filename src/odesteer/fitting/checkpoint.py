"""Checkpoint of a training run: everything that an epoch changes, on disk until the run is done.

One safetensors file, with the numbers as JSON in its header, in the folder of the model's cached
activations. Its name is a hash of all that the run depends on, so that nothing else is resumed.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from odesteer import __version__
from odesteer.common.files import write_whole
from odesteer.extraction.cache.index import SUFFIX, activations_dir
from odesteer.extraction.cache.store import CacheChoice
from odesteer.models.fingerprint import fingerprint, obstacle


class Epoch(NamedTuple):
    """State after an epoch: held-out margin and KL, nats a token, and the margin at the budget."""

    margin: float
    kl: float
    at_budget: float


@dataclass
class TrainingState:
    """Everything that an epoch changes.

    Attributes:
        parameters: of the field.
        optimiser: Adam.
        generator: of the order, the directions and the angles.
        weight: of the KL, lambda.
        record: of the start and each epoch done.
        best: the parameters of the best of them.
    """

    parameters: nn.Module
    optimiser: torch.optim.Optimizer
    generator: np.random.Generator
    weight: float
    record: list[Epoch]
    best: dict[str, Tensor]

    def save(self, path: Path) -> None:
        """Write the state; a full disk is only a warning."""
        groups = {"now": self.parameters.state_dict(), "best": self.best}
        groups |= {str(i): each for i, each in self.optimiser.state_dict()["state"].items()}
        tensors = {f"{name}.{key}": x for name, each in groups.items() for key, x in each.items()}
        numbers = json.dumps([self.weight, self.record, self.generator.bit_generator.state])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, save(tensors, {"numbers": numbers}))
        except OSError as error:
            warnings.warn(f"An interrupted training cannot be resumed: {error}.", stacklevel=3)

    def load(self, path: Path) -> None:
        """Restore what `save` wrote; without such a file, or with a damaged one, do nothing."""
        with suppress(OSError, SafetensorError, ValueError), safe_open(path, "pt") as file:
            weight, record, drawn = json.loads((file.metadata() or {}).get("numbers", ""))
            groups: dict[str, dict[str, Tensor]] = {}
            for name in file.keys():  # noqa: SIM118
                group, key = name.split(".", 1)
                groups.setdefault(group, {})[key] = file.get_tensor(name).clone()
            self.parameters.load_state_dict(groups.pop("now"))
            self.best = groups.pop("best")
            adam = {int(i): each for i, each in groups.items()}
            self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": adam})
            self.generator.bit_generator.state = drawn
            self.weight, self.record = weight, [Epoch(*each) for each in record]


def checkpoint_path(choice: CacheChoice, model: nn.Module, run: Mapping[str, Any]) -> Path | None:
    """Return where a run is kept; None without a cache, or for a model without a fingerprint.

    Args:
        choice: of the cache.
        model: what the run trains through.
        run: everything else that it depends on, as JSON values.
    """
    if choice is False or obstacle(model) is not None:
        return None
    try:
        folder = activations_dir() if choice is True else Path(choice)
    except OSError:
        return None  # the activations have said why
    content = json.dumps({**run, "version": __version__}, sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()[:40]
    return folder / fingerprint(model) / "training" / f"{key}{SUFFIX}"
