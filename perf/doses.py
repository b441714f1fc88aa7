"""Cost of a target and of per-row doses, beside one dose for all rows.

    python perf/doses.py [--threads 1]

The same whitened barrier of rank k = 64 and the same rows, by turns: an angle; a target that half
of the way suffices for; the same, given to each row by `PerRow`.
"""

import argparse

import torch
from steer import DIRECTIONS, repeated, steering
from timing import interleaved, machine, markdown, spread

from odesteer import Angle, PerRow, Target

ANGLE = 0.3


def compared(d: int, n: int, repetitions: int) -> dict[str, list[float]]:
    """How many times as long as with one angle each takes, by repetition."""
    one = steering(d, 64, DIRECTIONS).with_strength(Angle(ANGLE))
    a = torch.randn(n, d, generator=torch.Generator().manual_seed(1))
    before, after = one.probability(a).median(), one.probability(one(a)).median()
    target = Target(float(before + after) / 2, budget=Angle(ANGLE))
    doses = {
        "one angle": Angle(ANGLE),
        "one target": target,
        "an angle a row": PerRow([Angle(ANGLE)] * n),
        "a target a row": PerRow([target] * n),
    }
    steerings = {name: one.with_strength(dose) for name, dose in doses.items()}
    runs = {name: repeated(lambda s=each: s(a)) for name, each in steerings.items()}  # type: ignore[misc]
    seconds = interleaved({name: run for name, (run, _) in runs.items()}, repetitions)
    each = {name: [s / runs[name][1] for s in some] for name, some in seconds.items()}
    return {
        name: [x / y for x, y in zip(some, each["one angle"], strict=True)]
        for name, some in each.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows, names = [], []
    with torch.no_grad():
        for d, n in ((576, 1), (4096, 1), (576, 64), (4096, 64)):
            found = compared(d, n, options.repetitions)
            names = list(found)
            rows.append([d, n, *(spread(some) for some in found.values())])
    print(f"{machine()}; medians of {options.repetitions} (min to max)\n")
    print(markdown(("d", "batch", *names), rows))


if __name__ == "__main__":
    main()
