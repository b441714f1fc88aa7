"""Benchmarks: texts to fit on and prompts to be judged on; `BENCHMARKS` is the table."""

import os
from collections.abc import Mapping
from typing import Any

from odesteer.common.registry import resolve
from odesteer.evaluation.benchmarks.base import HUB, TRANSFER, Benchmark, Fold, data_dir
from odesteer.evaluation.benchmarks.persona import Persona
from odesteer.evaluation.benchmarks.real_toxicity_prompts import RealToxicityPrompts
from odesteer.evaluation.benchmarks.sentiment import Sentiment
from odesteer.evaluation.benchmarks.truthfulqa import TruthfulQA
from odesteer.evaluation.benchmarks.ultrafeedback import UltraFeedback

BENCHMARKS: Mapping[str, type[Benchmark]] = {
    benchmark.name: benchmark
    for benchmark in (TruthfulQA, RealToxicityPrompts, UltraFeedback, Sentiment, Persona)
}


def find_benchmark(name: str) -> type[Benchmark]:
    """Return a benchmark's class by its name.

    Other packages register theirs under the entry-point group "odesteer.benchmarks".

    Raises:
        ValueError: for an unknown name.
    """
    benchmark: type[Benchmark] = resolve(
        BENCHMARKS, name, "benchmark", "odesteer.benchmarks", Benchmark
    )
    return benchmark


def load_benchmark(
    name: str, data: str | os.PathLike[str] | None = None, **arguments: Any
) -> Benchmark:
    """Load a benchmark with its data.

    Args:
        name: see `find_benchmark`.
        data: the directory with local files; None: ODESTEER_DATA or ../shared/data; "hub": the
            Hugging Face Hub.
        arguments: for the benchmark's `load` or `from_hub`.

    Raises:
        ValueError: for an unknown name.
    """
    kind = find_benchmark(name)
    return kind.from_hub(**arguments) if data == HUB else kind.load(data, **arguments)


__all__ = [
    "BENCHMARKS",
    "TRANSFER",
    "Benchmark",
    "Fold",
    "Persona",
    "RealToxicityPrompts",
    "Sentiment",
    "TruthfulQA",
    "UltraFeedback",
    "data_dir",
    "find_benchmark",
    "load_benchmark",
]
