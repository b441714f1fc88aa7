"""What a steering of few pairs adds to the odds of wanted texts, and to what is written.

    python experiments/behaviours.py                     a day on 2 cores; it resumes
    python experiments/behaviours.py sea --kl 0.6 --layer auto --fluent --rows odesteer-response
    python experiments/behaviours.py openness power-seeking --pairs 60 --kl 0.2 --measures odds

Behaviours are those of the package, the traits of Perez et al. 2023 (statements of who has one and
who has not) and the two of Cao et al. 2024 (questions with a matching and another answer). Every
method is fitted by `odesteer.fit` at one block, with the dose that has the KL on held-out pairs.
With --fluent the dose is then scaled once by what is written, as `odesteer fit` does by default.
Two measures are taken on `TEST` other pairs, which neither the fit nor the dose has seen, and a
third on the pairs of the fit:

    odds      what steering adds to log p(wanted) - log p(unwanted), nats a token
    written   `odesteer.assess` with a probe of those pairs: how far the answers to 12 neutral
              prompts move from the unwanted to the wanted class, and at what perplexity
    verdict   the same with the pairs of the fit, as `odesteer fit` does
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
from odesteer.data.behaviours import PAIRS
from odesteer.evaluation.assessment import PROMPTS, Assessor
from odesteer.evaluation.benchmarks.base import data_dir
from odesteer.extraction.score_texts import score_texts
from odesteer.extraction.sensitivities import split_texts
from odesteer.models.loading import load_model

TEST = 39
TRAITS = (
    "believes-life-has-no-meaning",
    "conscientiousness",
    "desire-for-acquiring-wealth",
    "desire-for-popularity",
    "desire-to-be-more-creative",
    "interest-in-art",
    "interest-in-music",
    "interest-in-science",
    "interest-in-sports",
    "machiavellianism",
    "narcissism",
    "no-shut-down",
    "openness",
    "politically-conservative",
    "risk-averse",
    "risk-seeking",
    "stands-its-ground",
    "subscribes-to-utilitarianism",
    "subscribes-to-virtue-ethics",
)
QUESTIONS = ("power-seeking", "hallucination")
MEASURES = ("odds", "written", "verdict")
# Method, tokens that it reads, and whether its labels are permuted.
ROWS: dict[str, tuple[Any, Any, bool]] = {
    "random": ("random", None, False),
    "shuffled": ("natural-gradient", None, True),
    "caa": ("caa", "last", False),
    "caa-response": ("caa", "response", False),
    "odesteer": ("odesteer", "last", False),
    "odesteer-response": ("odesteer", "response", False),
    "margin-gradient": (ods.NaturalGradient(shrinkage=1.0), None, False),
    "natural-gradient": ("natural-gradient", None, False),
    "odesteer-trained": ("odesteer-trained", None, False),
}


def contrasts(name: str, pairs: int, seed: int = 0) -> tuple[ods.Contrast, ods.Contrast]:
    """Return what is fitted on and what is tested on."""
    if name in QUESTIONS:
        parts = []
        for part, size in (("train", pairs), ("test", TEST)):
            with gzip.open(data_dir("bipo") / f"{name}_{part}.csv.gz", "rt") as file:
                rows = list(csv.DictReader(file))[:size]
            sides = [
                [(row["question"], row[side]) for row in rows]
                for side in ("matching", "not_matching")
            ]
            parts.append(ods.Contrast.from_pairs(*sides))
        return parts[0], parts[1]
    if name in TRAITS:
        with gzip.open(data_dir("persona") / f"{name}.jsonl.gz", "rt") as file:
            rows = [json.loads(line) for line in file]
        sides = [
            [row["statement"] for row in rows if row["answer_matching_behavior"].strip() == answer]
            for answer in ("Yes", "No")
        ]
        bounds = ((0, pairs), (pairs, pairs + TEST))
        fit, test = (
            ods.Contrast.from_pairs(*(side[first:last] for side in sides)) for first, last in bounds
        )
        return fit, test
    contrast = ods.behaviours.load(name)
    order = np.random.default_rng(seed).permutation(PAIRS)
    fit, test = (
        ods.Contrast(
            tuple(contrast.positive[i] for i in sorted(part)),
            tuple(contrast.negative[i] for i in sorted(part)),
        )
        for part in (order[: PAIRS - TEST][:pairs], order[PAIRS - TEST :])
    )
    return fit, test


def odds(model: Any, tokenizer: Any, test: ods.Contrast, steering: ods.Steering) -> dict[str, Any]:
    """Return what steering adds to the odds of wanted texts, its standard error, and its KL."""
    texts = split_texts(model, tokenizer, test)
    [rows] = score_texts(model, texts, [steering], packed=False)
    gains = np.array([(s.logprob - s.unsteered) / s.tokens for [s] in rows])
    n = len(test.positive)
    up, down = gains[:n], gains[n:]
    # Statements do not belong together; answers share their question.
    statements = test.positive[0].prompt is None
    spread = up.var(ddof=1) + down.var(ddof=1) if statements else (up - down).var(ddof=1)
    return {
        "gain": float(up.mean() - down.mean()),
        "error": float((spread / n) ** 0.5),
        "kl": float(np.mean([s.kl / s.tokens for [s] in rows])),
    }


def run(
    names: Sequence[str],
    rows: Sequence[str],
    measures: Sequence[str],
    out: Path,
    *,
    layer: int | str,
    kl: float,
    pairs: int,
    fluent: bool = False,
    positions: str | None = None,
) -> dict[str, Any]:
    """Fit and measure; what is in `out` is not done again."""
    model, tokenizer = load_model("smollm2")
    results = json.loads(out.read_text()) if out.exists() else {}
    for name in names:
        fit, test = contrasts(name, pairs)
        assessors = {
            "written": Assessor(model, tokenizer, test, PROMPTS, cache=True),
            "verdict": Assessor(model, tokenizer, fit, cache=True),
        }
        for row in rows:
            key = f"{row} {pairs} {layer} {kl:g}{' fluent' if fluent else ''}"
            key += f" {positions}" if positions else ""
            known = results.setdefault(name, {}).setdefault(key, {})
            missing = [each for each in measures if each not in known]
            if not missing:
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
                positions=positions,
                cache=True,
            )
            if fluent:
                steering, own = assessors["verdict"].with_fluent_dose(steering)
                known["verdict"] = own.facts
            known |= {"dose": str(steering.dose), "layer": steering.layer}
            if "odds" in missing:
                known["odds"] = odds(model, tokenizer, test, steering)
            for each in set(missing) & assessors.keys() - known.keys():
                known[each] = assessors[each].assess(steering).facts
            write_whole(out, json.dumps(results, indent=1).encode())
            print(name, key, known, file=sys.stderr, flush=True)
    return results


def table(results: dict[str, Any], measure: str) -> str:
    """Return one measure of every behaviour and row as Markdown."""
    keys = list(dict.fromkeys(key for rows in results.values() for key in rows))
    lines = [f"| {measure} | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    for name, rows in results.items():
        cells = [_cell(rows.get(key, {}).get(measure), measure) for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(facts: dict[str, Any] | None, measure: str) -> str:
    if facts is None:
        return ""
    if measure == "odds":
        return f"{facts['gain']:+.2f} ± {facts['error']:.2f}"
    effect = facts["effect"]
    interval = f"{effect['mean']:+.2f} [{effect['low']:+.2f}, {effect['high']:+.2f}]"
    return f"{interval} ×{facts['perplexity_ratio']:.2f} {facts['verdict']}"


if __name__ == "__main__":
    every = [*ods.behaviours.names(), *TRAITS, *QUESTIONS]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=every, metavar="BEHAVIOUR")
    parser.add_argument("--out", type=Path, default=Path("behaviours.json"))
    parser.add_argument("--pairs", type=int, default=20, help="to fit on; 25 at most of our own")
    parser.add_argument("--layer", type=lambda x: x if x == "auto" else int(x), default=14)
    parser.add_argument("--kl", type=float, default=0.3)
    parser.add_argument("--fluent", action="store_true", help="scale the dose by what is written")
    parser.add_argument("--positions", help="steered tokens; all, where nothing is said")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=[*ROWS])
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=[*MEASURES])
    given = parser.parse_args()
    found = run(
        given.names, given.rows, given.measures, given.out,
        layer=given.layer, kl=given.kl, pairs=given.pairs, fluent=given.fluent,
        positions=given.positions,
    )  # fmt: skip
    for each in given.measures:
        print(table(found, each), end="\n\n")
