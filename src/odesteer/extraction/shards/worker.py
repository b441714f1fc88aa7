"""Extraction of a contrast's activations by many processes.

    shards = extract_shards("smollm2", contrast, [10, 14], "activations")
    positive, negative = shards.load(14)

A call that was stopped continues where it was; processes that are given the same directory share
the work; and the activations are the same to the bit. For that the directory fixes what decides
their bits: the texts of a shard and so its batches, the tokens of a pass, and on a CPU the number
of threads, since sums are rounded in another order with more. What cannot be fixed (the
processor's kind, torch's version) is compared.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from odesteer.common.jobs.job import Job
from odesteer.common.jobs.local import ENGINES
from odesteer.common.registry import lookup
from odesteer.data import Contrast
from odesteer.extraction.extract import Progress, default_batch_tokens, extract
from odesteer.extraction.shards.dataset import Shards
from odesteer.extraction.shards.directory import (
    KEYS,
    ROWS,
    SCHEMA,
    ShardFolder,
    ShardPlan,
    parts,
    read_about,
    refuse_another,
)
from odesteer.extraction.tokenize import Tokens, check_tokens, texts
from odesteer.models.capture import Site
from odesteer.models.compatibility import model_name
from odesteer.models.fingerprint import fingerprint, obstacle
from odesteer.models.layers import input_device, layer_index
from odesteer.models.loading import Say, load_model


@dataclass(frozen=True)
class Extraction:
    """Description of an extraction.

    Attributes:
        model: a name, as `odesteer.models.loading.load_model` takes it, or (model, tokenizer).
        contrast: the texts.
        layers: block indices, negative from the end.
        path: the directory.
        version: of this library.
        tokens, site, max_tokens, batch_tokens: see `odesteer.activations`.
        rows_per_shard: see `odesteer.extraction.shards.directory`.
        dtype, revision: of a model that is loaded.
    """

    model: str | tuple[nn.Module, Any]
    contrast: Contrast
    layers: tuple[int, ...]
    path: Path
    version: str
    tokens: Tokens
    site: Site
    max_tokens: int | None
    batch_tokens: int | None
    rows_per_shard: int
    dtype: str = "auto"
    revision: str | None = None

    @property
    def parts(self) -> tuple[ShardPlan, ...]:
        n, m = len(self.contrast.positive), len(self.contrast.negative)
        return parts(n, m, self.rows_per_shard)

    def known(self) -> dict[str, Any]:
        """Describe the extraction as far as it is known without the model."""
        optional = {
            "layers": sorted(set(self.layers)) if min(self.layers) >= 0 else None,
            "batch_tokens": self.batch_tokens,
        }
        return {
            "schema": SCHEMA,
            "version": self.version,
            "contrast": {
                "sha256": self.contrast.sha256,
                "positive": len(self.contrast.positive),
                "negative": len(self.contrast.negative),
            },
            "tokens": self.tokens,
            "site": self.site,
            "max_tokens": self.max_tokens,
            "rows_per_shard": self.rows_per_shard,
            **{name: value for name, value in optional.items() if value is not None},
        }

    def start(self, say: Callable[[str], None] | None = None) -> "ShardWorker":
        """Load the model and write the description of the extraction.

        Raises:
            ValueError: for another extraction's directory, a layer that the model does not have,
                or a model whose activations may not be its own.
        """
        if isinstance(self.model, str):
            model, tokenizer = load_model(self.model, say, dtype=self.dtype, revision=self.revision)
        else:
            model, tokenizer = self.model
        reason = obstacle(model)
        if reason is not None:
            raise ValueError(
                f"Shards belong to one model, and this one cannot be told from another: {reason}. "
                f"Use odesteer.activations, which keeps nothing."
            )
        device = input_device(model)
        settled = replace(
            self,
            layers=tuple(sorted({layer_index(model, layer) for layer in self.layers})),
            batch_tokens=self.batch_tokens or default_batch_tokens(device),
        )
        folder = ShardFolder(self.path)
        about = {
            **settled.known(),
            "model": model_name(model),
            "model_fingerprint": fingerprint(model),
            "tokenizer": _tokenizer(tokenizer),
            "machine": _machine(device),
            "threads": torch.get_num_threads() if device.type == "cpu" else None,
        }
        folder.begin(about, KEYS)
        return ShardWorker(settled, folder, model, tokenizer, read_about(self.path)["threads"])


@dataclass(frozen=True)
class ShardWorker:
    """Worker that computes shards.

    Attributes:
        extraction: its description.
        folder: directory of the shards.
        model, tokenizer: in memory.
        threads: number of threads of the directory; None where it does not matter.
    """

    extraction: Extraction
    folder: ShardFolder
    model: Any
    tokenizer: Any
    threads: int | None

    def close(self) -> None:
        """Do nothing: no other process was started."""

    def compute(self, number: int) -> None:
        """Compute and write a shard."""
        what = self.extraction
        part = what.parts[number]
        positive, negative = (
            examples[indices.start : indices.stop]
            for examples, indices in (
                (what.contrast.positive, part.positive),
                (what.contrast.negative, part.negative),
            )
        )
        contrast = Contrast(positive, negative, what.contrast.template)
        with warnings.catch_warnings(), _threads(self.threads):
            # The shard remembers how many were cut, and the sum is said once.
            warnings.filterwarnings("ignore", message=r"\d+ of \d+ texts are longer than")
            tokenized = texts(self.model, self.tokenizer, contrast, what.tokens, what.max_tokens)
            rows = extract(
                self.model,
                tokenized.rows,
                what.layers,
                tokens=tokenized.tokens,
                site=what.site,
                starts=tokenized.starts,
                batch_tokens=what.batch_tokens,
            )
        self.folder.write(part, dict(zip(what.layers, rows, strict=True)), tokenized.truncated)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tokenizer(tokenizer: Any) -> str:
    """Hash what decides how a text becomes token ids to 16 hexadecimal digits."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    # Left from the last call that padded or truncated; we do neither.
    rest = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
    facts = [rest, getattr(tokenizer, "chat_template", None), tokenizer.special_tokens_map]
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _machine(device: torch.device) -> dict[str, str]:
    """Describe what rounding depends on; the fingerprint holds it as well, as a hash."""
    import transformers

    gpu = device.type == "cuda"
    kind = torch.cuda.get_device_name(device) if gpu else torch.backends.cpu.get_cpu_capability()
    return {
        "device": f"{device.type} {kind}",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def extract_shards(
    model: str | tuple[nn.Module, Any],
    contrast: Contrast,
    layer: int | Sequence[int],
    out: str | os.PathLike[str],
    *,
    tokens: Tokens = "last",
    site: Site = "residual",
    max_tokens: int | None = None,
    batch_tokens: int | None = None,
    rows_per_shard: int = ROWS,
    dtype: str = "auto",
    revision: str | None = None,
    engine: str = "local",
    workers: int | None = None,
    say: Say | None = None,
    progress: Progress | None = None,
) -> Shards:
    """Extract what is left of a contrast's activations; return once all are there.

    Args:
        model: a name, as `odesteer.models.loading.load_model` takes it; or (model, tokenizer), for
            the engine "local".
        contrast: the texts.
        layer: 0-based block index, negative from the end; or several.
        out: the directory; new, or this extraction's.
        tokens, site, max_tokens, batch_tokens: see `odesteer.activations`.
        rows_per_shard: about how many texts are computed and written together.
        dtype, revision: of a model that is loaded.
        engine: "local", this process (start several with the same `out`), or "ray", a cluster.
        workers: how many compute, for the engine "ray".
        say: called with a line before anything slow.
        progress: called with (texts done by all processes, texts in all).

    Raises:
        ImportError: without Ray, for the engine "ray".
        ValueError: for another extraction's directory (names what differs), a layer the model
            does not have, or a model that something hooks into.
    """
    work = lookup(ENGINES, engine, "engine")
    layers = (layer,) if isinstance(layer, int) else tuple(layer)
    if not layers:
        raise ValueError("layer is an empty list; name at least one block.")
    if engine == "ray" and not isinstance(model, str):
        raise ValueError(
            'The engine "ray" loads the model on every node: give its name or directory instead of '
            "(model, tokenizer)."
        )
    from odesteer import __version__

    path = Path(out)
    extraction = Extraction(
        model,
        contrast,
        layers,
        path.resolve(),
        __version__,
        check_tokens(tokens),
        site,
        max_tokens,
        batch_tokens,
        rows_per_shard,
        dtype,
        revision,
    )
    parts = extraction.parts
    # Before a model is loaded, as far as possible without one.
    refuse_another(path, extraction.known())
    folder = ShardFolder(path)
    job = Job(parts, folder, extraction, lambda: True, say, progress, workers)
    computed = work(job)
    return replace(Shards.open(path), computed=computed)
