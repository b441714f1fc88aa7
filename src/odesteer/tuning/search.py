"""Which layer and which dose do what is wanted, at what damage?

The contrast is split by group. On the fit part: the layers are ranked, and at each candidate
the method is fitted once. On the held-out part, every candidate at every dose: the effect
(`readout`) and the damage (`damage`). What is chosen from that is `result`'s question.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import nn

from odesteer.backends import TransformersBackend
from odesteer.backends.base import AnySteering
from odesteer.cache.activations import CacheChoice
from odesteer.calibration import BinaryQuality
from odesteer.capture import evaluating
from odesteer.contrast import Contrast
from odesteer.extraction import Progress
from odesteer.fitting import (
    RANKING,
    Reading,
    fit,
    fit_readings,
    middle_layers,
    rank_layers,
    read,
)
from odesteer.layered import LayeredSteering
from odesteer.layers import find_layers, layer_index
from odesteer.methods import CAA, Method, find_method
from odesteer.ode import Angle, Dose, as_dose
from odesteer.templates import Messages, encode
from odesteer.tuning.damage import continuations, measure
from odesteer.tuning.readout import JudgeReadOut, Probe, ProbeReadOut, ReadOut, fit_probe
from odesteer.tuning.replay import as_texts
from odesteer.tuning.result import Trial, Tuned, Wanted, choose, judged

if TYPE_CHECKING:
    from odesteer.judges import Judge

Layer = int | str | tuple[int, ...]
Prompt = str | Messages
T = TypeVar("T")

DOSES: tuple[Dose, ...] = tuple(Angle(angle) for angle in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3))
FIT_SHARE = 2 / 3  # of the groups
CANDIDATES = 3
# Enough for an interval that tells neighbouring doses apart, few enough for two CPU cores.
TEXTS, PROMPTS, NEW_TOKENS = 48, 24, 24
# Of the time: how long each stage took on SmolLM2-135M, roughly.
_STAGES = {"read": 20, "rank": 10, "fit": 10, "effect": 35, "damage": 25}


def tune(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    method: str | Method = "odesteer",
    *,
    layers: Sequence[int | Sequence[int]] | None = None,
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
    measured there, steering the last prompt token and all that follow, as in use:

    - effect: a probe on a late block, learnt from unsteered texts, reads held-out negatives
      while they are steered. That is a proxy which goes through the model. With a `judge`,
      its scores of steered greedy generations count instead: better, and slower.
    - damage: KL(unsteered || steered) of the next-token distributions along what the
      unsteered model says after neutral prompts, and the perplexity of that text, steered
      over unsteered.

    The choice is made on the numbers it is reported with, so the chosen trial's effect is a
    little flattered; its interval does not know of the choice.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        contrast: what to steer towards and away from.
        method: a name in `odesteer.METHODS`, or a method with your hyperparameters.
        layers: candidates: block indices, or several for a steering of several; None: the three
            middle blocks with the smallest held-out log-loss (for methods that steer attention
            heads, all blocks as one candidate).
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
    one = find_method(method)() if isinstance(method, str) else method
    name = None if judge is None else judge.name
    wanted = Wanted(max_kl, max_perplexity_ratio, target, target_effect, name)
    amounts = _amounts(doses)
    candidates = _candidates(model, one, layers)
    block = None if judge is not None else _late_block(model, candidates)
    fit_part, held_out = _split(contrast, seed)
    if one.needs_pairs and not fit_part.is_paired:
        fit_part = fit_part.paired()
    started = time.perf_counter()
    asked = _asked(tokenizer, held_out, prompts, judge, seed)
    stages = _Stages(progress)
    with evaluating(model):
        fitted, probe = _learn(
            model, tokenizer, fit_part, one, candidates, block, seed, stages, cache
        )
        readout: ReadOut
        if judge is not None:
            readout = _judged(model, tokenizer, judge, asked, held_out, seed)
        else:
            assert probe is not None  # there is a block to read
            readout = _probed(model, tokenizer, probe, held_out, seed)
        steerings = [fitted[0].with_strength(Angle(0.0))]
        steerings += [steering.with_strength(dose) for steering in fitted for dose in amounts]
        prompt_ids = [ids for ids, _ in asked]
        trials, facts = _measure(model, tokenizer, steerings, readout, prompt_ids, seed, stages)
    wanted = replace(wanted, sign=readout.sign)
    trials = judged(trials, wanted)
    choice = choose(trials, wanted)
    if not choice.met:
        warnings.warn(choice.reason, stacklevel=2)
    receipt = {
        "method": one.name,
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


# ---- what was asked for


def _amounts(doses: Sequence[Dose | float] | None) -> list[Dose]:
    amounts = [as_dose(dose) for dose in (DOSES if doses is None else doses)]
    amounts = [dose for dose in amounts if not dose.is_zero]
    if not amounts:
        raise ValueError(
            "doses needs at least one that is not 0, such as odesteer.Angle(0.2); the unsteered "
            "model is a candidate anyway."
        )
    return list(dict.fromkeys(amounts))


def _candidates(
    model: nn.Module, method: Method, layers: Sequence[int | Sequence[int]] | None
) -> list[Layer]:
    """What to fit at; nothing where the layers are still to be ranked."""
    if layers is None:
        return ["auto"] if method.site == "heads" else []
    found: list[Layer] = [
        layer_index(model, layer)
        if isinstance(layer, int)
        else tuple(sorted({layer_index(model, each) for each in layer}))
        for layer in layers
    ]
    if not found or () in found:
        raise ValueError("layers holds no layer; name at least one block, or leave it out.")
    return list(dict.fromkeys(found))


def _late_block(model: nn.Module, candidates: Sequence[Layer]) -> int:
    """Where the probe reads: nine tenths up, and above where each candidate begins."""
    depth = len(find_layers(model))
    begin = max(
        (c[0] if isinstance(c, tuple) else c if isinstance(c, int) else 0 for c in candidates),
        default=0,
    )
    if begin == depth - 1:
        raise ValueError(
            f"Layer {begin} is the last block: no later one is left to read the effect from. "
            f"Choose an earlier layer, or give a judge and prompts."
        )
    return max(int(0.9 * depth), begin + 1)


def _split(contrast: Contrast, seed: int) -> tuple[Contrast, Contrast]:
    try:
        return contrast.split(FIT_SHARE, seed)
    except ValueError as error:
        groups = len({*contrast.groups[0], *contrast.groups[1]})
        raise ValueError(
            f"Tuning holds out a third of the groups and needs both classes on both sides; this "
            f"contrast has {groups} group{'s' if groups != 1 else ''}: {error}"
        ) from None


def _asked(
    tokenizer: Any,
    held_out: Contrast,
    prompts: Sequence[Prompt] | None,
    judge: "Judge | None",
    seed: int,
) -> list[tuple[list[int], Prompt | None]]:
    """Neutral prompts, as token ids and, where there is one, as it was given."""
    examples = [*held_out.positive, *held_out.negative]
    given = [e.prompt for e in examples if e.prompt is not None] if prompts is None else prompts
    if given:
        # Rows of one prompt ask it once.
        unique = {
            tuple(encode(tokenizer, prompt, None, held_out.template)): prompt for prompt in given
        }
        asked: list[tuple[list[int], Prompt | None]] = [
            (list(ids), prompt) for ids, prompt in unique.items()
        ]
        return asked if prompts is not None else _some(asked, PROMPTS, seed)
    if prompts is not None:
        raise ValueError("prompts is empty; give at least one, or leave it out.")
    if judge is not None:
        raise ValueError(
            f"The judge {judge.name} scores answers, and this contrast has no prompts to answer: "
            f"give prompts=[...]."
        )
    both = [text for text, _ in as_texts(tokenizer, examples, held_out.template)]
    return [(text.prompt, None) for text in _some(both, PROMPTS, seed)]


# ---- what is learnt and measured


def _learn(
    model: nn.Module,
    tokenizer: Any,
    part: Contrast,
    method: Method,
    candidates: list[Layer],
    block: int | None,
    seed: int,
    stages: "_Stages",
    cache: CacheChoice,
) -> tuple[list[AnySteering], Probe | None]:
    """The method fitted at each candidate, and the probe of `block`, from one reading."""
    to_rank = [] if candidates else middle_layers(model)
    to_read = list(dict.fromkeys([*to_rank, *([] if block is None else [block])]))
    data: dict[int, Reading] = {}
    if to_read:
        # The last token, whatever the method reads: that is what the probe reads later.
        data = read(model, tokenizer, part, to_read, RANKING, stages.of("read"), cache=cache)
    quality: dict[int, BinaryQuality] = {}
    if to_rank:
        rows = {index: (data[index].positive, data[index].negative) for index in to_rank}
        quality = rank_layers(rows, part.groups, seed, stages.of("rank"))
        candidates = sorted(sorted(quality, key=lambda i: quality[i].log_loss)[:CANDIDATES])
    fitted = _fit_each(
        model, tokenizer, part, method, candidates, data, quality, seed, stages, cache
    )
    if block is None:
        return fitted, None
    probed = data[block]
    samples = CAA().check(probed.positive, probed.negative, part.groups)  # all check alike
    return fitted, fit_probe(block, samples, seed)


def _measure(
    model: nn.Module,
    tokenizer: Any,
    steerings: list[AnySteering],
    readout: ReadOut,
    prompts: list[list[int]],
    seed: int,
    stages: "_Stages",
) -> tuple[list[Trial], dict[str, Any]]:
    """A trial of each steering (the first moves nothing), and what the receipt says of it."""
    raw = readout.raw(steerings, stages.count("effect", len(steerings) * readout.size))
    texts = continuations(model, tokenizer, prompts, NEW_TOKENS)
    count = stages.count("damage", len(steerings) * len(texts))
    damages = measure(model, texts, steerings, vocabulary=len(tokenizer), progress=count)
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


def _fit_each(
    model: nn.Module,
    tokenizer: Any,
    part: Contrast,
    method: Method,
    candidates: Sequence[Layer],
    data: dict[int, Reading],
    quality: dict[int, BinaryQuality],
    seed: int,
    stages: "_Stages",
    cache: CacheChoice,
) -> list[AnySteering]:
    """The method fitted at each candidate; single layers are read in one pass, if not yet read."""
    progress = stages.of("fit")
    single = [candidate for candidate in candidates if isinstance(candidate, int)]
    if method.site == "residual" and len(single) == len(candidates):
        as_read = method.tokens == "last" and not method.reads_prompts and set(single) <= set(data)
        if as_read:
            readings = {index: data[index] for index in single}
        else:
            readings = read(model, tokenizer, part, single, method, progress, cache=cache)
        return [*fit_readings(model, tokenizer, part, method, readings, seed, progress, quality)]
    return [
        fit(
            model,
            tokenizer,
            part,
            method,
            layer=candidate,
            seed=seed,
            progress=progress,
            cache=cache,
        )
        for candidate in candidates
    ]


def _probed(
    model: nn.Module, tokenizer: Any, probe: Probe, held_out: Contrast, seed: int
) -> ProbeReadOut:
    negatives, positives = (
        _some(as_texts(tokenizer, examples, held_out.template), TEXTS, seed)
        for examples in (held_out.negative, held_out.positive)
    )
    return ProbeReadOut(
        model,
        probe,
        [text for text, _ in negatives],
        [text for text, _ in positives],
        [example.group for _, example in negatives],
    )


def _judged(
    model: nn.Module,
    tokenizer: Any,
    judge: "Judge",
    asked: Sequence[tuple[list[int], Prompt | None]],
    held_out: Contrast,
    seed: int,
) -> JudgeReadOut:
    return JudgeReadOut(
        TransformersBackend(model, tokenizer, template=held_out.template),
        judge,
        [prompt for _, prompt in asked if prompt is not None],
        _some(held_out.positive, TEXTS, seed),
        _some(held_out.negative, TEXTS, seed),
    )


def _with_receipt(steering: AnySteering, receipt: dict[str, Any]) -> AnySteering:
    """The steering with `receipts["tune"]`; of several layers, the first carries it."""
    if isinstance(steering, LayeredSteering):
        first, *others = steering.parts
        return replace(
            steering, parts=(replace(first, receipts=first.receipts | {"tune": receipt}), *others)
        )
    return replace(steering, receipts=steering.receipts | {"tune": receipt})


def _sizes(part: Contrast) -> dict[str, int]:
    return {
        "groups": len({*part.groups[0], *part.groups[1]}),
        "positive": len(part.positive),
        "negative": len(part.negative),
    }


def _some(items: Sequence[T], count: int, seed: int) -> list[T]:
    """At most `count` of them, drawn without replacement, in their order."""
    if len(items) <= count:
        return list(items)
    drawn = np.random.default_rng(seed).permutation(len(items))[:count]
    return [items[i] for i in sorted(drawn)]


class _Stages:
    """One progress of (done, 1000) out of stages that count in units of their own."""

    def __init__(self, progress: Progress | None):
        self._progress = progress
        self._reached = 0

    def of(self, stage: str) -> Progress:
        names = list(_STAGES)
        start = sum(_STAGES[name] for name in names[: names.index(stage)])

        def progress(done: int, total: int) -> None:
            now = round(10 * (start + _STAGES[stage] * done / max(total, 1)))
            # A stage of several parts begins again with each; time does not run back.
            self._reached = max(self._reached, now)
            if self._progress is not None:
                self._progress(self._reached, 1000)

        return progress

    def count(self, stage: str, total: int) -> Callable[[int], None]:
        """The same, told how many are new instead of how many are done."""
        progress, done = self.of(stage), 0

        def more(new: int) -> None:
            nonlocal done
            done += new
            progress(done, total)

        return more
