"""How long does a fit take, beside the paper's configuration, and in how much memory?

    python perf/fit.py                               10,000 x 4,096, two minutes on 2 cores
    python perf/fit.py --rows 2000 --width 1024      a quick look

Ours: `ODESteer().fit` with all defaults (gamma, C and rank chosen, calibrated). The reference:
the paper's 8,000 sketch features and scikit-learn's LogisticRegression(C=1), once, nothing
chosen and nothing held out: `PaperODESteer().fit`, and the same with float32 features, which is
the least it can cost. They take turns, each in a fresh process, so that the peak is its own.
The rows are drawn: a large mean, variances that fall as a power law, pairs that share most of their
activation, and classes that no barrier tells apart well.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import sklearn
import torch

TEST_PAIRS = 1000
FITS = ("ours", "reference", "reference, float32")


def draw(pairs: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive and negative rows, [pairs, width] each in float32, of one world."""
    world, generator = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    r = min(512, width)
    order = torch.arange(1, r + 1).float()
    basis = torch.linalg.qr(torch.randn(width, r, generator=world)).Q * 30 * order**-0.7
    mean = 3 * torch.randn(width, generator=world)
    mean[7] += 200  # language models have such a dimension
    shift = torch.randn(r, generator=world) * order**-0.3
    shift = 0.7 * shift / shift.norm()
    common = 0.6 * torch.randn(pairs, r, generator=generator)
    classes = []
    for sign in (1, -1):
        inner = common + 0.8 * torch.randn(pairs, r, generator=generator) + sign * shift
        rows = mean + inner @ basis.mT
        classes.append(rows.add_(torch.randn(pairs, width, generator=generator), alpha=0.3))
    return classes[0], classes[1]


def peak() -> float:
    """The most memory this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def run(which: str, pairs: int, width: int) -> dict[str, float]:
    """One fit in this process: seconds, memory and quality on fresh rows."""
    import odesteer
    from odesteer.steering.calibration import binary_quality

    positive, negative = draw(pairs, width, seed=1)
    # What is imported at first use is not part of a fit.
    few = (positive[:8].clone(), negative[:8].clone())
    method = odesteer.ODESteer() if which == "ours" else odesteer.PaperODESteer()
    method.fit(*few, calibrate=False)
    base, cpu, start = peak(), time.process_time(), time.perf_counter()
    if which == "ours":
        groups = range(pairs)
        log_odds = method.fit(positive, negative, groups=(groups, groups)).log_odds
    elif which == "reference":
        log_odds = method.fit(positive, negative, calibrate=False).log_odds
    else:
        barrier = method.fit_field(positive, negative).barrier
        assert barrier is not None
        log_odds = barrier.value
    seconds, cpu, top = time.perf_counter() - start, time.process_time() - cpu, peak()
    rows = torch.cat(draw(TEST_PAIRS, width, seed=2))
    labels = np.repeat([1, 0], TEST_PAIRS)
    quality = binary_quality(log_odds(rows).double().numpy(), labels)
    return {
        "seconds": seconds,
        "cpu": cpu,
        "peak": top,
        "over_data": top - base,
        "auc": quality.auc,
        "log_loss": quality.log_loss,
    }


def measure(pairs: int, width: int, repetitions: int) -> dict[str, list[dict[str, float]]]:
    """All of them, in turn."""
    runs: dict[str, list[dict[str, float]]] = {which: [] for which in FITS}
    for _ in range(repetitions):
        for which, done in runs.items():
            command = [sys.executable, __file__, "--one", which]
            command += ["--rows", str(2 * pairs), "--width", str(width)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            done.append(json.loads(out.splitlines()[-1]))
            print(which, done[-1], file=sys.stderr)
    return runs


def markdown(runs: dict[str, list[dict[str, float]]]) -> str:
    """Medians, one fit a row."""
    middle = {
        which: {key: median(one[key] for one in done) for key in done[0]}
        for which, done in runs.items()
    }
    lines = [
        "| fit | s | ratio | CPU s | peak GB | over data GB | held-out AUC | log-loss |",
        "|---" * 8 + "|",
    ]
    for which, m in middle.items():
        ratio = m["seconds"] / middle["reference"]["seconds"]
        lines.append(
            f"| {which} | {m['seconds']:.1f} | {ratio:.2f} | {m['cpu']:.1f} | {m['peak']:.2f} | "
            f"{m['over_data']:.2f} | {m['auc']:.3f} | {m['log_loss']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10000, help="of both classes together")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write every run here")
    parser.add_argument("--one", choices=FITS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    pairs = arguments.rows // 2
    if arguments.one:
        print(json.dumps(run(arguments.one, pairs, arguments.width)))
        sys.exit()
    result = measure(pairs, arguments.width, arguments.repetitions)
    print(
        f"{2 * pairs} x {arguments.width} float32, {torch.get_num_threads()} threads; torch "
        f"{torch.__version__}, scikit-learn {sklearn.__version__}, numpy {np.__version__}; "
        f"medians of {arguments.repetitions}, in turn\n"
    )
    print(markdown(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result))
