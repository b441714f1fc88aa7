"""What twenty pairs do to what is written, behaviour by behaviour and method by method.

    python experiments/few_pairs.py --out few_pairs.json       hours on 2 cores; it resumes
    python experiments/few_pairs.py formal sea --rows odesteer caa random

Every method is fitted by `odesteer.fit` on 20 pairs of a packaged behaviour, with the dose that has
a KL of 0.3 nats a token on held-out pairs. `odesteer.assess` then measures what is written to
12 neutral prompts, with a probe fitted on the other 44 pairs, which the steering never saw.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import odesteer as ods
from odesteer.common.files import write_whole
from odesteer.data.behaviours import PAIRS
from odesteer.evaluation.assessment import PROMPTS
from odesteer.models.loading import load_model

FIT = 20
# Method, tokens that it reads, and whether its labels are permuted.
ROWS: dict[str, tuple[str, str | None, bool]] = {
    "random": ("random", None, False),
    "shuffled": ("odesteer", None, True),
    "caa": ("caa", "last", False),
    "caa-response": ("caa", "response", False),
    "odesteer": ("odesteer", None, False),
    "odesteer-response": ("odesteer", "response", False),
    "natural-gradient": ("natural-gradient", None, False),
}


def halves(name: str, seed: int = 0) -> tuple[ods.Contrast, ods.Contrast]:
    """Return the pairs to fit on and the others."""
    contrast = ods.behaviours.load(name)
    order = np.random.default_rng(seed).permutation(PAIRS)
    fit, other = (
        ods.Contrast(
            tuple(contrast.positive[i] for i in sorted(part)),
            tuple(contrast.negative[i] for i in sorted(part)),
        )
        for part in (order[:FIT], order[FIT:])
    )
    return fit, other


def run(names: Sequence[str], rows: Sequence[str], out: Path, layer: int, kl: float) -> Any:
    """Fit and assess; what is in `out` is not done again."""
    model, tokenizer = load_model("smollm2")
    results = json.loads(out.read_text()) if out.exists() else {}
    for name in names:
        fit, other = halves(name)
        for row in rows:
            if row in results.get(name, {}):
                continue
            method, tokens, shuffled = ROWS[row]
            steering = ods.fit(
                model,
                tokenizer,
                fit.shuffled() if shuffled else fit,
                method,
                layer,
                ods.KL(kl),
                tokens=tokens,
                cache=True,
            )
            measured = ods.assess(model, tokenizer, steering, other, PROMPTS, cache=True)
            results.setdefault(name, {})[row] = {"dose": str(steering.dose), **measured.facts}
            write_whole(out, json.dumps(results, indent=1).encode())
            print(name, row, steering.dose, measured, file=sys.stderr, flush=True)
    return results


def table(results: dict[str, Any]) -> str:
    """Return effects and perplexity ratios as Markdown."""
    rows = [row for row in ROWS if any(row in each for each in results.values())]
    lines = [f"| behaviour | {' | '.join(rows)} |", "|---" * (len(rows) + 1) + "|"]
    for name, each in results.items():
        cells = [
            f"{each[row]['effect']['mean']:+.2f} [{each[row]['effect']['low']:+.2f}, "
            f"{each[row]['effect']['high']:+.2f}] ×{each[row]['perplexity_ratio']:.2f}"
            if row in each
            else ""
            for row in rows
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("few_pairs.json"))
    parser.add_argument("--layer", type=int, default=14)
    parser.add_argument("--kl", type=float, default=0.3)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("names", nargs="*", default=[*ods.behaviours.names()])
    given = parser.parse_args()
    print(table(run(given.names, given.rows, given.out, given.layer, given.kl)))
