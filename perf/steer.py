"""Cost of the steering operation on a CPU, beside a vector addition and FFTs.

    python perf/steer.py [--threads 1] [--json steer.json]

In one process and by turns, at each width d and batch n:

- "addition": a + v, what CAA does;
- "ODESteer": ten great-circle steps of a quadratic barrier of rank k, as `Steering` does them,
  plain (p = 0) and whitened (128 directions);
- "two products": a [n, d] @ [d, k] and [n, k] @ [k, d], which no such flow can do without;
- "FFT": the paper's configuration (8,000 components, ten Euler steps), see `baselines.py`.

The barriers are random: what is timed does not depend on what they have learnt.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from baselines import fft_euler
from timing import interleaved, machine, markdown, spread

from odesteer import Angle, Steering
from odesteer.ode import GradientField, QuadraticBarrier, SketchBarrier, Whitening

WIDTHS, BATCHES = (576, 2048, 4096, 8192), (1, 16, 64, 256)
COMPONENTS = 8000
DIRECTIONS = 128  # ODESteer's default covariance_rank
SECONDS = 0.01  # of calls in one timing, so that the clock does not matter


def steering(d: int, k: int, directions: int, seed: int = 0) -> Steering:
    """Ten great-circle steps along a random quadratic barrier of rank k."""
    generator = torch.Generator().manual_seed(seed)

    def orthonormal(columns: int) -> torch.Tensor:
        return torch.linalg.qr(torch.randn(d, columns, generator=generator)).Q

    centre = torch.randn(d, generator=generator)
    whitening = Whitening(centre)
    if directions:
        stretch = 1.0 + 3.0 * torch.rand(directions, generator=generator)
        whitening = Whitening(centre, orthonormal(directions), stretch)
    curvature, slope = torch.randn(2, k, generator=generator)
    barrier = QuadraticBarrier(whitening, orthonormal(k), curvature, slope, 0.0)
    return Steering(GradientField(barrier), Angle(0.3), solver="great-circle", steps=10)


def paper(d: int, seed: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
    """The paper's configuration."""
    generator = torch.Generator().manual_seed(seed)
    index, sign = SketchBarrier.draw(d, 2, COMPONENTS, generator)
    weight = torch.randn(COMPONENTS, generator=generator)
    return fft_euler(index, sign, weight, 0.1, 1.0, T=5.0, steps=10)


def repeated(function: Callable[[], object]) -> tuple[Callable[[], None], int]:
    """The function so often that it takes about `SECONDS`, and how often that is."""
    function()
    seconds = min(interleaved({"it": function}, 5)["it"])
    count = max(1, round(SECONDS / max(seconds, 1e-7)))

    def run() -> None:
        for _ in range(count):
            function()

    return run, count


def measure(d: int, n: int, k: int, repetitions: int) -> dict[str, list[float]]:
    """Seconds of one call of each, by repetition."""
    a = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    vector, thin, small = torch.randn(d), torch.randn(d, k), torch.randn(n, k)
    flat, wide = thin.mT.contiguous(), torch.empty(n, d)
    plain, whitened, fft = steering(d, k, 0), steering(d, k, DIRECTIONS), paper(d)

    def products() -> None:
        torch.mm(a, thin, out=small)
        torch.mm(small, flat, out=wide)

    functions = {
        "addition": lambda: a + vector,
        "two products": products,
        "ODESteer, plain": lambda: plain(a),
        "ODESteer, whitened": lambda: whitened(a),
        "FFT": lambda: fft(a),
    }
    runs = {name: repeated(function) for name, function in functions.items()}
    seconds = interleaved({name: run for name, (run, _) in runs.items()}, repetitions)
    return {name: [s / runs[name][1] for s in some] for name, some in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rank", type=int, default=64, help="k of the barrier")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, kept = [], []
    with torch.no_grad():
        for d in options.widths:
            for n in options.batches:
                seconds = measure(d, n, options.rank, options.repetitions)
                kept.append({"d": d, "n": n, "seconds": seconds})
                ours = {name: seconds[f"ODESteer, {name}"] for name in ("plain", "whitened")}

                def over(some: list[float], by: list[float]) -> list[float]:
                    return [x / y for x, y in zip(some, by, strict=True)]

                rows.append(
                    [
                        d,
                        n,
                        *(f"{1e6 * statistics.median(one):.0f}" for one in ours.values()),
                        *(spread(over(seconds["FFT"], one), 1) for one in ours.values()),
                        spread(over(ours["plain"], seconds["addition"]), 1),
                        spread(over(seconds["two products"], seconds["addition"]), 1),
                        spread(over(ours["plain"], seconds["two products"])),
                    ]
                )
                print(*rows[-1], sep=" | ", flush=True)
    head = (
        "d",
        "batch",
        "plain, µs",
        "whitened, µs",
        "FFT / plain",
        "FFT / whitened",
        "plain / addition",
        "two products / addition",
        "plain / two products",
    )
    print(f"\n{machine()}; k = {options.rank}; medians of {options.repetitions} (min to max)\n")
    print(markdown(head, rows))
    if options.json is not None:
        about = {"machine": machine(), "rank": options.rank, "threads": options.threads}
        options.json.write_text(json.dumps(about | {"rows": kept}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
