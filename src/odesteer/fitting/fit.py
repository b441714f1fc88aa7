"""Fit of a steering to a contrast, the ranking of layers, and the dose of a KL budget.

Methods that learn from activations rank layers by held-out log-loss; methods that learn through the
model (`Method.reads_sensitivities`) by the held-out margin at equal KL, and the best few are
compared by what they do to held-out texts.
"""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from odesteer.common.catalogue import LAST_AND_GENERATED
from odesteer.data import Contrast
from odesteer.data.arguments import forgiving
from odesteer.data.confounds import ends_apart
from odesteer.extraction.cache import CacheChoice
from odesteer.extraction.extract import Progress, extract, read_texts
from odesteer.extraction.packing import PromptWithAnswers
from odesteer.extraction.sensitivities import Sensitivity, sensitivities, split_texts
from odesteer.extraction.tokenize import Tokens, check_tokens, texts
from odesteer.fitting.dose_search import KL, find_kl_dose
from odesteer.fitting.layer_choice import (
    RANKING_METHOD,
    TOO_FEW,
    best_layer,
    middle_layers,
    rank_layers,
)
from odesteer.fitting.train import train
from odesteer.methods import Method, find_method
from odesteer.methods.natural_gradient import NaturalGradient, held_out_margins
from odesteer.methods.trained import TrainedODESteer
from odesteer.models.compatibility import describe_model
from odesteer.models.layers import find_layers, head_width, layer_index
from odesteer.ode import Dose, as_dose
from odesteer.steering import Steering
from odesteer.steering.calibration import BinaryQuality

# Layers, of the best by prediction, that are compared by what they do to held-out texts.
CONFIRMED = 3


class ActivationSet(NamedTuple):
    """Activations that a method learns from at one layer.

    Attributes:
        positive: [n, d].
        negative: [m, d].
        prompts: [n, d], where the method asks for it.
        tokens: which tokens of each text were read, see `odesteer.extraction.tokenize`.
        truncated: how many texts were longer than the model's context.
        sensitivities: of both classes, where the method asks for them.
    """

    positive: Tensor
    negative: Tensor
    prompts: Tensor | None = None
    tokens: str = "last"
    truncated: int = 0
    sensitivities: tuple[Sensitivity, Sensitivity] | None = None

    def select(self, above: Sequence[int], below: Sequence[int]) -> "ActivationSet":
        """Return the rows [positives, negatives] with these indices as positive and negative."""
        rows = torch.cat([self.positive, self.negative])
        both = None
        if self.sensitivities is not None:
            joined = [torch.cat(each) for each in zip(*self.sensitivities, strict=True)]
            first, second = (
                Sensitivity(*(each[list(chosen)] for each in joined)) for chosen in (above, below)
            )
            both = first, second
        n = len(self.positive)
        # A prompt belongs to its pair, whichever of the two is positive.
        prompts = None if self.prompts is None else self.prompts[[i % n for i in above]]
        return self._replace(
            positive=rows[list(above)],
            negative=rows[list(below)],
            prompts=prompts,
            sensitivities=both,
        )


@forgiving(layers="layer")
def fit(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast | Any,
    method: str | Method = "odesteer",
    layer: int | str | Sequence[int] = "auto",
    strength: Dose | KL | float | None = None,
    seed: int = 0,
    incremental: bool | None = None,
    progress: Progress | None = None,
    *,
    tokens: Tokens | None = None,
    max_tokens: int | None = None,
    positions: str | None = None,
    cache: CacheChoice = False,
) -> Steering:
    """Learn a steering for a model from a contrast.

        steering = ods.fit(model, tokenizer, positives, negatives)  # two lists of texts
        steering = ods.fit(model, tokenizer, "pairs.jsonl", method="caa", layer=14)

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        contrast: what to steer towards and away from, or what `Contrast.of` makes one of; two
            lists in a row are one. For a method that needs pairs, each group's i-th positive
            beside its i-th negative.
        method: a name in `odesteer.METHODS`, or a method with your hyperparameters.
        layer: a 0-based block index, negative from the end, or "auto": the middle block
            with the smallest held-out log-loss (for methods that steer attention heads, all
            blocks; for methods that learn through the model, the largest held-out margin).
            Several indices give a steering of several layers; `layers` is the same.
        strength: the dose, at each layer, or a `KL` budget for all of them; None: the method's own,
            which for ODESteer and the methods that learn through the model is `KL("strong")`.
            Whether the text bears it, `odesteer.assess` tells.
        seed: of the folds.
        incremental: of several layers, let the later ones learn from negatives that the
            earlier ones have moved; None: as the method's source does.
        progress: called with (texts read, texts in all) and, by methods that train, with
            (steps done, steps in all).
        tokens: which tokens of each text are read, see `odesteer.extraction.tokenize`; None: those
            of the method, but all of the response where its last one tells the classes apart by
            itself (a full stop at the end of one class, say), and for ODESteer at a KL.
        max_tokens: longer texts lose their beginning; None: the model's context.
        positions: which tokens the steering acts on unless others are asked for, see
            `odesteer.models.hooks.positions`. None: "all" where a KL sets the dose, which steers
            further at the same fluency (docs/tuning.md), but "last+generated" for methods that
            read the prompt's end, and for doses that are given.
        cache: True or a folder keeps the activations on disk, see `odesteer.activations`, and what
            a training has reached, so that one that was interrupted continues.

    Raises:
        ValueError: for an unknown method, a layer the model does not have, or a contrast
            the method cannot learn from.
    """
    contrast = Contrast.of(contrast)
    if not isinstance(method, str | Method):
        raise ValueError(f"The method is a name or a Method; got {type(method).__name__}.")
    if strength is not None and not isinstance(strength, KL):
        as_dose(strength)  # refuses what is none before anything is computed
    if len(contrast.positive) == len(contrast.negative) == 1:
        warnings.warn(
            "One pair of texts says little of what it shows: nothing can be held out to check what "
            "is learnt. Give ten pairs or more.",
            stacklevel=3,
        )
    chosen = find_method(method)() if isinstance(method, str) else method
    if chosen.site == "heads":
        chosen = chosen.for_model(head_width(model))
    if chosen.needs_pairs and not contrast.is_paired:
        contrast = contrast.paired()
    if strength is None and takes_kl(chosen, contrast, tokenizer):
        strength = KL(str(chosen.default_kl))
    if isinstance(strength, KL) and chosen.default_kl is not None:
        tokens = tokens or "response"
    if positions is None:
        whole = isinstance(strength, KL) and not chosen.reads_prompts
        positions = "all" if whole else LAST_AND_GENERATED
    if tokens is None and chosen.tokens == "last" and ends_apart(contrast):
        tokens = "response"
        warnings.warn(
            "The ends of the texts tell the classes apart, so all tokens of the responses are read "
            'instead of the last one, which would learn the ends alone; tokens="last" reads it.',
            stacklevel=3,
        )
    budget = strength if isinstance(strength, KL) else None
    learn = partial(
        _fit_one,
        contrast=contrast,
        strength=None if isinstance(strength, KL) else strength,
        seed=seed,
        model=describe_model(model, tokenizer),
        positions=positions,
        progress=progress,
    )
    learnt_from = partial(
        read,
        model,
        tokenizer,
        contrast,
        progress=progress,
        tokens=tokens,
        max_tokens=max_tokens,
        positions=positions,
    )
    dosed = partial(
        _with_budget,
        model,
        tokenizer,
        contrast,
        method=chosen,
        budget=budget,
        max_tokens=max_tokens,
        positions=positions,
        seed=seed,
    )
    trained = partial(
        _train_one,
        model,
        tokenizer,
        contrast,
        method=chosen,
        strength=strength,
        max_tokens=max_tokens,
        positions=positions,
        seed=seed,
        progress=progress,
        cache=cache,
    )
    qualities: dict[int, Any] = {}
    if isinstance(layer, str):
        if layer != "auto":
            raise ValueError(f'layer is a block index or "auto"; got {layer!r}.')
        if chosen.site == "heads":
            layer = list(range(len(find_layers(model))))
        elif chosen.reads_sensitivities:
            readings = learnt_from(middle_layers(model), chosen, cache=cache)
            margins = rank_by_margin(readings, contrast, seed)
            best = sorted(margins, key=lambda index: -margins[index])[:CONFIRMED]
            if chosen.trains_through_model:
                return trained(readings[best[0]], best[0], margins)
            fits = {i: dosed([learn(chosen, readings[i], i)], [readings[i]]) for i in sorted(best)}
            if budget is not None:
                measured = {i: fit.receipts["kl"]["margin"] for i, fit in fits.items()}
                best.sort(key=lambda index: -measured[index])
            return _with_margins(fits[best[0]], margins)
        else:
            ranked = learnt_from(middle_layers(model), RANKING_METHOD, cache=cache)
            depth = len(find_layers(model))
            data = {index: (r.positive, r.negative) for index, r in ranked.items()}
            qualities = rank_layers(data, contrast.groups, seed)
            layer = best_layer(qualities, depth)
            if ranked[layer].tokens == (tokens or chosen.tokens) and not chosen.reads_more:
                steering = learn(chosen, ranked[layer], layer, qualities=qualities)
                return dosed([steering], [ranked[layer]])
    indices = sorted(
        {layer_index(model, i) for i in ([layer] if isinstance(layer, int) else layer)}
    )
    if not indices:
        raise ValueError("layer is an empty list; name at least one block.")
    if chosen.trains_through_model and len(indices) > 1:
        raise ValueError(f"{chosen.name} is trained at one layer; got {indices}.")
    readings = learnt_from(indices, chosen, cache=cache)
    if chosen.trains_through_model:
        return trained(readings[indices[0]], indices[0])
    if isinstance(layer, int):
        steering = learn(chosen, readings[indices[0]], indices[0], qualities=qualities)
        return dosed([steering], [readings[indices[0]]])
    methods = chosen.choose_layers(
        {index: (r.positive, r.negative) for index, r in readings.items()}, contrast.groups, seed
    )
    parts: list[Steering] = []
    for index, layer_method in methods.items():
        reading = readings[index]
        if parts and (chosen.incremental if incremental is None else incremental):
            with Steering.of(parts).attach(model, positions="all"):
                moved = learnt_from([index], chosen)[index]
            reading = reading._replace(negative=moved.negative)
        parts.append(learn(layer_method, reading, index))
    return dosed(parts, [readings[index] for index in methods])


def takes_kl(method: Method, contrast: Contrast, tokenizer: Any) -> bool:
    """Whether the default strength of a method is a KL that these texts can measure.

    Of a text of one token none is predicted, so it has no KL.
    """
    if method.default_kl is None or method.reads_sensitivities:
        return method.default_kl is not None
    return min(len(row) for side in contrast.tokens(tokenizer) for row in side) > 1


def _with_budget(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    parts: Sequence[Steering],
    readings: Sequence[ActivationSet],
    *,
    method: Method,
    budget: KL | None,
    max_tokens: int | None,
    positions: str,
    seed: int,
) -> Steering:
    """Join the parts and give them the dose that has the budget, if there is one.

    The dose is measured on a fifth of the groups with a direction fitted on the others, which is
    then taken with the direction fitted on all.
    """
    steering = Steering.of(parts)
    if budget is None:
        return steering
    answered = split_texts(model, tokenizer, contrast, max_tokens)
    held_out = np.arange(len(answered))
    partly = []
    for part, reading in zip(steering.parts, readings, strict=True):
        # Those that the data chose, but for methods inside the method.
        chosen = {k: v for k, v in part.hyperparameters.items() if not isinstance(v, dict)}
        samples = method.check(
            reading.positive,
            reading.negative,
            contrast.groups,
            prompts=reading.prompts,
            sensitivities=reading.sensitivities,
        )
        folds = samples.folds(5, seed)
        field = part.field
        if folds:
            fitted, held_out = folds[0]
            part_of = samples.subset(fitted)
            fitting = replace(method, **chosen).select_hyperparameters(part_of)
            field = fitting.fit_samples(part_of).to(torch.float32)
        partly.append(replace(part, field=field))
    n = len(contrast.positive)
    texts_held_out = [(answered[i], bool(i < n)) for i in sorted(held_out)]
    return _dosed(model, steering, Steering.of(partly), texts_held_out, budget, positions)


def _dosed(
    model: nn.Module,
    steering: Steering,
    measured_on: Steering,
    answered: Sequence[tuple[PromptWithAnswers, bool]],
    budget: KL,
    positions: str,
) -> Steering:
    """Give a steering the dose at which another, fitted without these texts, has the budget."""
    measured = find_kl_dose(model, measured_on, answered, float(budget.budget), positions)
    receipt = {
        "asked": budget.budget,
        "measured": round(measured.kl, 4),
        "margin": round(measured.margin, 4),
        "texts": measured.texts,
        "positions": steering.positions,
    }
    return Steering.of(
        replace(part, strength=measured.dose, receipts={**part.receipts, "kl": receipt})
        for part in steering.parts
    )


def _with_margins(steering: Steering, margins: dict[int, float]) -> Steering:
    """Record the held-out margins of the layers that were compared."""
    layers = {str(index): {"margin": margin} for index, margin in margins.items()}
    return steering.replace(receipts={**steering.receipts, "layers": layers})


def _train_one(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    reading: ActivationSet,
    layer: int,
    margins: dict[int, float] | None = None,
    *,
    method: Method,
    strength: Dose | KL | float | None,
    max_tokens: int | None,
    positions: str,
    seed: int,
    progress: Progress | None,
    cache: CacheChoice = False,
) -> Steering:
    """Train a steering at one layer; its dose is measured on the groups it was not trained on."""
    assert isinstance(method, TrainedODESteer)
    samples = method.check(
        reading.positive,
        reading.negative,
        contrast.groups,
        sensitivities=reading.sensitivities,
    )
    answered = split_texts(model, tokenizer, contrast, max_tokens)
    budget = strength if isinstance(strength, KL) else KL("medium")
    field, held_out, record = train(
        model,
        method,
        samples,
        answered,
        layer,
        float(budget.budget),
        positions,
        seed,
        progress,
        cache,
    )
    values = field.barrier.value(samples.rows.float()).numpy() if field.barrier else None
    steering = method.steering(
        field,
        samples,
        None if values is None else (values, samples.labels),
        layer,
        None if isinstance(strength, KL) else strength,
    )
    epochs = [{key: round(value, 4) for key, value in each._asdict().items()} for each in record]
    receipts = {
        **steering.receipts,
        "tokens": reading.tokens,
        "truncated": reading.truncated,
        "data": _data_of(contrast),
        "epochs": epochs,
    }
    steering = steering.replace(
        model=describe_model(model, tokenizer), receipts=receipts, positions=positions
    )
    if margins is not None:
        steering = _with_margins(steering, margins)
    if not isinstance(strength, KL):
        return steering
    n = len(contrast.positive)
    texts_held_out = [(answered[i], i < n) for i in sorted(held_out)]
    return _dosed(model, steering, steering, texts_held_out, strength, positions)


def _data_of(contrast: Contrast) -> dict[str, Any]:
    return {
        "sha256": contrast.sha256,
        "positive": len(contrast.positive),
        "negative": len(contrast.negative),
    }


def rank_by_margin(
    readings: dict[int, ActivationSet], contrast: Contrast, seed: int = 0
) -> dict[int, float]:
    """Return the held-out margin of each layer at a KL of 1/2 nat a token, to second order.

    Raises:
        ValueError: if there are too few groups to hold any out.
    """
    margins = {}
    for index, reading in readings.items():
        samples = NaturalGradient().check(
            reading.positive,
            reading.negative,
            contrast.groups,
            sensitivities=reading.sensitivities,
        )
        found = held_out_margins(samples, seed=seed)
        if found is None:
            raise ValueError(TOO_FEW)
        margins[index] = round(max(found), 4)
    return margins


def read(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    layers: Sequence[int],
    method: Method,
    progress: Progress | None = None,
    *,
    tokens: Tokens | None = None,
    max_tokens: int | None = None,
    positions: str = LAST_AND_GENERATED,
    cache: CacheChoice = False,
) -> dict[int, ActivationSet]:
    """Extract what `method` learns from at each layer; see `fit`.

    Raises:
        ValueError: for tokens="prompt" where both classes have the same prompts.
    """
    chosen = check_tokens(tokens or method.tokens)
    if method.reads_sensitivities:
        return _read_sensitivities(
            model, tokenizer, contrast, layers, positions, max_tokens, progress, cache
        )
    site: Any = method.site
    tokenized = texts(model, tokenizer, contrast, chosen, max_tokens)
    if chosen == "prompt" and sorted(tokenized.positive) == sorted(tokenized.negative):
        raise ValueError(
            'tokens="prompt" reads the end of each prompt, and both classes have the same prompts: '
            'there is nothing to learn from. Give prompts that differ, or read tokens="last".'
        )
    data = read_texts(model, tokenized, layers, site=site, progress=progress, cache=cache)
    prompts: list[Tensor | None] = [None] * len(data)
    # Bare texts have no prompt to read.
    if method.reads_prompts and all(e.prompt is not None for e in contrast.positive):
        prompts_only = replace(contrast, negative=contrast.positive)
        rows = texts(model, tokenizer, prompts_only, "prompt", max_tokens).positive
        prompts = [*extract(model, rows, list(data), progress=progress, cache=cache)]
    return {
        index: ActivationSet(*rows, at_prompt, chosen, tokenized.truncated)
        for (index, rows), at_prompt in zip(data.items(), prompts, strict=True)
    }


def _read_sensitivities(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    layers: Sequence[int],
    positions: str,
    max_tokens: int | None,
    progress: Progress | None,
    cache: CacheChoice,
) -> dict[int, ActivationSet]:
    both = sensitivities(
        model,
        tokenizer,
        contrast,
        layers,
        positions=positions,
        max_tokens=max_tokens,
        progress=progress,
        cache=cache,
    )
    return {
        index: ActivationSet(
            positive.activations,
            negative.activations,
            tokens="response",
            sensitivities=(positive, negative),
        )
        for index, (positive, negative) in both.items()
    }


def fit_readings(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    method: Method,
    readings: dict[int, ActivationSet],
    seed: int = 0,
    progress: Progress | None = None,
    qualities: dict[int, BinaryQuality] | None = None,
    positions: str = LAST_AND_GENERATED,
) -> list[Steering]:
    """Fit one steering a layer, each by itself, from what `read` returned; see `fit`.

    `qualities`, those of `rank_layers`, go into the receipts.
    """
    if method.trains_through_model:
        return [
            _train_one(
                model,
                tokenizer,
                contrast,
                reading,
                index,
                method=method,
                strength=method.default_strength,
                max_tokens=None,
                positions=positions,
                seed=seed,
                progress=progress,
            )
            for index, reading in readings.items()
        ]
    learn = partial(
        _fit_one,
        contrast=contrast,
        strength=None,
        seed=seed,
        model=describe_model(model, tokenizer),
        qualities=qualities,
        positions=positions,
        progress=progress,
    )
    return [learn(method, reading, index) for index, reading in readings.items()]


def _fit_one(
    method: Method,
    reading: ActivationSet,
    layer: int,
    *,
    contrast: Contrast,
    strength: Dose | float | None,
    seed: int,
    model: dict[str, Any],
    positions: str,
    progress: Progress | None,
    qualities: dict[int, BinaryQuality] | None = None,
) -> Steering:
    rewards = contrast.rewards
    steering = method.fit(
        reading.positive,
        reading.negative,
        layer=layer,
        strength=strength,
        groups=contrast.groups,
        rewards=None if rewards is None else (torch.tensor(rewards[0]), torch.tensor(rewards[1])),
        prompts=reading.prompts,
        sensitivities=reading.sensitivities,
        seed=seed,
        progress=progress,
    )
    receipts = dict(steering.receipts)
    receipts |= {"tokens": reading.tokens, "truncated": reading.truncated}
    receipts["data"] = _data_of(contrast)
    if qualities:
        receipts["layers"] = {str(i): quality._asdict() for i, quality in qualities.items()}
    return steering.replace(model=model, receipts=receipts, positions=positions)
