"""Search over layers and doses.

The contrast is split by group. On the fit part, the layers are ranked and the method is fitted
once at each candidate. On the held-out part, effect (`selection.effect`) and damage
(`scoring.score_texts`) are measured for every candidate at every dose, and `selection.result`
chooses among the trials.
"""

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from odesteer.data import Contrast
from odesteer.data.arguments import forgiving
from odesteer.evaluation.selection.effect import (
    NEW_TOKENS,
    EffectMeter,
    Prompt,
    StagedProgress,
    amounts_of,
    by_judge,
    by_probe,
    candidates_of,
    late_block,
    learn,
    prompts_of,
    split,
)
from odesteer.evaluation.selection.result import Goal, Trial, Tuned, choose, judged
from odesteer.extraction.cache import CacheChoice
from odesteer.extraction.extract import Progress
from odesteer.extraction.packing import continuations
from odesteer.extraction.score_texts import measure_damage
from odesteer.methods import Method, find_method
from odesteer.models.capture import evaluating
from odesteer.ode import Angle, Dose
from odesteer.steering import Steering

if TYPE_CHECKING:
    from odesteer.evaluation.judges import Judge


@forgiving(layer="layers")
def tune(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast | Any,
    method: str | Method = "odesteer",
    *,
    layers: int | Sequence[int | Sequence[int]] | None = None,
    doses: Sequence[Dose | float] | None = None,
    target: float | None = None,
    target_effect: float | None = None,
    max_kl: float = 1.0,
    max_perplexity_ratio: float = 1.25,
    prompts: Sequence[Prompt] | None = None,
    judge: "Judge | None" = None,
    seed: int = 0,
    progress: Progress | None = None,
    cache: CacheChoice = False,
) -> Tuned:
    """Choose layer and dose on held-out data, for a target under a damage budget.

    A third of the contrast's groups is held out. Every candidate layer at every dose is
    measured there, steering the last prompt token and all that follow, as in generation:

    - effect: a probe on a late block, fitted on unsteered texts, reads held-out negatives
      while they are steered: a proxy. With a `judge`, its scores of steered greedy generations
      count instead, which is better and slower.
    - damage: KL(unsteered || steered) of the next-token distributions along the unsteered
      model's continuations of neutral prompts, and the perplexity of these texts, steered
      over unsteered.

    The choice is made on the numbers that are reported, so the chosen trial's effect is slightly
    optimistic; its interval does not account for the choice.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        contrast: what to steer towards and away from.
        method: a name in `odesteer.METHODS`, or a method with your hyperparameters.
        layers: candidates: block indices, or several for a steering of several; None: the three
            middle blocks with the smallest held-out log-loss (for methods that steer attention
            heads, all blocks as one candidate). `layer` is the same.
        doses: a number is an integration time; None: angles from 0.05 to 0.3. The unsteered
            model is always a candidate as well.
        target: the mean read-out to reach: P(positive) in (0, 1), or with a judge its score.
        target_effect: instead of `target`, the effect to reach, in standard deviations of the
            unsteered read-out.
        max_kl: budget for the 95th percentile of KL, nats a token.
        max_perplexity_ratio: budget for the perplexity ratio, at least 1.
        prompts: neutral prompts for the damage, and what a judge reads answers to; None: those
            of held-out examples, or the first halves of held-out texts without any.
        judge: scores generations; whether high or low is wanted is learnt from its scores of
            held-out positives and negatives.
        seed: of the split, the folds, the texts drawn and the bootstrap.
        progress: called with (done, total), in steps of about the same time.
        cache: True or a folder keeps the activations of the fit part on disk, see
            `odesteer.activations`.

    Returns:
        The steering, the table of trials and the reason. Where no trial within the budget
        reaches the target, the closest one, `met` false, and a warning.

    Raises:
        ValueError: for an unknown method, layer, target or budget that makes no sense, or a
            contrast with too few groups to hold any out.
    """
    contrast = Contrast.of(contrast)
    fitted_method = find_method(method)() if isinstance(method, str) else method
    name = None if judge is None else judge.name
    wanted = Goal(max_kl, max_perplexity_ratio, target, target_effect, name)
    amounts = amounts_of(doses)
    candidates = candidates_of(model, fitted_method, layers)
    block = None if judge is not None else late_block(model, candidates)
    fit_part, held_out = split(contrast, seed)
    if fitted_method.needs_pairs and not fit_part.is_paired:
        fit_part = fit_part.paired()
    started = time.perf_counter()
    neutral = prompts_of(tokenizer, held_out, prompts, judge, seed)
    stages = StagedProgress(progress)
    with evaluating(model):
        fitted, probe = learn(
            model, tokenizer, fit_part, fitted_method, candidates, block, seed, stages, cache
        )
        readout: EffectMeter
        if judge is not None:
            readout = by_judge(model, tokenizer, judge, neutral, held_out, seed)
        else:
            assert probe is not None  # there is a block to read
            readout = by_probe(model, tokenizer, probe, held_out, seed)
        steerings = [fitted[0].with_strength(Angle(0.0))]
        steerings += [steering.with_strength(dose) for steering in fitted for dose in amounts]
        prompt_ids = [ids for ids, _ in neutral]
        trials, facts = _measure(model, tokenizer, steerings, readout, prompt_ids, seed, stages)
    wanted = replace(wanted, sign=readout.sign)
    trials = judged(trials, wanted)
    choice = choose(trials, wanted)
    if not choice.met:
        warnings.warn(choice.reason, stacklevel=3)
    receipt = {
        "method": fitted_method.name,
        "seed": seed,
        **wanted.to_json(),
        "split": {"fit": _sizes(fit_part), "held_out": _sizes(held_out)},
        **facts,
        "seconds": round(time.perf_counter() - started, 1),
        "met": choice.met,
        "reason": choice.reason,
        "chosen": choice.trial.to_json(),
        "trials": [trial.to_json() for trial in trials],
    }
    winner = _with_receipt(steerings[trials.index(choice.trial)], receipt)
    return Tuned(winner, tuple(trials), choice.trial, choice.met, choice.reason, wanted, receipt)


def _measure(
    model: nn.Module,
    tokenizer: Any,
    steerings: list[Steering],
    readout: EffectMeter,
    prompts: list[list[int]],
    seed: int,
    stages: "StagedProgress",
) -> tuple[list[Trial], dict[str, Any]]:
    """Measure a trial of each steering (the first moves nothing), and facts for the receipt."""
    raw = readout.raw(steerings, stages.count("effect", len(steerings) * readout.size))
    texts = continuations(model, tokenizer, prompts, NEW_TOKENS)
    count = stages.count("damage", len(steerings) * len(texts))
    damages = measure_damage(model, texts, steerings, count)
    outcomes = readout.outcomes(raw, seed)
    trials = [
        Trial(
            steering.layer if number else None,
            steering.dose,
            outcome.value,
            outcome.effect,
            damage.kl,
            damage.kl_95,
            damage.perplexity_ratio,
        )
        for number, (steering, outcome, damage) in enumerate(
            zip(steerings, outcomes, damages, strict=True)
        )
    ]
    n = {"texts": readout.size, "prompts": len(texts), "tokens": damages[0].tokens}
    return trials, {"readout": readout.facts(raw), "n": n}


def _with_receipt(steering: Steering, receipt: dict[str, Any]) -> Steering:
    """Add `receipts["tune"]`; of several layers, the first carries it."""
    first, *others = steering.parts
    return Steering.of([replace(first, receipts=first.receipts | {"tune": receipt}), *others])


def _sizes(part: Contrast) -> dict[str, int]:
    return {
        "groups": len({*part.groups[0], *part.groups[1]}),
        "positive": len(part.positive),
        "negative": len(part.negative),
    }
