"""Coverage of targets on three traits: by labels of fresh texts, and by a probe of moved rows.

    python -m experiments.target_coverage --splits 30

Statements of who has a trait and who has not (Perez et al. 2023), last token,
SmolLM2-135M-Instruct. In every random split a third of a trait's statements is fitted, a probe
(logistic regression) learns a third, and a third is fresh. Of the targets P = c, and P = 0.5 with
coverage c, pooled over splits:

    above    of the fresh rows at and above the level, at even priors, the share that is wanted
    moved    of the fresh unwanted rows that are moved there, the share that the probe calls wanted

Only `above` is promised, and only of the covered target. Splits without such a level are refused.
"""

import argparse
import math
import warnings

import numpy as np
import torch
from experiments.behaviours import contrasts
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import odesteer as ods
from odesteer.models.loading import load_model

TRAITS = ("interest-in-science", "conscientiousness", "desire-for-popularity")
STATEMENTS = 300  # a class


def thirds(rows: Tensor, generator: torch.Generator) -> list[Tensor]:
    """Split rows [n, d] in three at random."""
    return list(rows[torch.randperm(len(rows), generator=generator)].chunk(3))


def compare(
    method: ods.Method, positive: Tensor, negative: Tensor, coverage: float, splits: int
) -> str:
    """Return a line: above and moved of a plain target and of one with the coverage."""
    generator = torch.Generator().manual_seed(0)
    above = {"plain": np.zeros(2), "covered": np.zeros(2)}
    moved = {"plain": [0, 0], "covered": [0, 0]}
    refused = 0
    for _ in range(splits):
        (fit, probed, fresh), (unfit, unprobed, unwanted) = (
            thirds(rows, generator) for rows in (positive, negative)
        )
        steering = method.fit(fit, unfit)
        part = steering.only
        assert part.coverage is not None
        try:
            level = part.coverage.toward.at(coverage)
        except ValueError:
            refused += 1
            continue
        scale, offset = part.calibration
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        probe.fit(torch.cat([probed, unprobed]).numpy(), [1] * len(probed) + [0] * len(unprobed))
        plain = (math.log(coverage / (1 - coverage)) - offset) / scale
        levels = {"plain": plain, "covered": max(level, -offset / scale)}
        for name, h in levels.items():
            above[name] += [
                float((part.barrier.value(a) >= h).double().mean()) for a in (fresh, unwanted)
            ]
            p = 1.0 / (1.0 + math.exp(-(scale * h + offset)))
            target = ods.Target(min(p, 1 - 1e-9), budget=ods.Angle(1.0))
            solution = steering.with_strength(target).solution(unwanted)
            ends = solution.ys[solution.result == 0]
            moved[name][0] += int(probe.predict(ends.numpy()).sum()) if len(ends) else 0
            moved[name][1] += len(ends)
    cells = [f"{above[name][0] / above[name].sum():.3f}" for name in above]
    cells += [f"{called / max(count, 1):.3f}" for called, count in moved.values()]
    return " | ".join([*cells, f"{refused / splits:.0%}"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--splits", type=int, default=30)
    parser.add_argument("--coverage", type=float, default=0.9)
    parser.add_argument("--layer", type=int, default=14)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    model, tokenizer = load_model("smollm2")
    print("| trait | method | above: plain | covered | moved: plain | covered | refused |")
    for trait in TRAITS:
        contrast = contrasts(trait, STATEMENTS)[0]
        rows = ods.activations(model, tokenizer, contrast, layer=asked.layer, cache=True)
        for method in (ods.CAA(), ods.ODESteer(C=1.0, gamma=1.0)):
            line = compare(method, *rows, asked.coverage, asked.splits)
            print(f"| {trait} | {method.name} | {line} |", flush=True)


if __name__ == "__main__":
    main()
