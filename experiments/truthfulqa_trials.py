"""Ways of steering TruthfulQA's answers at equal damage, on training questions.

    python experiments/truthfulqa_trials.py     # two hours on a core; needs ODESTEER_DATA
    python experiments/truthfulqa_trials.py caa natural trained     # those whose names say so

Only the training questions of the first fold are used: 245 to fit on, 163 to compare on, of which
24 set the dose (a mean KL of 0.2 nats a token to the unsteered model). Printed are differences to
the unsteered model and to CAA with the same positions, mean and standard error over questions.
What was learnt here decides experiments/smollm2-truthfulqa-mc.toml and docs/results.md.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from odesteer.evaluation.benchmarks import Fold, load_benchmark
from odesteer.evaluation.experiment.cases import choice_scores, with_answers
from odesteer.evaluation.metrics import answers
from odesteer.extraction.packing import PromptWithAnswers
from odesteer.extraction.score_texts import TextScore, score_texts
from odesteer.fitting import fit
from odesteer.fitting.dose_search import match_damage
from odesteer.methods import METHODS
from odesteer.models.loading import load_model
from odesteer.ode import Angle, Dose, Target

LAYER, KL, MATCHED, FIT = 14, 0.2, 24, 245
TEXTS = "{name:<64} dose {dose:.3f}  KL {kl:.3f}  displaced {moved:.3f}"

# (name, method, hyperparameters, tokens read, positions steered, budget of a target)
TRIALS: list[tuple[str, str, dict[str, Any], str | None, str, float | None]] = [
    ("caa", "caa", {}, None, "last+generated", None),
    ("odesteer", "odesteer", {}, None, "last+generated", None),
    ("odesteer, p = 1/2", "odesteer", {"p": 0.5}, None, "last+generated", None),
    ("odesteer, p = 0", "odesteer", {"p": 0.0}, None, "last+generated", None),
    ("odesteer-paper", "odesteer-paper", {}, None, "last+generated", None),
    ("odesteer, target within 0.6", "odesteer", {}, None, "last+generated", 0.6),
    ("caa, all tokens of answers read", "caa", {}, "response", "last+generated", None),
    ("odesteer, all tokens of answers read", "odesteer", {}, "response", "last+generated", None),
    ("caa", "caa", {}, None, "all", None),
    ("odesteer", "odesteer", {}, None, "all", None),
    ("odesteer, p = 1/2", "odesteer", {"p": 0.5}, None, "all", None),
    ("odesteer, target within 0.15", "odesteer", {}, None, "all", 0.15),
    ("caa, all tokens of answers read", "caa", {}, "response", "all", None),
    ("odesteer, all tokens of answers read", "odesteer", {}, "response", "all", None),
    ("odesteer, the same, p = 1/2", "odesteer", {"p": 0.5}, "response", "all", None),
    *(
        (name, method, hyperparameters, None, positions, None)
        for positions in ("last+generated", "all")
        for name, method, hyperparameters in (
            ("natural gradient", "natural-gradient", {}),
            ("natural gradient, labels permuted", "natural-gradient", {}),
            ("margin gradient", "natural-gradient", {"shrinkage": 1.0}),
            ("trained", "odesteer-trained", {}),
        )
    ),
    *(
        (f"{name}, {which}", method, {}, None, positions, None)
        for which, positions in (
            ("first token left alone", "all-prompt[:1]"),
            ("from the fourth last token of the question", "prompt[-4:]+generated"),
        )
        for name, method in (
            ("caa", "caa"),
            ("odesteer", "odesteer"),
            ("natural gradient", "natural-gradient"),
        )
    ),
]


def main(wanted: list[str]) -> None:
    benchmark = load_benchmark("truthfulqa")
    fold = benchmark.folds(0)[0]
    questions = sorted({*fold.fit, *fold.validation}, key=int)
    generator = np.random.default_rng(3)
    questions = [questions[i] for i in generator.permutation(len(questions))]
    parts = (sorted(some, key=int) for some in (questions[:FIT], questions[FIT:]))
    trial = Fold(tuple(next(parts)), (), tuple(next(parts)))
    model, tokenizer = load_model("smollm2")
    cases = list(benchmark.examples(trial))
    generator.shuffle(cases)
    asked = [with_answers(tokenizer, benchmark, case, answers(case)) for case in cases]
    unsteered = scored(cases, score_texts(model, asked, [None], compare=False)[0])
    print("unsteered", *(f"{name} {value.mean():.3f}" for name, value in unsteered.items()))
    reference: dict[str, dict[str, np.ndarray]] = {}
    for name, method, hyperparameters, tokens, positions, budget in TRIALS:
        if wanted and not any(part in name for part in wanted):
            continue
        contrast = benchmark.contrast(trial)
        one = fit(
            model,
            tokenizer,
            contrast.shuffled() if "permuted" in name else contrast,
            METHODS[method](**hyperparameters),
            LAYER,
            Angle(0.1),  # any: it is matched below
            tokens=tokens,
            positions=positions,
            cache=True,
        )
        amount = matched(model, asked[:MATCHED], one, positions, dosed(budget))
        heard = score_texts(
            model, asked, [one.with_strength(dosed(budget)(amount))], positions=positions
        )
        own = scored(cases, heard[0])
        flat = [answer for answers in heard[0] for answer in answers]
        tokens_ = sum(answer.tokens for answer in flat)
        print(
            TEXTS.format(
                name=f"{name} ({positions})",
                dose=amount,
                kl=sum(answer.kl for answer in flat) / tokens_,
                moved=sum(answer.displacement for answer in flat) / tokens_,
            ),
            *(f"{key} {told(own[key] - unsteered[key])}" for key in own),
            *(
                f"{key} - caa {told(own[key] - reference[positions][key])}"
                for key in own
                if positions in reference
            ),
            flush=True,
        )
        reference.setdefault(positions, own)  # CAA is the first of each


def dosed(budget: float | None) -> Callable[[float], Dose]:
    """An angle; with a budget, the odds at which a token stops."""
    return Angle if budget is None else lambda odds: Target(odds / (1.0 + odds), Angle(budget))


def matched(
    model: Any,
    asked: list[PromptWithAnswers],
    one: Any,
    positions: str,
    dose: Callable[[float], Dose],
) -> float:
    """The amount with the mean KL asked for."""

    def damage(amount: float) -> float:
        heard = score_texts(model, asked, [one.with_strength(dose(amount))], positions=positions)[0]
        flat = [answer for answers in heard for answer in answers]
        return sum(answer.kl for answer in flat) / sum(answer.tokens for answer in flat)

    start = 1.0 if dose is not Angle else 0.07 if positions.startswith("all") else 0.25
    return match_damage(damage, KL, start, 2.0)[0]


def scored(cases: list[Any], heard: list[list[TextScore]]) -> dict[str, np.ndarray]:
    found = [choice_scores(case, own) for case, own in zip(cases, heard, strict=True)]
    return {name: np.array([row[name] for row in found]) for name in ("mc1", "mc2", "mc3")}


def told(values: np.ndarray) -> str:
    return f"{values.mean():+.3f} ± {values.std() / len(values) ** 0.5:.3f}"


if __name__ == "__main__":
    main(sys.argv[1:])
