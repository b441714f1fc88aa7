"""Extraction of a contrast's activations by many processes, into a directory of shards.

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
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from odesteer import __version__
from odesteer.common.jobs import ENGINES, Job
from odesteer.common.registry import lookup
from odesteer.data import Contrast
from odesteer.extraction.extract import Progress, default_batch_tokens, extract
from odesteer.extraction.shards import (
    ROWS,
    SCHEMA,
    ShardFolder,
    ShardPlan,
    Shards,
    parts,
    read_about,
)
from odesteer.extraction.tokenize import Tokens, check_tokens, texts
from odesteer.models.capture import Site
from odesteer.models.compatibility import model_name
from odesteer.models.fingerprint import fingerprint, obstacle
from odesteer.models.layers import input_device, layer_index
from odesteer.models.loading import Say, load_model


@dataclass(frozen=True)
class Extraction:
    """Description of an extraction and, once started, the worker that computes its shards.

    Attributes:
        model: a name, or (model, tokenizer).
        path: the directory.
        threads: number of threads of the directory; None where it does not matter.

    The others are those of `extract_shards`.
    """

    model: Any
    contrast: Contrast
    layers: tuple[int, ...]
    path: Path
    tokens: Tokens = "last"
    site: Site = "residual"
    max_tokens: int | None = None
    batch_tokens: int | None = None
    rows_per_shard: int = ROWS
    dtype: str = "auto"
    revision: str | None = None
    threads: int | None = None

    @property
    def parts(self) -> tuple[ShardPlan, ...]:
        n, m = len(self.contrast.positive), len(self.contrast.negative)
        return parts(n, m, self.rows_per_shard)

    def known(self) -> dict[str, Any]:
        """Describe the extraction as far as it is known without the model."""
        # In the order in which errors name what differs, the plainest first.
        about = {
            "contrast": {
                "sha256": self.contrast.sha256,
                "positive": len(self.contrast.positive),
                "negative": len(self.contrast.negative),
            },
            "layers": sorted(set(self.layers)) if min(self.layers) >= 0 else None,
            "tokens": self.tokens,
            "site": self.site,
            "rows_per_shard": self.rows_per_shard,
            "batch_tokens": self.batch_tokens,
            "version": __version__,
            "schema": SCHEMA,
        }
        known = {name: value for name, value in about.items() if value is not None}
        return {**known, "max_tokens": self.max_tokens}

    def start(self, say: Callable[[str], None] | None = None) -> "Extraction":
        """Load the model, write the description, and return the worker.

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
        compared = {
            **settled.known(),
            "tokenizer": _tokenizer(tokenizer),
            "machine": _machine(device),
            "model_fingerprint": fingerprint(model),
        }
        # Not compared: later processes take over the threads, and a name may change.
        noted = {
            "model": model_name(model),
            "threads": torch.get_num_threads() if device.type == "cpu" else None,
        }
        ShardFolder(self.path).begin({**compared, **noted}, list(compared))
        threads = read_about(self.path)["threads"]
        return replace(settled, model=(model, tokenizer), threads=threads)

    def compute(self, number: int) -> None:
        """Compute and write a shard, by what `start` returned."""
        model, tokenizer = self.model
        part = self.parts[number]
        contrast = Contrast(
            self.contrast.positive[part.positive.start : part.positive.stop],
            self.contrast.negative[part.negative.start : part.negative.stop],
            self.contrast.template,
        )
        with warnings.catch_warnings(), _threads(self.threads):
            # The shard remembers how many were cut, and the sum is said once.
            warnings.filterwarnings("ignore", message=r"\d+ of \d+ texts are longer than")
            tokenized = texts(model, tokenizer, contrast, self.tokens, self.max_tokens)
            rows = extract(
                model,
                tokenized.rows,
                self.layers,
                tokens=tokenized.tokens,
                site=self.site,
                starts=tokenized.starts,
                batch_tokens=self.batch_tokens,
            )
        layers = dict(zip(self.layers, rows, strict=True))
        ShardFolder(self.path).write(part, layers, tokenized.truncated)

    def close(self) -> None:
        """Do nothing: no other process was started."""


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
    gpu = device.type == "cuda"
    kind = torch.cuda.get_device_name(device) if gpu else torch.backends.cpu.get_cpu_capability()
    return {
        "device": f"{device.type} {kind}",
        "torch": torch.__version__,
        "transformers": version("transformers"),
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

        shards = ods.extract_shards("smollm2", contrast, [10, 14], "activations")
        positive, negative = shards.load(14)

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
    compute = lookup(ENGINES, engine, "engine")
    layers = (layer,) if isinstance(layer, int) else tuple(layer)
    if not layers:
        raise ValueError("layer is an empty list; name at least one block.")
    if engine == "ray" and not isinstance(model, str):
        raise ValueError(
            'The engine "ray" loads the model on every node: give its name or directory instead of '
            "(model, tokenizer)."
        )
    extraction = Extraction(
        model,
        contrast,
        layers,
        Path(out).resolve(),
        check_tokens(tokens),
        site,
        max_tokens,
        batch_tokens,
        rows_per_shard,
        dtype,
        revision,
    )
    units, folder = extraction.parts, ShardFolder(Path(out))
    # Before a model is loaded, as far as possible without one.
    folder.refuse_other(extraction.known())
    job = Job(units, folder, extraction, say=say, progress=progress, workers=workers)
    computed = compute(job)
    return replace(Shards.open(out), computed=computed)
