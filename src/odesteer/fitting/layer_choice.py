"""Choice of layers: their rank by held-out log-loss of one barrier, and which of equals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from odesteer.extraction.extract import Progress
from odesteer.methods import ODESteer
from odesteer.methods.base import held_out_quality
from odesteer.models.layers import find_layers
from odesteer.steering.calibration import BinaryQuality

# The barrier that ranks layers: one setting, so that layers differ and nothing else does.
RANKING_METHOD = ODESteer(gamma=1.0, C=1.0, p=0.0)
# Nats of held-out log-loss within which layers are equals.
TIE = 0.005
TOO_FEW = (
    'layer="auto" compares layers on held-out groups, and this contrast has fewer than two in a '
    "class. Give more examples, or choose the layer."
)


def middle_layers(model: nn.Module) -> list[int]:
    """Return the blocks from one fifth to two thirds of the depth.

    Earlier ones have not read the text yet; later ones tell the classes apart as well, but
    leave the model few blocks in which the change could take effect.
    """
    depth = len(find_layers(model))
    return list(range(depth // 5, max(depth * 2 // 3, depth // 5 + 1)))


def rank_layers(
    data: dict[int, tuple[Tensor, Tensor]],
    groups: tuple[Sequence[Any], Sequence[Any]],
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[int, BinaryQuality]:
    """Measure the held-out quality of each layer by cross-validation over groups.

    Raises:
        ValueError: if there are too few groups to hold any out.
    """
    qualities = {}
    for done, (index, (positive, negative)) in enumerate(data.items(), start=1):
        samples = RANKING_METHOD.check(positive, negative, groups)
        quality = held_out_quality(RANKING_METHOD, samples, seed)
        if quality is None:
            raise ValueError(TOO_FEW)
        qualities[index] = quality
        if progress is not None:
            progress(done, len(data))
    return qualities


def best_layer(qualities: dict[int, BinaryQuality], depth: int) -> int:
    """Return the layer with the smallest held-out log-loss; of equals the one nearest the middle.

    Layers within `TIE` of the smallest are equals: on few texts they often all separate the
    classes. The first ones break the text, and the last ones leave no blocks to act on.

    Args:
        qualities: by layer, of `rank_layers`.
        depth: blocks of the model.
    """
    return min(_equals(qualities), key=lambda index: abs(index - (depth - 1) / 2))


def spread_layers(qualities: dict[int, BinaryQuality], count: int) -> list[int]:
    """Return `count` of the best layers, spread over those that are equals; see `best_layer`."""
    equals = _equals(qualities)
    if len(equals) < count:
        return sorted(sorted(qualities, key=lambda index: qualities[index].log_loss)[:count])
    places = np.linspace(0, len(equals) - 1, count).round().astype(int)
    return [equals[place] for place in places]


def _equals(qualities: dict[int, BinaryQuality]) -> list[int]:
    least = min(quality.log_loss for quality in qualities.values())
    return sorted(index for index, each in qualities.items() if each.log_loss <= least + TIE)
