"""Timing on a GPU, with and without the launches.

    eager       as Python calls it: what a model without CUDA graphs waits for
    replayed    as a CUDA graph: what the GPU itself takes

Times are by CUDA events, by turns within one process, so that a GPU that changes its clock
changes it for all. A small frame would stay in the second-level cache from call to call, which it
does not between the layers of a model: a graph therefore holds calls on copies of the data, one
after the other, that are together larger than that cache (but at most `MOST`).
"""

import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

MOST = 64

Run = Callable[[], Any]


def machine() -> dict[str, str]:
    """What was measured on."""
    properties = torch.cuda.get_device_properties(0)
    import triton

    return {
        "gpu": properties.name,
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "processors": str(properties.multi_processor_count),
        "cache": f"{properties.L2_cache_size / 2**20:.0f} MiB",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
        "python": platform.python_version(),
    }


def copies_of(size: int) -> int:
    """So many copies of `size` bytes do not fit in the second-level cache."""
    cache: int = torch.cuda.get_device_properties(0).L2_cache_size
    return max(1, min(MOST, -(-2 * cache // size)))


def as_graph(runs: Sequence[Run]) -> Run:
    """One replay does all runs, in turn."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for run in (*runs, runs[0]):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [run() for run in runs]

    def replay() -> None:
        graph.replay()
        _ = kept  # the graph writes there

    return replay


def by_turns(
    functions: Mapping[str, tuple[Run, int]], repetitions: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Microseconds of each, [repetitions]; a function comes with how many calls it makes."""
    for run, _ in functions.values():
        for _again in range(warmup):
            run()
    torch.cuda.synchronize()
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repetitions):
        turn = repetition % len(names)
        for name in names[turn:] + names[:turn]:
            run, calls = functions[name]
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            run()
            end.record()
            end.synchronize()
            times[name].append(1e3 * start.elapsed_time(end) / calls)
    return times


def copy_bandwidth(size: int = 1 << 30) -> float:
    """Bytes a second, read and written, of a copy within the device."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda").zero_()
    target = torch.empty_like(source)
    times = by_turns({"copy": (lambda: target.copy_(source), 1)}, repetitions=20)
    return 2 * size / (1e-6 * statistics.median(times["copy"]))


def report(folder: Path, name: str, result: Any, text: str) -> None:
    """Numbers as JSON and a table as Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"
