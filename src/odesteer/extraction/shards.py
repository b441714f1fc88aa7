"""Shards of a contrast's activations: their directory, and its view as a data set.

    DIR/extraction.json           description: contrast, model, layers, tokens, ...
    DIR/shards/N.safetensors      shard N, written atomically
    DIR/claims/N                  claim of a process that computes shard N

A shard holds the indices of its texts in the contrast (`positive`, `negative`) and the matrices
[b, d] of the activation cache, positives first, with their checksums. Its header has the hash of
extraction.json and its number: a file that is cut off or another directory's is computed again.
The cache names a batch by its content; a shard has a number, so that processes can share the work
before a text is tokenized, and is one file whatever the size of a pass.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from odesteer.common.files import write_whole
from odesteer.common.jobs import WorkFolder, refuse_other
from odesteer.common.limits import MAX_LAYERS, brief, parse_json, read_json
from odesteer.extraction.cache import checked, digest

ROWS = 2048  # texts a shard: 19 MB a layer of 2304 numbers, minutes of work on a CPU
ABOUT, SCHEMA, ENTRY = "extraction.json", 1, "shard"
# Upper bounds on texts of a class and on shards, far beyond any data set.
MAX_TEXTS, MAX_PARTS = 2**40, 2**20


@dataclass(frozen=True)
class ShardPlan:
    """Texts of one shard, a unit of a job.

    Attributes:
        number: index among all shards.
        positive: indices of its positive texts in the contrast.
        negative: indices of its negative texts.
    """

    number: int
    positive: range
    negative: range
    needs: tuple[int, ...] = ()
    fold: int = 0
    keeps: bool = False

    @property
    def weight(self) -> int:
        """Number of texts."""
        return len(self.positive) + len(self.negative)


def parts(n: int, m: int, rows_per_shard: int) -> tuple[ShardPlan, ...]:
    """Assign n positive and m negative texts to shards.

    Shard k of K has the positives from n k / K to n (k + 1) / K and the negatives from m k / K to
    m (k + 1) / K. So both classes are in every shard, in the contrast's order, texts that share a
    prompt are in one shard where rows of both classes belong together, and the assignment does not
    depend on who computes.

    Args:
        n, m: at least 1 each.
        rows_per_shard: about how many texts a shard has at most; more where a class has fewer
            texts than there would be shards.

    Raises:
        ValueError: for fewer than 2 rows, one of each class.

    >>> [len(part.positive) for part in parts(5, 7, 6)]
    [2, 3]
    """
    if rows_per_shard < 2:
        raise ValueError(
            f"A shard has at least one positive and one negative text; got {rows_per_shard} rows "
            f"per shard."
        )
    count = min(-(-(n + m) // rows_per_shard), n, m)

    def cut(size: int, k: int) -> range:
        return range(size * k // count, size * (k + 1) // count)

    return tuple(ShardPlan(k, cut(n, k), cut(m, k)) for k in range(count))


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

        for shard in Shards.open("activations"):
            positive, negative = shard.layers[14]

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
        return parts(*self.sizes, self.about["rows_per_shard"])

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
        shards = list(self.read(layers))
        whole = {
            index: (
                torch.cat([shard.layers[index][0] for shard in shards]),
                torch.cat([shard.layers[index][1] for shard in shards]),
            )
            for index in layers
        }
        return whole[layer] if isinstance(layer, int) else whole

    def _read(self, part: ShardPlan, layers: Sequence[int]) -> Shard:
        path = ShardFolder(self.path).part(part.number)
        sums = header(path).get("sums", {})
        k = len(part.positive)
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {
                    layer: checked(file, layer, part.weight, sums.get(str(layer)))
                    for layer in layers
                }
        except (SafetensorError, OSError, ValueError, AttributeError) as error:
            raise ValueError(
                f"'{path}' is damaged: it is not what was written ({brief(error)}). Remove it, and "
                f"extract again with the same --out: only this shard is computed."
            ) from None
        split = {layer: (rows[:k], rows[k:]) for layer, rows in tensors.items()}
        return Shard(part.positive, part.negative, split)


class ShardFolder(WorkFolder):
    """Directory of shards, to be filled."""

    def __init__(self, path: Path):
        super().__init__(path, ABOUT, ("shards", ".safetensors"))

    def refuse_other(self, about: Mapping[str, Any]) -> None:
        """Raise ValueError, naming what differs, for a directory of other work."""
        if not self.about.is_file() and any(self.path.glob("shards/*.safetensors")):
            raise ValueError(
                f"'{self.path}' holds shards and no {ABOUT} that says of what. Choose another "
                f"--out, or remove that directory."
            )
        refuse_other(self.about, about, list(about))

    def key(self, number: int) -> str | None:
        """Return the header key of a shard; None before the extraction was described."""
        try:
            about = self.about.read_bytes()
        except FileNotFoundError:
            return None
        return hashlib.sha256(b"%d %s" % (number, about)).hexdigest()

    def done(self, number: int) -> bool:
        """Whether the shard is there, complete and this extraction's."""
        path = self.part(number)
        return path.is_file() and header(path).get("key", "") == self.key(number)

    def write(self, part: ShardPlan, layers: Mapping[int, Tensor], truncated: int) -> None:
        """Write a shard: [k + l, d] float32 by layer, for k positive and l negative texts."""
        tensors = {str(layer): rows.contiguous() for layer, rows in layers.items()}
        sums = {name: digest(rows) for name, rows in tensors.items()}
        for name in ("positive", "negative"):
            tensors[name] = torch.tensor(getattr(part, name), dtype=torch.int64)
        # One entry, since safetensors writes several in any order: equal shards are equal files.
        about = {"key": self.key(part.number), "truncated": truncated, "sums": sums}
        payload = save(tensors, {ENTRY: json.dumps(about, sort_keys=True)})
        write_whole(self.part(part.number), payload)


def header(path: Path) -> dict[str, Any]:
    """Read a shard's own header; empty for a file that is damaged or no shard."""
    try:
        # Also compares the size of the file with what should be in it.
        with safe_open(path, framework="pt") as file:
            about = parse_json((file.metadata() or {}).get(ENTRY, "null"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def read_about(path: Path) -> dict[str, Any]:
    """Read the description of an extraction from its directory.

    Raises:
        FileNotFoundError: if it is no directory of shards.
        ValueError: if it cannot be read, or is of a newer version.
    """
    try:
        about = read_json(path / ABOUT)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"No activations at '{path}': it has no {ABOUT}. A directory of shards is written by "
            f"odesteer.extract_shards or `odesteer extract --out`."
        ) from None
    except ValueError:
        about = None
    if not isinstance(about, dict) or about.get("schema") != SCHEMA or not _is_plan(about):
        raise ValueError(
            f"'{path / ABOUT}' cannot be used: it is damaged, or not of schema {SCHEMA}, which "
            f"this version reads."
        )
    return about


def _is_plan(about: Mapping[str, Any]) -> bool:
    """Whether the numbers by which a directory is read are there and plausible."""
    layers, contrast, rows = (about.get(key) for key in ("layers", "contrast", "rows_per_shard"))
    if not isinstance(layers, list) or not isinstance(contrast, dict):
        return False
    counts: list[Any] = [contrast.get("positive"), contrast.get("negative"), rows]
    return (
        all(type(layer) is int and 0 <= layer < MAX_LAYERS for layer in layers)
        and all(type(count) is int and 1 <= count <= MAX_TEXTS for count in counts)
        and counts[2] >= 2
        and counts[0] + counts[1] <= MAX_PARTS * counts[2]
    )
