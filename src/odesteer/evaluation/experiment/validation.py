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
from odesteer.evaluation.benchmarks import Benchmark
from odesteer.evaluation.case import Case
from odesteer.evaluation.experiment import multiple_choice as choices
from odesteer.evaluation.experiment import units
from odesteer.evaluation.experiment import units as unit_lines
from odesteer.evaluation.experiment.config import Experiment, Layer
from odesteer.evaluation.experiment.fits import FitCache
from odesteer.evaluation.experiment.plan import Condition, Plan
from odesteer.evaluation.experiment.run_directory import RunFolder
from odesteer.evaluation.experiment.units import plain, with_choices
from odesteer.evaluation.judges import Judge
from odesteer.extraction.scoring.divergence import continuations
from odesteer.extraction.scoring.packing import PromptWithAnswers, batches
from odesteer.extraction.scoring.score_texts import Baseline, TextScore, vocabulary_size
from odesteer.fitting.kl_budget import match_damage
from odesteer.models.chat_template import encode
from odesteer.ode import Dose, Target
from odesteer.steering import Steering
from odesteer.steering.serialization.directory import dose_from_json, dose_to_json

START = 0.1  # of an angle; a tenth of a step of CAA, where damage is still small
POWERS = {"kl": 2.0, "displacement": 1.0}
CONTINUATION = 20  # tokens of a greedy continuation


class Damage(NamedTuple):
    """Means over the tokens of the validation texts."""

    kl: float
    displacement: float


class Validation:
    """Validation cases of a fold, with the unsteered passes over their texts.

    Args:
        model, tokenizer: to steer.
        benchmark, plan: the cases and conditions.
        fits: fitted steerings.
        folder: the run directory, where the unsteered model's continuations are kept.
        fold: its number.
        packed: several answers in one row.
        judges: by name.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        benchmark: Benchmark,
        plan: Plan,
        fits: FitCache,
        folder: RunFolder,
        fold: int,
        packed: bool,
        judges: dict[str, Judge],
    ):
        self._model, self._tokenizer, self._benchmark = model, tokenizer, benchmark
        self._experiment: Experiment = plan.experiment
        self._fits, self._fold, self._judges = fits, fold, judges
        self.cases = benchmark.examples(plan.folds[fold], "validation")
        if not self.cases:
            raise ValueError(
                f"Fold {fold} of {benchmark.name} has no validation cases to choose on; raise "
                f"limits.validation, or give layers and doses."
            )
        self._prompts = (
            [with_choices(tokenizer, benchmark, case) for case in self.cases]
            if self._experiment.task == "choices"
            else self._continued(folder)
        )
        self._batches = list(batches(self._prompts, packed, vocabulary_size(model)))
        self._kept: dict[int | None, list[Baseline]] = {}

    def choose(self, condition: Condition) -> dict[str, Any]:
        """Choose layer and dose; return them, the rule and the trials as JSON values."""
        experiment = self._experiment
        trials: list[tuple[Layer | None, Dose, Damage, list[list[TextScore]]]] = []
        for layer in condition.layers:
            for dose in self._candidates(condition, layer):
                steering = self._fits.dosed(self._fold, condition, layer, dose)
                scores = self._scores(steering)
                trials.append((layer, dose, _damage(scores), scores))
        metric, effects = None, [float("nan")] * len(trials)
        within = [
            condition.match is not None or trial[2].kl <= experiment.choose.max_kl
            for trial in trials
        ]
        if len(trials) > 1:
            metric = self._metric()
            effects = [
                self._effect(condition, metric, trial) if fits else float("nan")
                for trial, fits in zip(trials, within, strict=True)
            ]
        best = _best(trials, effects, within)
        layer, dose, *_ = trials[best]
        return {
            "layer": layer,
            "dose": dose_to_json(dose),
            "rule": self._rule(condition, metric),
            "trials": [
                {
                    "layer": trial[0],
                    "dose": dose_to_json(trial[1]),
                    "effect": effect,
                    "damage": trial[2].kl,
                    "displacement": trial[2].displacement,
                }
                for trial, effect in zip(trials, effects, strict=True)
            ],
        }

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
            steering = self._fits.dosed(self._fold, condition, layer, dosed(amount))
            return float(getattr(_damage(self._scores(steering)), match.measure))

        start = START if kind == "angle" and budget is None else 1.0
        power = POWERS[match.measure] if budget is None else 1.0
        amount, _ = match_damage(damage, match.value, start, power)
        return [dosed(amount)]

    def _scores(self, steering: Steering) -> list[list[TextScore]]:
        nothing = TextScore(0, 0.0, 0.0, 0.0, 0.0)
        results = [[nothing] * len(prompt.answers) for prompt in self._prompts]
        for unsteered in self._unsteered(steering):
            scores = unsteered.compare(steering, self._experiment.positions)
            for slot, tokens in zip(unsteered.batch.slots, scores, strict=True):
                results[slot.prompt][slot.answer] = tokens.sums()
        return results

    def _unsteered(self, steering: Steering) -> list[Baseline]:
        """Return the unsteered passes for a layer; one layer at a time, for they are large."""
        layer = steering.layer
        first = layer[0] if isinstance(layer, tuple) else layer
        if first not in self._kept:
            self._kept = {
                first: [Baseline(self._model, batch, [steering]) for batch in self._batches]
            }
        return self._kept[first]

    def _metric(self) -> str:
        named = self._experiment.choose.metric
        if named is not None:
            return named
        return "mc2" if self._experiment.task == "choices" else next(iter(self._judges))

    def _effect(
        self,
        condition: Condition,
        metric: str,
        trial: tuple[Layer | None, Dose, Damage, list[list[TextScore]]],
    ) -> float:
        """Return the mean metric, signed so that more is better; unscored cases do not count."""
        layer, dose, _, scores = trial
        if self._experiment.task == "choices":
            metrics = [
                choices.scores_of(case, row)[metric]
                for case, row in zip(self.cases, scores, strict=True)
            ]
            return float(np.mean(metrics))
        steering = self._fits.dosed(self._fold, condition, layer, dose)
        judge = self._judges[metric]
        values = []
        size = self._experiment.batch
        for start in range(0, len(self.cases), size):
            cases: Sequence[Case] = self.cases[start : start + size]
            texts = units.generate(
                partial(TransformersBackend.beside, self._model, self._tokenizer),
                self._tokenizer,
                self._benchmark,
                self._experiment,
                cases,
                steering,
                False,
                condition.seed,
            )
            rows = [case for case in cases for _ in range(self._experiment.samples)]
            values += [
                value for value, _ in unit_lines.scored(judge, rows, texts) if value is not None
            ]
        return (
            unit_lines.sign(self._benchmark, judge) * float(np.mean(values)) if values else np.nan
        )

    def _rule(self, condition: Condition, metric: str | None) -> str:
        on = f"on {len(self.cases)} validation cases"
        if condition.match is not None:
            what = {"kl": "KL to the unsteered next token", "displacement": "displacement"}
            rule = f"mean {what[condition.match.measure]} {condition.match.value:g} {on}"
            return rule if metric is None else f"{rule}; of these, the best {metric}"
        budget = f"mean KL <= {self._experiment.choose.max_kl:g} {on}"
        return f"{budget}; of these, the best {metric}" if metric else f"the only candidate; {on}"

    def _continued(self, folder: RunFolder) -> list[PromptWithAnswers]:
        """Continue each prompt unsteered, or read what another process of the run wrote."""
        path = folder.shared(f"continuations-{self._fold}.json")
        if not path.is_file():
            prompts = []
            for case in self.cases:
                prompt, template = plain(self._benchmark, case)
                prompts.append(encode(self._tokenizer, prompt, None, template))
            texts = continuations(self._model, self._tokenizer, prompts, CONTINUATION)
            answer_of = {tuple(text.prompt): text.answer for text in texts}
            rows = [[prompt, answer_of[tuple(prompt)]] for prompt in prompts]
            write_whole(path, json.dumps(rows).encode())
        rows = json.loads(path.read_text(encoding="utf-8"))
        return [PromptWithAnswers(prompt, [answer]) for prompt, answer in rows]


def _damage(scores: Sequence[Sequence[TextScore]]) -> Damage:
    answers = [score for row in scores for score in row]
    tokens = sum(score.tokens for score in answers)
    return Damage(
        sum(score.kl for score in answers) / tokens,
        sum(score.displacement for score in answers) / tokens,
    )


def _best(trials: Sequence[Any], effects: Sequence[float], within: Sequence[bool]) -> int:
    """Return the index of the best effect within the budget, or else of the least damage."""
    if len(trials) == 1:
        return 0
    if not any(within):
        return min(range(len(trials)), key=lambda i: trials[i][2].kl)
    ranked = [i for i in range(len(trials)) if within[i] and not np.isnan(effects[i])]
    return max(ranked, key=lambda i: effects[i]) if ranked else within.index(True)


def layer_and_dose(lines: Sequence[dict[str, Any]]) -> tuple[Layer | None, Dose]:
    """Return layer and dose from the lines of a choice."""
    choice = next(each for each in lines if each["kind"] == "choice")
    layer = choice["layer"]
    return (tuple(layer) if isinstance(layer, list) else layer), dose_from_json(choice["dose"])
