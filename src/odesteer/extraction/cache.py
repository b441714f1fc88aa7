"""Store of cached activations, one file a batch.

A file holds a tensor [b, d] for each layer. It is found by its content (the model's fingerprint,
the token ids of the whole batch, how they go through the model, site and pooling), written
atomically and never changed; so several processes may use one cache, and a process that was
killed continues where it stopped.

The unit is a batch because a matrix product rounds differently in another: what is read is to
the bit what the same call would compute.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from odesteer.common.files import is_temporary, remove_if_abandoned, write_whole
from odesteer.extraction.cache_index import MODEL, SCHEMA, SUFFIX, activations_dir, size_limit, trim
from odesteer.models.compatibility import model_name
from odesteer.models.fingerprint import fingerprint, obstacle

# False: none; True: the default of `activations_dir`; or a folder.
CacheChoice = bool | str | os.PathLike[str]


class Content(NamedTuple):
    """Cache key of a batch: what its activations depend on beside model and site.

    Attributes:
        rows: the batch's token ids.
        starts: where each response starts, where that matters.
        passes: how many first tokens are computed once for texts that share them, and how many
            texts each forward pass takes.
    """

    rows: Sequence[Sequence[int]]
    starts: Sequence[int]
    passes: Sequence[int]

    def key(self) -> str:
        digest = hashlib.sha256(SCHEMA.encode())
        for numbers in (self.passes, [len(row) for row in self.rows], self.starts, *self.rows):
            digest.update(np.array([len(numbers), *numbers], dtype="<i8").tobytes())
        return digest.hexdigest()[:40]


class ActivationCache:
    """Cache of the activations of one model at one site and pooling."""

    @classmethod
    def of(
        cls, choice: CacheChoice, model: nn.Module, site: str, tokens: str
    ) -> "ActivationCache | None":
        """Open the chosen cache; None, with a warning, where it cannot be used."""
        if choice is False:
            return None
        reason = obstacle(model)
        if reason is not None:
            warnings.warn(
                f"Activations are computed afresh and not cached: {reason}.", stacklevel=4
            )
            return None
        try:
            folder = activations_dir() if choice is True else Path(choice)
        except OSError as error:
            warnings.warn(f"Activations are not cached: {error}", stacklevel=4)
            return None
        return cls(folder, model, site, tokens)

    def __init__(self, folder: Path, model: nn.Module, site: str, tokens: str):
        self._root = folder
        self._model = folder / fingerprint(model)
        self._folder = self._model / f"{site}-{tokens}"
        self._about = _about(model)
        self._limit = size_limit()  # raises before anything is computed
        self._writes = True
        self._wrote = False
        self._files: dict[str, list[Path]] = {}
        with suppress(OSError):
            for path in sorted([*self._model.iterdir(), *self._folder.iterdir()]):
                if is_temporary(path.name):
                    remove_if_abandoned(path)
                else:
                    self._files.setdefault(path.name.split(".")[0], []).append(path)

    def get(self, batch: Content, layers: Sequence[int]) -> dict[int, Tensor]:
        """Return the cached layers of a batch, [b, d] float32 each."""
        known: dict[int, Tensor] = {}
        for path in self._files.get(batch.key(), []):
            missing = [layer for layer in layers if layer not in known]
            if not missing:
                break
            # Another process may have removed it meanwhile, or own it.
            with suppress(OSError):
                try:
                    known.update(_read(path, missing, len(batch.rows)))
                    os.utime(path)  # what is used is kept longest
                except (SafetensorError, ValueError):
                    path.unlink()  # damaged
        return known

    def put(self, batch: Content, activations: dict[int, Tensor]) -> None:
        """Store a batch's activations [b, d] by layer; a full disk is only a warning."""
        if not self._writes:
            return
        tensors = {str(layer): value.contiguous() for layer, value in activations.items()}
        layers = hashlib.sha256(",".join(sorted(tensors)).encode()).hexdigest()[:8]
        sums = {f"sum:{name}": digest(value) for name, value in tensors.items()}
        payload = save(tensors, {"schema": SCHEMA, **sums})
        try:
            try:
                self._write(f"{batch.key()}.{layers}{SUFFIX}", payload)
            except FileNotFoundError:  # another process empties the cache
                self._write(f"{batch.key()}.{layers}{SUFFIX}", payload)
            self._wrote = True
        except OSError as error:
            self._writes = False
            warnings.warn(f"Activations are not cached: {error}.", stacklevel=4)

    def _write(self, name: str, payload: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if not (self._model / MODEL).exists():
            write_whole(self._model / MODEL, json.dumps(self._about).encode())
        write_whole(self._folder / name, payload, tidy=False)

    def close(self) -> None:
        """Trim the cache to its size limit if it grew."""
        if self._wrote:
            trim(self._root, self._limit)


def _read(path: Path, layers: Sequence[int], size: int) -> dict[int, Tensor]:
    """Read the layers that a file holds; raise if it is not what was written."""
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        names = set(file.keys())
        if about.get("schema") != SCHEMA:
            raise ValueError("another schema")
        tensors = {}
        for layer in layers:
            if str(layer) in names:
                # Not a view of the file, which may be removed while it is in use.
                tensors[layer] = checked(file, layer, size, about.get(f"sum:{layer}")).clone()
        return tensors


def checked(file: Any, layer: int, size: int, checksum: str | None) -> Tensor:
    """Read a layer [size, d] from an open file; ValueError if it is not what was written."""
    value: Tensor = file.get_tensor(str(layer))
    matrix = value.dtype == torch.float32 and value.dim() == 2 and len(value) == size
    if not matrix or digest(value) != checksum:
        raise ValueError(f"layer {layer} does not match its checksum")
    return value


def digest(value: Tensor) -> str:
    """Hash a CPU tensor's bytes to 32 hexadecimal digits."""
    return hashlib.blake2b(value.contiguous().numpy().data, digest_size=16).hexdigest()


def _about(model: nn.Module) -> dict[str, str | None]:
    """Describe the model: its name and revision."""
    revision = getattr(getattr(model, "config", None), "_commit_hash", None)
    return {"name": model_name(model), "revision": revision}
