"""Directory of shards, and the assignment of texts to them.

    DIR/extraction.json           description: contrast, model, layers, tokens, ...
    DIR/shards/N.safetensors      shard N, written atomically
    DIR/claims/N                  claim of a process that computes shard N

A shard holds the indices of its texts in the contrast (`positive`, `negative`) and, for every
layer (by its index), a matrix of their activations, positives first. Its header has the hash of
extraction.json and its number: a file that is cut off or another directory's is computed again.

Shard k of K has the positives from n k / K to n (k + 1) / K and the negatives from m k / K to
m (k + 1) / K. So both classes are in every shard, in the contrast's order; texts that share a
prompt are in one shard where rows of both classes belong together; and the assignment does not
depend on who computes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from odesteer.common.files import write_whole
from odesteer.common.jobs.directory import WorkFolder, refuse_other
from odesteer.common.limits import MAX_LAYERS, parse_json, read_json
from odesteer.extraction.cache.store import digest

ROWS = 2048  # texts a shard: 19 MB a layer of 2304 numbers, minutes of work on a CPU


@dataclass(frozen=True)
class ShardPlan:
    """Texts of one shard.

    Attributes:
        number: index among all shards.
        positive: indices of its positive texts in the contrast.
        negative: indices of its negative texts.
    """

    number: int
    positive: range
    negative: range

    @property
    def weight(self) -> int:
        """Number of texts."""
        return len(self.positive) + len(self.negative)

    @property
    def needs(self) -> Sequence[int]:
        return ()

    @property
    def fold(self) -> int:
        return self.number

    @property
    def keeps(self) -> bool:
        return False


def parts(n: int, m: int, rows_per_shard: int) -> tuple[ShardPlan, ...]:
    """Assign n positive and m negative texts to shards.

    Args:
        n, m: at least 1 each.
        rows_per_shard: about how many texts a shard has at most; more where a class has fewer
            texts than there would be shards.

    Raises:
        ValueError: for fewer than 2 rows, one of each class.
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


ABOUT, SCHEMA = "extraction.json", 1
# Upper bounds on texts of a class and on shards, far beyond any data set.
MAX_TEXTS, MAX_PARTS = 2**40, 2**20
PARTS, SUFFIX, ENTRY = "shards", ".safetensors", "shard"
# Entries that make it another extraction, the plainest first. Neither the number of threads, which
# later processes take over, nor the name of the model.
KEYS = (
    "contrast",
    "layers",
    "tokens",
    "site",
    "max_tokens",
    "rows_per_shard",
    "batch_tokens",
    "tokenizer",
    "machine",
    "model_fingerprint",
    "version",
    "schema",
)


class ShardFolder(WorkFolder):
    """Directory of shards, to be filled."""

    def __init__(self, path: Path):
        super().__init__(path, ABOUT, (PARTS, SUFFIX))

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
        key = self.key(part.number)
        assert key is not None, "it is said first what is extracted"
        tensors = {str(layer): rows.contiguous() for layer, rows in layers.items()}
        sums = {name: digest(rows) for name, rows in tensors.items()}
        indices = {
            "positive": torch.tensor(part.positive, dtype=torch.int64),
            "negative": torch.tensor(part.negative, dtype=torch.int64),
        }
        about = {"key": key, "truncated": truncated, "sums": sums}
        # One entry, since safetensors writes several in any order: equal shards are equal files.
        text = json.dumps(about, sort_keys=True)
        write_whole(self.part(part.number), save({**indices, **tensors}, {ENTRY: text}))


def header(path: Path) -> dict[str, Any]:
    """Read a shard's own header; empty for a file that is damaged or no shard."""
    try:
        # Also compares the size of the file with what should be in it.
        with safe_open(path, framework="pt") as file:
            about = parse_json((file.metadata() or {}).get(ENTRY, "null"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def refuse_another(path: Path, about: Mapping[str, Any]) -> None:
    """Raise ValueError, naming what differs, for a directory of other work."""
    parts = path / PARTS
    if not (path / ABOUT).is_file() and parts.is_dir() and any(parts.glob(f"*{SUFFIX}")):
        raise ValueError(
            f"'{path}' holds shards and no {ABOUT} that says of what. Choose another --out, or "
            f"remove that directory."
        )
    refuse_other(path / ABOUT, about, KEYS)


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
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        schema = about.get("schema") if isinstance(about, dict) else None
        raise ValueError(
            f"'{path / ABOUT}' cannot be used: it has schema {schema!r:.40}, and this version "
            f"reads schema {SCHEMA}."
        )
    if not _is_plan(about):
        raise ValueError(
            f"'{path / ABOUT}' cannot be used: its layers, contrast and rows_per_shard are not "
            f"what odesteer writes."
        )
    return about


def _is_plan(about: Mapping[str, Any]) -> bool:
    """Whether the numbers by which a directory is read are there and plausible."""
    layers, contrast = about.get("layers"), about.get("contrast")
    rows: Any = about.get("rows_per_shard")
    if not isinstance(layers, list) or not isinstance(contrast, dict):
        return False
    sizes: list[Any] = [contrast.get("positive"), contrast.get("negative")]
    return (
        all(type(layer) is int and 0 <= layer < MAX_LAYERS for layer in layers)
        and all(type(count) is int and 1 <= count <= MAX_TEXTS for count in [*sizes, rows])
        and rows >= 2
        and sum(sizes) <= MAX_PARTS * rows
    )
