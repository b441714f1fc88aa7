"""Extraction of a contrast's activations by many processes.

    shards = extract_shards("smollm2", contrast, [10, 14], "activations")
    positive, negative = shards.load(14)

A call that was stopped, at whatever point, goes on where it was; processes that are given the same
directory share the work; and the activations are the same to the bit.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from odesteer.common.jobs.job import Job
from odesteer.common.jobs.local import ENGINES
from odesteer.common.registry import lookup
from odesteer.data import Contrast
from odesteer.extraction.extract import Progress
from odesteer.extraction.shards.dataset import Shards
from odesteer.extraction.shards.directory import ShardFolder, refuse_another
from odesteer.extraction.shards.plan import ROWS
from odesteer.extraction.shards.worker import Extraction
from odesteer.extraction.tokenize import Tokens, check_tokens
from odesteer.models.capture import Site
from odesteer.models.loading import Say


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
    """Extract what is left of a contrast's activations; returns once all are there.

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
        progress: called with (texts done, texts in all), by anybody.

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
    # Before a model is loaded, as much as can be said without one.
    refuse_another(path, extraction.known())
    folder = ShardFolder(path)
    job = Job(parts, folder, extraction, lambda: True, say, progress, workers)
    computed = work(job)
    return replace(Shards.open(path), computed=computed)
