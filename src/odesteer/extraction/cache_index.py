"""Index of the cache on disk: listing and removal.

    <cache>/activations/<model>/model.json              which model that is
    <cache>/activations/<model>/<site>-<tokens>/*.safetensors   a batch of texts each

Nothing here needs torch, so that `odesteer cache` answers at once.
"""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odesteer.common.files import cache_dir
from odesteer.common.limits import MAX_JSON_BYTES, parse_json, read_json

MODEL, SUFFIX, SCHEMA = "model.json", ".safetensors", "2"
DAY = 86400.0
_LAYER = re.compile(r"[0-9]{1,4}")


def activations_dir() -> Path:
    """Return the default directory of cached activations."""
    return cache_dir() / "activations"


def size_limit() -> int:
    """Return the size limit of a cache in bytes: ODESTEER_CACHE_GB, or 20 GB.

    Raises:
        ValueError: if the variable is no number.
    """
    gigabytes = os.environ.get("ODESTEER_CACHE_GB") or "20"
    try:
        return int(float(gigabytes) * 1e9)
    except (ValueError, OverflowError):
        raise ValueError(
            f"ODESTEER_CACHE_GB is a number of gigabytes; got {gigabytes!r}."
        ) from None


@dataclass(frozen=True)
class CachedModel:
    """Cached activations of one model.

    Attributes:
        key: its fingerprint, the folder's name.
        name: what it was called.
        revision: its commit on the Hub, if it is from there.
        layers: decoder blocks, by "site-tokens".
        rows: texts.
        size: bytes.
        last_used: seconds since 1970, of the file read or written last.
    """

    key: str
    name: str
    revision: str | None
    layers: dict[str, list[int]]
    rows: int
    size: int
    last_used: float


def cached_models(folder: Path) -> list[CachedModel]:
    """List the models in a cache, the one used last first."""
    models = [_cached_model(each) for each in _models(folder)]
    return sorted(models, key=lambda model: -model.last_used)


def remove(
    folder: Path, model: str | None = None, older_than: float | None = None
) -> tuple[int, int]:
    """Remove cached files; return their number and bytes.

    Args:
        folder: the cache.
        model: only of this name or fingerprint (or the beginning of it).
        older_than: only what was not used for so many days.
    """
    latest = None if older_than is None else time.time() - older_than * DAY
    count = size = 0
    for each in _models(folder):
        if model is not None and not (model == _about(each)["name"] or each.name.startswith(model)):
            continue
        for path, stat in _files(each):
            if latest is None or stat.st_mtime < latest:
                count, size = count + _unlink(path), size + stat.st_size
        _tidy(each)
    return count, size


def trim(folder: Path, limit: int) -> tuple[int, int]:
    """Remove the least recently used files until at most `limit` bytes are left."""
    files = [entry for each in _models(folder) for entry in _files(each)]
    excess = sum(stat.st_size for _, stat in files) - limit
    count = size = 0
    for path, stat in sorted(files, key=lambda entry: entry[1].st_mtime):
        if size >= excess:
            break
        count, size = count + _unlink(path), size + stat.st_size
    if count:
        for each in _models(folder):
            _tidy(each)
    return count, size


def header(path: Path) -> dict[str, Any]:
    """Read the header of a safetensors file; empty for a file that has none."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        value = parse_json(file.read(length)) if length <= MAX_JSON_BYTES else None
        return value if isinstance(value, dict) else {}
    return {}


def _models(folder: Path) -> list[Path]:
    """List the folders of models; anything else in there is not ours to touch."""
    with suppress(OSError):
        return sorted(each for each in folder.iterdir() if _is_key(each.name) and each.is_dir())
    return []


def _is_key(name: str) -> bool:
    return len(name) == 32 and set(name) <= set("0123456789abcdef")


def _files(model: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield the batch files of a model, and remains of writers that were killed."""
    for path in model.glob(f"*/*{SUFFIX}*"):
        with suppress(OSError):  # another process may have removed it
            yield path, path.stat()


def _cached_model(model: Path) -> CachedModel:
    about = _about(model)
    layers: dict[str, set[int]] = {}
    rows: dict[tuple[str, str], int] = {}
    size, last_used = 0, 0.0
    for path, stat in _files(model):
        size, last_used = size + stat.st_size, max(last_used, stat.st_mtime)
        site, batch = path.parent.name, path.name.split(".")[0]
        for name, entry in header(path).items():
            shape = entry.get("shape") if isinstance(entry, dict) else None
            if (
                _LAYER.fullmatch(name)
                and isinstance(shape, list)
                and shape
                and type(shape[0]) is int
            ):
                layers.setdefault(site, set()).add(int(name))
                rows[site, batch] = shape[0]
    return CachedModel(
        key=model.name,
        name=about["name"],
        revision=about.get("revision"),
        layers={site: sorted(indices) for site, indices in sorted(layers.items())},
        rows=sum(rows.values()),
        size=size,
        last_used=last_used,
    )


def _about(model: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        about = read_json(model / MODEL)
        if isinstance(about, dict) and isinstance(about.get("name"), str):
            return about
    return {"name": "unknown"}


def _unlink(path: Path) -> int:
    """Remove a file; return 1 if this call removed it, else 0."""
    with suppress(OSError):
        path.unlink()
        return 1
    return 0


def _tidy(model: Path) -> None:
    """Remove a model's empty folders."""
    for folder in model.iterdir():
        if folder.is_dir():
            with suppress(OSError):  # not empty
                folder.rmdir()
    remaining = list(model.iterdir())
    if all(each.name.startswith((MODEL, f".{MODEL}.")) for each in remaining):
        for each in remaining:
            _unlink(each)
    with suppress(OSError):
        model.rmdir()
