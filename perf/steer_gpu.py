"""How long does one steering operation take on a GPU?

    python perf/steer_gpu.py --out perf/results

Against, in the same process and by turns:

    addition    a + v, the least that any steering does
    torch       our own code without its kernels
    paper       the paper's configuration: 10 Euler steps, count sketch of 8,000 components by FFT,
                as lean as torch allows (`baselines.fft_euler`), in float32
    bound       bytes of the frame's matrices and of the activations in and out, over the
                bandwidth of a copy measured in the same run: no code that reads them is faster

Ours is k = 64, 10 great-circle steps, on the plain sphere and with 128 whitening directions.
Before anything is timed, its result is compared with that of double precision.
"""

import argparse
import copy
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from perf.baselines import fft_euler
from perf.cuda_timing import Run, as_graph, by_turns, copies_of, copy_bandwidth, machine, report
from perf.cuda_timing import table as markdown
from torch import Tensor

from odesteer.ode import SOLVERS, GradientField, QuadraticBarrier, SketchBarrier, Whitening, solve
from odesteer.ode.reduced.kernels import triton_launch
from odesteer.steering import Steering

WIDTHS, BATCHES = (576, 2048, 4096, 8192), (1, 16, 64, 256, 1024)
TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
FRAMES = {"plain": 0, "whitened": 128}
RANK, COMPONENTS, TIME, STEPS = 64, 8000, 5.0, 10
DEVICE = "cuda"  # another one only where the script itself is tried


def steering_of(d: int, directions: int) -> Steering:
    """A random quadratic barrier's, in single precision."""
    generator = torch.Generator().manual_seed(d)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    U, V = (torch.linalg.qr(normal(d, width)).Q for width in (directions, RANK))
    whitening = Whitening(normal(d), U, normal(directions).abs() + 0.5)
    barrier = QuadraticBarrier(whitening, V, 3 * normal(RANK), 3 * normal(RANK), 0.1)
    field = GradientField(barrier).to(DEVICE)
    return Steering(field=field, strength=TIME, solver="great-circle", steps=STEPS)


def paper_of(d: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(d)
    index, sign = (h.to(DEVICE) for h in SketchBarrier.draw(d, 2, COMPONENTS, generator))
    weight = torch.randn(COMPONENTS, generator=generator).to(DEVICE)
    return fft_euler(index, sign, weight, 0.1, 1.0, T=TIME, steps=STEPS)


def without_kernels(run: Run) -> Run:
    known = triton_launch.runs_on

    def plain() -> Any:
        triton_launch.runs_on = never
        try:
            return run()
        finally:
            triton_launch.runs_on = known

    return plain


def never(device: torch.device) -> bool:
    return False


def error_of(steering: Steering, a: Tensor) -> float:
    """The largest error over all rows, as a share of the displacement; in float32."""
    exact, start = copy.deepcopy(steering.field).cpu().double(), a[:8].float()
    before = start.double().cpu()
    expected = solve(exact, before, TIME, solver=SOLVERS[steering.solver], steps=STEPS)
    error = (steering(start).double().cpu() - expected).norm(dim=1)
    return float((error / (expected - before).norm(dim=1)).max())


def bytes_of(d: int, directions: int, n: int, dtype: torch.dtype) -> int:
    """Of Q and (S V)^T, and of the activations in and out."""
    frame = 4 * d * (2 * RANK + directions)
    return frame + 2 * n * d * torch.empty((), dtype=dtype).element_size()


def measure(
    steerings: Sequence[Steering],
    d: int,
    kind: str,
    n: int,
    name: str,
    bandwidth: float,
    repetitions: int,
) -> dict[str, Any]:
    """Of one size; `steerings` are copies of one, each with memory of its own."""
    dtype = TYPES[name]
    size = bytes_of(d, FRAMES[kind], n, dtype)
    copies = min(copies_of(size), len(steerings))
    rows = [torch.randn(n, d, device=DEVICE).mul_(2).to(dtype) for _ in range(copies)]
    vectors = [torch.randn(d, device=DEVICE).to(dtype) for _ in range(copies)]
    paper = paper_of(d)
    # Its tables are small; many copies of its long graph would only take long to capture.
    few = min(copies, 4)

    def with_cast(a: Tensor) -> Tensor:
        return paper(a.float()).to(a.dtype)

    ours: list[Run] = [lambda s=s, a=a: s(a) for s, a in zip(steerings, rows, strict=False)]
    plain = [without_kernels(run) for run in ours]
    ways: dict[str, list[Run]] = {
        "addition": [lambda a=a, v=v: a + v for a, v in zip(rows, vectors, strict=True)],
        "ours": ours,
        "torch": plain,
        "paper": [lambda a=a: with_cast(a) for a in rows[:few]],
    }
    error = error_of(steerings[0], rows[0])
    eager = by_turns({way: (runs[0], 1) for way, runs in ways.items()}, repetitions)
    graphs = {way: (as_graph(runs), len(runs)) for way, runs in ways.items()}
    replayed = by_turns(graphs, repetitions)
    return {
        "d": d,
        "n": n,
        "frame": kind,
        "type": name,
        "copies": copies,
        "error": error,
        "bound": 1e6 * size / bandwidth,
        "replayed": {way: statistics.median(times) for way, times in replayed.items()},
        "eager": {way: statistics.median(times) for way, times in eager.items()},
        "replayed_all": replayed,
        "eager_all": eager,
    }


def text_of(setting: dict[str, Any], results: list[dict[str, Any]]) -> str:
    head = ["d", "n", "type", "frame", "bound", "ours", "ours / bound", "addition", "torch"]
    head += ["paper", "paper / ours", "eager: ours", "addition", "torch", "paper", "error"]
    rows = []
    for each in results:
        graph, eager = each["replayed"], each["eager"]
        rows.append(
            [
                *(each[key] for key in ("d", "n", "type", "frame")),
                f"{each['bound']:.1f}",
                f"{graph['ours']:.1f}",
                f"{graph['ours'] / each['bound']:.1f}",
                *(f"{graph[way]:.1f}" for way in ("addition", "torch", "paper")),
                f"{graph['paper'] / graph['ours']:.1f}",
                *(f"{eager[way]:.0f}" for way in ("ours", "addition", "torch", "paper")),
                f"{each['error']:.0e}",
            ]
        )
    facts = ", ".join(f"{key} {value}" for key, value in setting.items())
    return (
        f"# One steering operation on a GPU, in microseconds\n\n{facts}\n\n{markdown(head, rows)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("perf/results"))
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    arguments = parser.parse_args()
    bandwidth = copy_bandwidth()
    setting = {**machine(), "copy": f"{bandwidth / 1e12:.2f} TB/s"}
    results: list[dict[str, Any]] = []
    with torch.inference_mode():
        for d, (kind, directions) in itertools.product(arguments.widths, FRAMES.items()):
            one = steering_of(d, directions)
            copies = copies_of(bytes_of(d, directions, 1, torch.bfloat16))
            steerings = [replace(one, field=copy.deepcopy(one.field)) for _ in range(copies)]
            for n, name in itertools.product(arguments.batches, TYPES):
                size = (d, kind, n, name)
                result = measure(steerings, *size, bandwidth, arguments.repetitions)
                results.append(result)
                print(*size, f"{result['replayed']['ours']:.1f} us", flush=True)
                # After each: what a time limit cuts off is lost, what was measured is not.
                done = {"setting": setting, "results": results}
                report(arguments.out, "steer_gpu", done, text_of(setting, results))
                torch.cuda.empty_cache()
    print(text_of(setting, results))


if __name__ == "__main__":
    main()
