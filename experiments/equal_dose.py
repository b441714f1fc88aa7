"""Methods compared by an independent probe, all activations moved equally far.

    python experiments/equal_dose.py --data jigsaw --activations jigsaw.safetensors

TruthfulQA: up to two pairs of a true and a false answer a question, "Q: ...\nA: ..."; Jigsaw:
short comments, toxic ones negative (no pairs). Last token, SmolLM2-135M-Instruct. Questions or
comments are split in three: 40 % to fit the methods, 30 % to fit the probes, 30 % to test.

Every method is fitted with its defaults. Its strength is then set so that the mean relative
displacement ||a(T) - a|| / ||a|| over the held-out negatives is the same for all (gated methods
move some rows further and leave others). The row "odesteer until P" spends the same mean
displacement otherwise: each row is moved until its own P reaches a level, the same for all,
and not further. The score is the share of held-out negatives that a probe calls positive. The
probes saw neither the rows that the methods learnt from nor the ones they are asked about:

    linear   logistic regression on standardised rows, C by cross-validation
    RBF      support vector machine on standardised rows, C by cross-validation

A linear probe rewards whoever moves along its normal, however odd the place; the RBF machine
asks to be near positives. Neither is a judge of text.
"""

import argparse
import csv
import gzip
import json
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from odesteer.data import Contrast
from odesteer.evaluation.benchmarks import TruthfulQA, data_dir
from odesteer.evaluation.benchmarks.truthfulqa import TEMPLATE
from odesteer.evaluation.statistics import interval
from odesteer.extraction.extract import activations
from odesteer.fitting.dose_search import match_displacement
from odesteer.methods import METHODS, GaussianODESteer, Method
from odesteer.models.loading import SMOLLM2, load_model
from odesteer.ode import Angle, Target, Time
from odesteer.steering import Steering

LAYERS = (10, 16)
DOSES = (0.05, 0.1, 0.2)
PAIRS, COMMENTS, LONGEST = 2, 800, 300  # pairs a question; comments a class, their characters
# They act elsewhere, or do nothing.
LEFT_OUT = ("none", "iti-heads")
CONTESTANTS: dict[str, Method] = {
    name: method() for name, method in METHODS.items() if name not in LEFT_OUT
} | {"odesteer-gaussian, QDA": GaussianODESteer(shared=False)}
UNTIL = "odesteer until P"


def truthfulqa() -> Contrast:
    """Up to `PAIRS` pairs of answers a question, in file order."""
    by_question: dict[str, tuple[list[Any], list[Any]]] = {}
    for example, correct in TruthfulQA.load().answers:
        by_question.setdefault(example.group, ([], []))[0 if correct else 1].append(example)
    pairs = [
        pair
        for above, below in by_question.values()
        for pair in list(zip(above, below, strict=False))[:PAIRS]
    ]
    return Contrast(tuple(a for a, _ in pairs), tuple(b for _, b in pairs), TEMPLATE)


def jigsaw() -> Contrast:
    """The first `COMMENTS` short comments of each class."""
    rows: dict[str, list[str]] = {"0": [], "1": []}
    with gzip.open(data_dir("jigsaw") / "comments.csv.gz", "rt", newline="") as file:
        for text, label in csv.reader(file):
            if len(text) <= LONGEST and len(rows[label]) < COMMENTS:
                rows[label].append(text)
    return Contrast.from_pairs(rows["0"], rows["1"], groups=range(2 * COMMENTS))


DATA: dict[str, Callable[[], Contrast]] = {"truthfulqa": truthfulqa, "jigsaw": jigsaw}


def read(contrast: Contrast, keep: Path | None) -> dict[int, tuple[Tensor, Tensor]]:
    """Activations by layer; read from `keep` where it exists, else written to it."""
    if keep is not None and keep.is_file():
        tensors = load_file(keep)
        return {i: (tensors[f"positive.{i}"], tensors[f"negative.{i}"]) for i in LAYERS}
    model, tokenizer = load_model(SMOLLM2, lambda line: print(line, file=sys.stderr))
    data = activations(model, tokenizer, contrast, LAYERS, progress=_progress)
    if keep is not None:
        tensors = {f"positive.{i}": above for i, (above, _) in data.items()}
        tensors |= {f"negative.{i}": below for i, (_, below) in data.items()}
        save_file(tensors, keep)
    return data


def _progress(done: int, total: int) -> None:
    print(f"texts: {done}/{total}", end="\n" if done == total else "\r", file=sys.stderr)


def thirds(groups: tuple[np.ndarray, ...], seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Row masks of both classes for the 40 % to fit, 30 % to probe and 30 % to test."""
    names = sorted({*groups[0], *groups[1]})
    order = np.random.default_rng(seed).permutation(names)
    cuts = [round(0.4 * len(names)), round(0.7 * len(names))]
    return [(np.isin(groups[0], part), np.isin(groups[1], part)) for part in np.split(order, cuts)]


def probes(rows: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> dict[str, Pipeline]:
    """The two probes, their regularisation chosen by grouped cross-validation."""
    folds = StratifiedGroupKFold(n_splits=5, shuffle=True, random_state=0)
    models = {
        "linear": (LogisticRegression(max_iter=2000), np.logspace(-5, 0, 6)),
        "RBF": (SVC(), np.logspace(-1, 2, 4)),
    }
    fitted = {}
    for name, (model, grid) in models.items():
        whole = make_pipeline(StandardScaler(), model)
        key = f"{type(model).__name__.lower()}__C"
        search = GridSearchCV(whole, {key: grid}, scoring="roc_auc", cv=folds)
        fitted[name] = search.fit(rows, labels, groups=groups).best_estimator_
    return fitted


def measure(data: str, keep: Path | None, seed: int) -> dict[str, Any]:
    """Every method at every layer and dose: shares with intervals over groups."""
    contrast = DATA[data]()
    paired = contrast.is_paired
    by_layer = read(contrast, keep)
    groups = tuple(np.array(names) for names in contrast.groups)
    fit, probe, test = thirds(groups, seed)
    result: dict[str, Any] = {"data": data, "seed": seed, "layers": {}}
    for layer, (positive, negative) in by_layer.items():
        rows = torch.cat([positive[probe[0]], negative[probe[1]]]).numpy()
        labels = np.repeat([1, 0], [probe[0].sum(), probe[1].sum()])
        of_row = np.concatenate([groups[0][probe[0]], groups[1][probe[1]]])
        judges = probes(rows, labels, of_row)
        held_out = torch.cat([positive[test[0]], negative[test[1]]]).numpy()
        truth = np.repeat([1, 0], [test[0].sum(), test[1].sum()])
        targets, of_target = negative[test[1]], groups[1][test[1]]
        about = {
            "n": [int(m.sum()) for pair in (fit, probe, test) for m in pair],
            "probe_auc": {
                name: float(roc_auc_score(truth, judge.decision_function(held_out)))
                for name, judge in judges.items()
            },
            "positives": _shares(judges, positive[test[0]], groups[0][test[0]]),
            "unsteered": _shares(judges, targets, of_target),
        }
        table: dict[str, Any] = {}
        for name, method in CONTESTANTS.items():
            if method.needs_pairs and not paired:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # calibration is not used here
                steering = method.fit(
                    positive[fit[0]],
                    negative[fit[1]],
                    groups=(groups[0][fit[0]], groups[1][fit[1]]),
                    calibrate=False,
                )
            ways = {name: _at, UNTIL: _until} if name == "odesteer" else {name: _at}
            for label, way in ways.items():
                table[label] = {}
                for dose in DOSES:
                    dosed = way(steering, targets, dose)
                    moved = dosed(targets)
                    table[label][str(dose)] = {
                        "dose": str(dosed.dose),
                        "displacement": _displacement(moved, targets),
                        **_shares(judges, moved, of_target),
                    }
                print(f"layer {layer} {label}: {table[label]}", file=sys.stderr)
        result["layers"][layer] = {**about, "methods": table}
    return result


def _at(steering: Steering, rows: Tensor, dose: float) -> Steering:
    """The steering at the strength whose mean relative displacement is `dose`."""
    return steering.with_strength(
        Time(match_displacement(steering, rows, dose, relative=True).strength)
    )


def _until(steering: Steering, rows: Tensor, dose: float) -> Steering:
    """The steering that stops at the probability for which the displacement is `dose`."""
    low, high = -5.0, 15.0  # log-odds
    for _ in range(20):
        middle = (low + high) / 2
        target = Target(1.0 / (1.0 + math.exp(-middle)), budget=Angle(1.0))
        dosed = steering.with_strength(target)
        short = _displacement(dosed(rows), rows) < dose
        low, high = (middle, high) if short else (low, middle)
    return dosed


def _displacement(moved: Tensor, rows: Tensor) -> float:
    return float(((moved - rows).norm(dim=-1) / rows.norm(dim=-1)).mean())


def _shares(judges: dict[str, Pipeline], rows: Tensor, groups: np.ndarray) -> dict[str, Any]:
    """The share of rows that each probe calls positive, with an interval over groups."""
    return {
        name: list(interval(judge.predict(rows.numpy()), draws=2000, groups=groups))
        for name, judge in judges.items()
    }


def markdown(result: dict[str, Any]) -> str:
    """A table a layer: percent called positive and half the width of its 95 % interval."""
    lines = []
    for layer, part in result["layers"].items():
        judges = part["probe_auc"]
        sizes = ", ".join(
            f"{above} + {below} to {what}"
            for what, above, below in zip(
                ("fit", "probe", "test"), part["n"][::2], part["n"][1::2], strict=True
            )
        )
        columns = [(judge, str(dose)) for judge in judges for dose in DOSES]
        lines += [
            f"\n{result['data']}, block {layer} (positives + negatives: {sizes}; probe AUC "
            + ", ".join(f"{judge} {auc:.3f}" for judge, auc in judges.items())
            + ")\n",
            "| method | " + " | ".join(f"{judge} {dose}" for judge, dose in columns) + " |",
            "|---|" + "---:|" * len(columns),
        ]
        for name in ("unsteered", "positives"):
            cells = [_percent(part[name][judge]) for judge, _ in columns]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        for name, by_dose in part["methods"].items():
            cells = []
            for judge, dose in columns:
                row = by_dose[dose]
                short = row["displacement"] < 0.99 * float(dose)
                cells.append(_percent(row[judge]) + f" (at {row['displacement']:.3f})" * int(short))
            lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _percent(share: list[float]) -> str:
    mean, low, high, _ = share
    return f"{100 * mean:.0f} ± {50 * (high - low):.0f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=DATA, default="truthfulqa")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    parser.add_argument("--activations", type=Path, help="kept here between runs")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    outcome = measure(arguments.data, arguments.activations, arguments.seed)
    print(markdown(outcome))
    if arguments.json:
        arguments.json.write_text(json.dumps(outcome, indent=1))
