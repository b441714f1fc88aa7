"""Where does the time of one steering operation go?

    python perf/stages.py [--threads 1]

The parts of `odesteer.ode.reduced.solve`, each timed by itself, by turns with the whole; what the
parts do not explain is Python: finding the field, the dose, the loop, and the results' memory.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from steer import DIRECTIONS, repeated, steering
from timing import interleaved, machine, markdown

from odesteer.ode import SOLVERS, QuadraticBarrier
from odesteer.ode.reduced import kernels
from odesteer.ode.reduced.integrate import Integration


def parts(d: int, n: int, k: int, directions: int) -> dict[str, Callable[[], object]]:
    """The whole operation and its parts, on the same rows."""
    one = steering(d, k, directions)
    a = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    one(a)
    barrier = one.barrier
    assert isinstance(barrier, QuadraticBarrier)
    basis, solver = barrier.reduced_basis, SOLVERS["great-circle"]
    time = 0.3 * torch.linalg.vector_norm(a, dim=-1)
    integration, x, result = Integration(time, solver, 10), torch.empty_like(a), torch.empty_like(a)

    def centred() -> torch.Tensor:
        torch.sub(a, basis.centre, out=x)
        return torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    length, coordinates = centred(), x @ basis.projection
    integrator = kernels.integrator(a, solver)
    assert integrator is not None, "the loop is compiled: pip install 'odesteer[fast]'"
    shift, change, _ = integrator(basis, coordinates, length, integration)

    def scaled() -> None:
        torch.addcmul(a, x, shift, out=result)

    return {
        "whole": lambda: one(a),
        "dose": lambda: 0.3 * torch.linalg.vector_norm(a, dim=-1),
        "a - m and its length": centred,
        "product in": lambda: x @ basis.projection,
        "ten steps": lambda: integrator(basis, coordinates, length, integration),
        "scaling": scaled,
        "product out": lambda: result.addmm_(change, basis.lift),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    names: list[str] = []
    with torch.no_grad():
        for d, n in ((576, 1), (4096, 1), (576, 64), (4096, 64), (4096, 256)):
            for directions in (0, DIRECTIONS):
                functions = parts(d, n, options.rank, directions)
                runs = {name: repeated(function) for name, function in functions.items()}
                seconds = interleaved(
                    {name: run for name, (run, _) in runs.items()}, options.repetitions
                )
                each = {
                    name: 1e6 * statistics.median(some) / runs[name][1]
                    for name, some in seconds.items()
                }
                names = list(each)
                rest = each["whole"] - sum(each[name] for name in names[1:])
                kind = "whitened" if directions else "plain"
                rows.append([d, n, kind, *(f"{each[name]:.0f}" for name in names), f"{rest:.0f}"])
                print(*rows[-1], sep=" | ", flush=True)
    print(f"\n{machine()}; k = {options.rank}; µs, medians of {options.repetitions}\n")
    print(markdown(("d", "batch", "coordinates", *names, "rest"), rows))


if __name__ == "__main__":
    main()
