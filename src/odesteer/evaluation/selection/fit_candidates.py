"""Fits of a search at each candidate, and the probe that reads effects."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from odesteer.backends import TransformersBackend
from odesteer.data import Contrast
from odesteer.evaluation.scoring.replay import as_texts
from odesteer.evaluation.selection.effect import JudgeEffect, Probe, ProbeEffect, fit_probe
from odesteer.evaluation.selection.progress import StagedProgress
from odesteer.evaluation.selection.settings import TEXTS, Layer, Prompt, some
from odesteer.extraction.cache.store import CacheChoice
from odesteer.fitting import (
    RANKING_METHOD,
    ActivationSet,
    fit,
    fit_readings,
    middle_layers,
    rank_layers,
    read,
)
from odesteer.methods import CAA, Method
from odesteer.steering import Steering
from odesteer.steering.calibration import BinaryQuality

if TYPE_CHECKING:
    from odesteer.evaluation.judges import Judge

CANDIDATES = 3


def learn(
    model: nn.Module,
    tokenizer: Any,
    part: Contrast,
    method: Method,
    candidates: list[Layer],
    block: int | None,
    seed: int,
    stages: "StagedProgress",
    cache: CacheChoice,
) -> tuple[list[Steering], Probe | None]:
    """The method fitted at each candidate, and the probe of `block`, from one reading."""
    to_rank = [] if candidates else middle_layers(model)
    to_read = list(dict.fromkeys([*to_rank, *([] if block is None else [block])]))
    data: dict[int, ActivationSet] = {}
    if to_read:
        # The last token, whatever the method reads: that is what the probe reads later.
        data = read(model, tokenizer, part, to_read, RANKING_METHOD, stages.of("read"), cache=cache)
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


def _fit_each(
    model: nn.Module,
    tokenizer: Any,
    part: Contrast,
    method: Method,
    candidates: Sequence[Layer],
    data: dict[int, ActivationSet],
    quality: dict[int, BinaryQuality],
    seed: int,
    stages: "StagedProgress",
    cache: CacheChoice,
) -> list[Steering]:
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


def by_probe(
    model: nn.Module, tokenizer: Any, probe: Probe, held_out: Contrast, seed: int
) -> ProbeEffect:
    negatives, positives = (
        some(as_texts(tokenizer, examples, held_out.template), TEXTS, seed)
        for examples in (held_out.negative, held_out.positive)
    )
    return ProbeEffect(
        model,
        probe,
        [text for text, _ in negatives],
        [text for text, _ in positives],
        [example.group for _, example in negatives],
    )


def by_judge(
    model: nn.Module,
    tokenizer: Any,
    judge: "Judge",
    asked: Sequence[tuple[list[int], Prompt | None]],
    held_out: Contrast,
    seed: int,
) -> JudgeEffect:
    return JudgeEffect(
        TransformersBackend(model, tokenizer, template=held_out.template),
        judge,
        [prompt for _, prompt in asked if prompt is not None],
        some(held_out.positive, TEXTS, seed),
        some(held_out.negative, TEXTS, seed),
    )
