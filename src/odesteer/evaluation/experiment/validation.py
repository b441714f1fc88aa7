"""Validation: the layer and dose of conditions that leave them open.

The choice uses validation cases alone. Damage is measured along texts that are the same for all
methods: the given answers, or greedy continuations by the unsteered model. Among several
candidates, the metric decides:

    matched     at each layer, the dose with the given mean damage
    chosen      the best metric among candidates whose mean KL is within the budget

The trials are stored with the choice.
"""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from odesteer.backends import TransformersBackend
from odesteer.common.files import write_whole
from odesteer.evaluation.experiment.cases import (
    CaseScorer,
    ReadyCondition,
    choice_scores,
    mean_damage,
    sign,
)
from odesteer.evaluation.experiment.config import Layer
from odesteer.evaluation.experiment.fits import FitCache
from odesteer.evaluation.experiment.plan import Condition
from odesteer.evaluation.judges import Judge
from odesteer.evaluation.selection.result import best_within
from odesteer.extraction.packing import PromptWithAnswers, continuations
from odesteer.extraction.score_texts import Baseline, TextScore, baselines, score_texts
from odesteer.fitting.dose_search import match_damage
from odesteer.ode import Dose, Target
from odesteer.steering import Steering
from odesteer.steering.serialization.directory import dose_from_json, dose_to_json

START = 0.1  # of an angle; a tenth of a step of CAA, where damage is still small
POWERS = {"kl": 2.0, "displacement": 1.0}
CONTINUATION = 20  # tokens of a greedy continuation


class ValidationTrial(NamedTuple):
    """Layer and dose, with the means and the scores of the validation texts."""

    layer: Layer | None
    dose: Dose
    damage: dict[str, float]
    scores: list[list[TextScore]]


class Validation:
    """Validation cases of a fold, with the unsteered passes over their texts.

    Args:
        scorer: of cases.
        fits: fitted steerings.
        fold: its number.
        judges: by name.
    """

    def __init__(self, scorer: CaseScorer, fits: FitCache, fold: int, judges: dict[str, Judge]):
        self._scorer, self._fits, self._fold, self._judges = scorer, fits, fold, judges
        self._experiment, benchmark = scorer.experiment, scorer.benchmark
        self.cases = benchmark.examples(fits.plan.folds[fold], "validation")
        if not self.cases:
            raise ValueError(
                f"Fold {fold} of {benchmark.name} has no validation cases to choose on; raise "
                f"limits.validation, or give layers and doses."
            )
        self._prompts = (
            [scorer.with_choices(case) for case in self.cases]
            if self._experiment.task == "choices"
            else self._continued()
        )
        self._kept: dict[int, list[Baseline]] = {}

    def choose(self, condition: Condition) -> dict[str, Any]:
        """Choose layer and dose; return them, the rule and the trials as JSON values."""
        trials = [
            self._trial(condition, layer, dose)
            for layer in condition.layers
            for dose in self._candidates(condition, layer)
        ]
        budget = np.inf if condition.match is not None else self._experiment.choose.max_kl
        damages = [trial.damage["kl"] for trial in trials]
        metric = self._metric() if len(trials) > 1 else None
        effects = [
            float("nan")
            if metric is None or trial.damage["kl"] > budget
            else self._effect(condition, metric, trial)
            for trial in trials
        ]
        best = trials[best_within(effects, damages, [damage <= budget for damage in damages])]
        return {
            "layer": best.layer,
            "dose": dose_to_json(best.dose),
            "rule": self._rule(condition, metric),
            "trials": [
                {
                    "layer": trial.layer,
                    "dose": dose_to_json(trial.dose),
                    "effect": effect,
                    "damage": trial.damage["kl"],
                    "displacement": trial.damage["displacement"],
                }
                for trial, effect in zip(trials, effects, strict=True)
            ],
        }

    def _trial(self, condition: Condition, layer: Layer | None, dose: Dose) -> ValidationTrial:
        steering = self._fits.dosed(self._fold, condition, layer, dose)
        [scores] = score_texts(
            self._scorer.model,
            self._prompts,
            [steering],
            positions=self._experiment.positions,
            passes=self._unsteered(steering),
        )
        damage = mean_damage([score for row in scores for score in row])
        return ValidationTrial(layer, dose, damage, scores)

    def _candidates(self, condition: Condition, layer: Layer | None) -> Sequence[Dose]:
        match = condition.match
        if match is None:
            return condition.doses
        kind, budget = self._experiment.dose_type, condition.method.within

        def dosed(amount: float) -> Dose:
            """Return a dose of that amount; with a budget, a target with those odds."""
            if budget is not None:
                return Target(amount / (1.0 + amount), budget)
            return dose_from_json({"type": kind, "amount": amount})

        def damage(amount: float) -> float:
            return self._trial(condition, layer, dosed(amount)).damage[match.measure]

        start = START if kind == "angle" and budget is None else 1.0
        power = POWERS[match.measure] if budget is None else 1.0
        amount, _ = match_damage(damage, match.value, start, power)
        return [dosed(amount)]

    def _unsteered(self, steering: Steering) -> list[Baseline]:
        """Return the unsteered passes for a layer; one layer at a time, for they are large."""
        first = steering.first_layer
        if first not in self._kept:
            model, packed = self._scorer.model, self._scorer.packed()
            passes = baselines(model, self._prompts, [steering], packed=packed)
            self._kept = {first: list(passes)}
        return self._kept[first]

    def _metric(self) -> str:
        default = "mc2" if self._experiment.task == "choices" else next(iter(self._judges))
        return self._experiment.choose.metric or default

    def _effect(self, condition: Condition, metric: str, trial: ValidationTrial) -> float:
        """Return the mean metric, signed so that more is better; unscored cases do not count."""
        if self._experiment.task == "choices":
            rows = zip(self.cases, trial.scores, strict=True)
            return float(np.mean([choice_scores(case, row)[metric] for case, row in rows]))
        scorer, judge = self._scorer, self._judges[metric]
        steering = self._fits.dosed(self._fold, condition, trial.layer, trial.dose)
        ready = ReadyCondition(condition.id, steering, seed=condition.seed)
        make = partial(TransformersBackend.beside, scorer.model, scorer.tokenizer)
        values = []
        for start in range(0, len(self.cases), self._experiment.batch):
            cases = self.cases[start : start + self._experiment.batch]
            texts = scorer.generate(make, cases, ready)
            scores = judge.score(scorer.repeated(cases), texts)
            values += [score.value for score in scores if score.value is not None]
        return sign(scorer.benchmark, judge) * float(np.mean(values)) if values else np.nan

    def _rule(self, condition: Condition, metric: str | None) -> str:
        on = f"on {len(self.cases)} validation cases"
        if condition.match is not None:
            what = {"kl": "KL to the unsteered next token", "displacement": "displacement"}
            rule = f"mean {what[condition.match.measure]} {condition.match.value:g} {on}"
            return rule if metric is None else f"{rule}; of these, the best {metric}"
        budget = f"mean KL <= {self._experiment.choose.max_kl:g} {on}"
        return f"{budget}; of these, the best {metric}" if metric else f"the only candidate; {on}"

    def _continued(self) -> list[PromptWithAnswers]:
        """Continue each prompt unsteered, or read what another process of the run wrote."""
        path = self._fits.folder.shared(f"continuations-{self._fold}.json")
        if not path.is_file():
            prompts = [self._scorer.encoded(case) for case in self.cases]
            texts = continuations(self._scorer.model, self._scorer.tokenizer, prompts, CONTINUATION)
            answer_of = {tuple(text.prompt): text.answer for text in texts}
            rows = [[prompt, answer_of[tuple(prompt)]] for prompt in prompts]
            write_whole(path, json.dumps(rows).encode())
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [PromptWithAnswers(prompt, [answer]) for prompt, answer in rows]


def layer_and_dose(lines: Sequence[dict[str, Any]]) -> tuple[Layer | None, Dose]:
    """Return layer and dose from the lines of a choice."""
    choice = next(each for each in lines if each["kind"] == "choice")
    layer = choice["layer"]
    return (tuple(layer) if isinstance(layer, list) else layer), dose_from_json(choice["dose"])
