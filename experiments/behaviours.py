"""Held-out odds of wanted texts at equal KL: ten traits and two behaviours, by every method.

    python experiments/behaviours.py --out behaviours.json      about an hour on 2 cores; it resumes

A trait is learnt from 60 statements of who has it and 60 of who has not (Perez et al. 2023), a
behaviour from 60 questions with a matching and another answer (Cao et al. 2024), all at one block.
Every method gets the dose with a KL of 0.2 nats a token on held-out texts of the fit part, by
`odesteer.fit`; the number is what steering then adds to log p(wanted) - log p(unwanted), in nats a
token, on 25 + 25 other texts, which neither the fit nor the dose has seen.
"""

import argparse
import csv
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import odesteer as ods
from odesteer.common.files import write_whole
from odesteer.evaluation.benchmarks.files import data_dir
from odesteer.extraction.scoring.score_texts import score_texts
from odesteer.extraction.sensitivities import split_texts
from odesteer.models.loading import load_model

FIT, TEST, KL = 60, 25, 0.2
TRAITS = (
    "conscientiousness",
    "openness",
    "narcissism",
    "machiavellianism",
    "risk-seeking",
    "interest-in-music",
    "interest-in-science",
    "desire-for-popularity",
    "politically-conservative",
    "subscribes-to-utilitarianism",
)
BEHAVIOURS = ("power-seeking", "hallucination")
# Method, tokens that it reads, and whether its labels are permuted.
ROWS: dict[str, tuple[str, Any, bool]] = {
    "random": ("random", None, False),
    "CAA, last token": ("caa", "last", False),
    "CAA, all tokens": ("caa", "response", False),
    "ODESteer, last token": ("odesteer", "last", False),
    "ODESteer, all tokens": ("odesteer", "response", False),
    "natural gradient, shuffled": ("natural-gradient", None, True),
    "margin gradient": ("natural-gradient", None, False),
    "natural gradient": ("natural-gradient", None, False),
}


def contrasts(name: str) -> tuple[ods.Contrast, ods.Contrast]:
    """Return what is fitted on and what is tested on."""
    if name in BEHAVIOURS:
        parts = []
        for part, size in (("train", FIT), ("test", TEST)):
            with gzip.open(data_dir("bipo") / f"{name}_{part}.csv.gz", "rt") as file:
                rows = list(csv.DictReader(file))[:size]
            parts.append(
                ods.Contrast.from_pairs(
                    [(row["question"], row["matching"]) for row in rows],
                    [(row["question"], row["not_matching"]) for row in rows],
                )
            )
        return parts[0], parts[1]
    with gzip.open(data_dir("persona") / f"{name}.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    sides = [
        [row["statement"] for row in rows if row["answer_matching_behavior"].strip() == answer]
        for answer in ("Yes", "No")
    ]
    fit, test = (
        ods.Contrast.from_pairs(*(side[first:last] for side in sides))
        for first, last in ((0, FIT), (FIT, FIT + TEST))
    )
    return fit, test


def gains(model: Any, tokenizer: Any, contrast: ods.Contrast, steering: ods.Steering) -> list:
    """Return what steering adds to the log-likelihood of each text, nats a token, and its KL."""
    [rows] = score_texts(model, split_texts(model, tokenizer, contrast), [steering], packed=False)
    return [[(s.logprob - s.unsteered) / s.tokens, s.kl / s.tokens] for [s] in rows]


def run(names: Sequence[str], out: Path, layer: int) -> dict[str, Any]:
    """Fit and test every method on every behaviour; what is in `out` is not done again."""
    model, tokenizer = load_model("smollm2")
    results = json.loads(out.read_text()) if out.exists() else {}
    for name in names:
        fit, test = contrasts(name)
        for row, (method, tokens, shuffled) in ROWS.items():
            if row in results.get(name, {}):
                continue
            chosen: Any = ods.NaturalGradient(shrinkage=1.0) if row == "margin gradient" else method
            steering = ods.fit(
                model,
                tokenizer,
                fit.shuffled() if shuffled else fit,
                chosen,
                layer,
                ods.KL(KL),
                tokens=tokens,
                cache=True,
            )
            measured = np.array(gains(model, tokenizer, test, steering))
            n = len(test.positive)
            up, down = measured[:n, 0], measured[n:, 0]
            # Pairs of a behaviour share their question; statements do not belong together.
            paired = test.is_paired and name in BEHAVIOURS
            variance = (
                (up - down).var(ddof=1) / n
                if paired
                else up.var(ddof=1) / n + down.var(ddof=1) / len(down)
            )
            results.setdefault(name, {})[row] = {
                "gain": float(up.mean() - down.mean()),
                "error": float(variance**0.5),
                "kl": float(measured[:, 1].mean()),
                "dose": str(steering.dose),
                "hyperparameters": steering.hyperparameters,
            }
            write_whole(out, json.dumps(results, indent=1).encode())
            print(name, row, results[name][row], file=sys.stderr, flush=True)
    return results


def table(results: dict[str, Any]) -> str:
    """Return the gains as Markdown, with the mean over behaviours."""
    lines = [f"| behaviour | {' | '.join(ROWS)} |", "|---" * (len(ROWS) + 1) + "|"]
    for name, row in results.items():
        cells = [f"{row[key]['gain']:+.2f} ± {row[key]['error']:.2f}" for key in ROWS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    means = [np.mean([row[key]["gain"] for row in results.values()]) for key in ROWS]
    kls = [np.mean([row[key]["kl"] for row in results.values()]) for key in ROWS]
    lines.append(f"| **mean** | {' | '.join(f'{mean:+.2f}' for mean in means)} |")
    lines.append(f"| KL on the test texts | {' | '.join(f'{kl:.2f}' for kl in kls)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("behaviours.json"))
    parser.add_argument("--layer", type=int, default=14)
    parser.add_argument("names", nargs="*", default=[*TRAITS, *BEHAVIOURS])
    arguments = parser.parse_args()
    found = run(arguments.names, arguments.out, arguments.layer)
    print(table({name: found[name] for name in arguments.names}))
