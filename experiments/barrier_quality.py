"""Accuracy of each barrier as a log density ratio of real activations.

    python experiments/barrier_quality.py            the table, about ten minutes on 2 cores

TruthfulQA answers, "Q: ...\\nA: ...", last token, SmolLM2-135M-Instruct; 150 questions to fit,
the other 667 to test. AUC, log-loss and expected calibration error on the test questions, at
the prior of the fit questions. The rows above "default" are the single steps from the paper's
configuration to ours, each with fixed settings and uncalibrated.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from odesteer.evaluation.benchmarks import TruthfulQA
from odesteer.extraction.extract import activations
from odesteer.methods import ITI, FourierODESteer, ODESteer, PaperODESteer
from odesteer.methods.odesteer.kernel_machine import fit_machine
from odesteer.methods.samples import Samples
from odesteer.models.loading import SMOLLM2, load_model
from odesteer.steering.calibration import BinaryQuality, binary_quality

LAYERS = (10, 13, 16)
BOLD = "centred, exact degree 2, gamma 1, C 1"
DEFAULT = "default (gamma, C cross-validated, p 1/4, calibrated)"

# samples to fit on, rows to test, groups -> log-odds of the test rows at the fit prior
Row = Callable[[Samples, Tensor], np.ndarray]


def _unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def _kernel(gamma: float, centred: bool) -> Row:
    def row(fit: Samples, test: Tensor) -> np.ndarray:
        centre = fit.rows.mean(dim=0) if centred else fit.rows.new_zeros(fit.rows.shape[1])
        machine = fit_machine(_unit(fit.rows - centre), fit.labels, gamma, 1.0, 1.0, 10**6, 0)
        gram = (gamma * _unit(test - centre) @ machine.support.mT + 1.0).square()
        return (gram @ machine.weights).numpy() + machine.bias

    return row


def _degree_one(fit: Samples, test: Tensor) -> np.ndarray:
    model = LogisticRegression(C=1.0, max_iter=1000).fit(_unit(fit.rows).numpy(), fit.labels)
    return model.decision_function(_unit(test).numpy())


def _barrier(method: ITI | PaperODESteer | FourierODESteer) -> Row:
    def row(fit: Samples, test: Tensor) -> np.ndarray:
        barrier = method.fit_field(fit.positive, fit.negative).barrier
        assert barrier is not None
        return barrier.value(test).numpy() + fit.log_prior_odds

    return row


def _calibrated(method: ODESteer) -> Row:
    def row(fit: Samples, test: Tensor) -> np.ndarray:
        n = len(fit.positive)
        assert fit.groups is not None
        groups = (fit.groups[:n], fit.groups[n:])
        steering = method.fit(fit.positive, fit.negative, groups=groups)
        return steering.log_odds(test).numpy() + fit.log_prior_odds

    return row


ROWS: dict[str, Row] = {
    "raw logistic regression, C 1 (ITI)": _barrier(ITI()),
    "paper's configuration (sketch, gamma .1, C 1)": _barrier(PaperODESteer()),
    "exact degree 2, gamma .1, C 1": _kernel(0.1, centred=False),
    "random Fourier features, C 1": _barrier(FourierODESteer()),
    "normalised, degree 1, C 1": _degree_one,
    "normalised, exact degree 2, gamma 1, C 1": _kernel(1.0, centred=False),
    BOLD: _kernel(1.0, centred=True),
    "the same, cross-validated and calibrated (p 0)": _calibrated(ODESteer(p=0.0)),
    DEFAULT: _calibrated(ODESteer()),
}


def measure(
    names: tuple[str, ...] = tuple(ROWS),
    fit_questions: int = 150,
    seed: int = 0,
    layers: tuple[int, ...] = LAYERS,
    test_questions: int | None = None,
) -> dict[str, dict[int, BinaryQuality]]:
    """Quality on the test questions, all or as many as given, by row and layer."""
    model, tokenizer = load_model(SMOLLM2, lambda line: print(line, file=sys.stderr))
    fit_set, test_set = TruthfulQA.load().split(fit_questions, seed)
    if test_questions is not None:
        test_set = test_set.subset(sorted(set(test_set.groups[0]))[:test_questions])
    fit = activations(model, tokenizer, fit_set, layers, progress=_progress("fit answers"))
    test = activations(model, tokenizer, test_set, layers, progress=_progress("test answers"))
    table: dict[str, dict[int, BinaryQuality]] = {name: {} for name in names}
    for layer in layers:
        samples = ODESteer().check(*fit[layer], groups=fit_set.groups)
        rest = ODESteer().check(*test[layer], groups=test_set.groups)
        for name in names:
            log_odds = ROWS[name](samples, rest.rows)
            table[name][layer] = binary_quality(log_odds, rest.labels)
            print(f"layer {layer} {name}: {table[name][layer]}", file=sys.stderr)
    return table


def _progress(label: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        end = "\n" if done == total else "\r"
        print(f"{label}: {done}/{total}", end=end, file=sys.stderr)

    return show


def markdown(table: dict[str, dict[int, BinaryQuality]]) -> str:
    """AUC / log-loss / calibration error by row and layer."""
    head = "| barrier | " + " | ".join(f"block {layer}" for layer in LAYERS) + " |\n"
    lines = [head + "|---" * (len(LAYERS) + 1) + "|"]
    for name, by_layer in table.items():
        cells = [f"{q.auc:.3f} / {q.log_loss:.3f} / {q.ece:.3f}" for q in by_layer.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the split by question")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    result = measure(seed=arguments.seed)
    print(markdown(result))
    if arguments.json:
        arguments.json.write_text(
            json.dumps({n: {i: q._asdict() for i, q in r.items()} for n, r in result.items()})
        )
