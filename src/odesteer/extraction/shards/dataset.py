"""Data set view of a directory of shards."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from odesteer.common.limits import brief
from odesteer.extraction.cache.store import digest
from odesteer.extraction.shards.directory import ShardFolder, ShardPlan, header, parts, read_about


class Shard(NamedTuple):
    """Contents of one shard.

    Attributes:
        positive: indices of its positive texts in the contrast.
        negative: indices of its negative texts.
        layers: ([k, d], [l, d]) float32 by layer, views of the file, which stays on disk until
            they are used: do not write into them.
    """

    positive: range
    negative: range
    layers: dict[int, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Shards:
    """Complete directory of shards.

    Attributes:
        path: the directory.
        about: its extraction.json: contrast, model, layers, tokens, ...
        computed: how many shards were computed by the call that returned this.
    """

    path: Path
    about: dict[str, Any]
    computed: int = 0

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Shards":
        """Open a directory that `extract_shards` has filled.

        Raises:
            FileNotFoundError: if it is no such directory.
            ValueError: if it is not complete, or a shard is damaged or another directory's.
        """
        shards = cls(Path(path), read_about(Path(path)))
        folder = ShardFolder(shards.path)
        missing = [part.number for part in shards.parts if not folder.done(part.number)]
        if missing:
            raise ValueError(
                f"'{path}' has {len(shards.parts) - len(missing)} of {len(shards.parts)} shards; "
                f"{folder.part(missing[0]).name} is missing, cut off, or another directory's. "
                f"Extract again with the same --out: what is there is kept."
            )
        return shards

    @property
    def parts(self) -> tuple[ShardPlan, ...]:
        """Assignment of texts to shards."""
        n, m = self.sizes
        return parts(n, m, self.about["rows_per_shard"])

    @property
    def layers(self) -> list[int]:
        return list(self.about["layers"])

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of positive and of negative texts."""
        return self.about["contrast"]["positive"], self.about["contrast"]["negative"]

    @property
    def truncated(self) -> int:
        """Number of texts that were longer than the model's context or `max_tokens`."""
        folder = ShardFolder(self.path)
        counts = (header(folder.part(p.number)).get("truncated") for p in self.parts)
        return sum(count for count in counts if isinstance(count, int))

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Shard]:
        """Yield the shards in the order of the contrast, each read in its turn.

        Raises:
            ValueError: for a shard that is damaged.
        """
        return self.read(self.layers)

    def read(self, layers: Sequence[int]) -> Iterator[Shard]:
        """Yield the shards with only the given layers.

        Raises:
            ValueError: for a layer that was not extracted, or a shard that is damaged.
        """
        for layer in layers:
            if layer not in self.layers:
                known = ", ".join(map(str, self.layers))
                raise ValueError(f"'{self.path}' has the layers {known}; got {layer!r}.")
        return (self._read(part, layers) for part in self.parts)

    @overload
    def load(self, layer: int) -> tuple[Tensor, Tensor]: ...
    @overload
    def load(self, layer: Sequence[int] | None = None) -> dict[int, tuple[Tensor, Tensor]]: ...
    def load(
        self, layer: int | Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor] | dict[int, tuple[Tensor, Tensor]]:
        """Return ([n, d], [m, d]) float32 as `odesteer.activations` does.

        Args:
            layer: an index as in `layers`; several, or None for all, give a dict by index.

        Raises:
            ValueError: for a layer that was not extracted, or a shard that is damaged.
        """
        layers = self.layers if layer is None else [layer] if isinstance(layer, int) else layer
        n, m = self.sizes
        whole: dict[int, tuple[Tensor, Tensor]] = {}
        for shard in self.read(layers):
            for index, (positive, negative) in shard.layers.items():
                if index not in whole:
                    d = positive.shape[1]
                    whole[index] = torch.empty(n, d), torch.empty(m, d)
                whole[index][0][shard.positive.start : shard.positive.stop] = positive
                whole[index][1][shard.negative.start : shard.negative.stop] = negative
        return whole[layer] if isinstance(layer, int) else whole

    def _read(self, part: ShardPlan, layers: Sequence[int]) -> Shard:
        path = ShardFolder(self.path).part(part.number)
        k = len(part.positive)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {layer: file.get_tensor(str(layer)) for layer in layers}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{_damaged(path)} ({brief(error)})") from None
        sums = header(path).get("sums")
        for layer, rows in tensors.items():
            whole = rows.dtype == torch.float32 and rows.dim() == 2 and len(rows) == part.weight
            if not whole or not isinstance(sums, dict) or digest(rows) != sums.get(str(layer)):
                raise ValueError(_damaged(path))
        split = {layer: (rows[:k], rows[k:]) for layer, rows in tensors.items()}
        return Shard(part.positive, part.negative, split)


def _damaged(path: Path) -> str:
    return (
        f"'{path}' is damaged: it is not what was written. Remove it, and extract again with the "
        f"same --out: only this shard is computed."
    )
