"""Detector: the probability that a text shows what a steering steers towards.

A steering's calibrated barrier is evaluated where the steering was fitted, at its layer and its
tokens, without being attached.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from odesteer.data import Contrast, Example
from odesteer.data.arguments import forgiving
from odesteer.data.contrast import example
from odesteer.evaluation.statistics import Detection, Threshold, detection, threshold
from odesteer.extraction.cache import CacheChoice
from odesteer.extraction.extract import Progress, extract
from odesteer.extraction.tokenize import check_tokens, token_rows
from odesteer.models.hooks.attach import check_fits
from odesteer.steering import LayerSteering, Steering


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of texts under a steering's barrier.

    Attributes:
        examples: the texts, n.
        log_odds: [n], the calibrated barrier at even priors; above 0 the positive class is more
            likely.
        probability: [n], P(positive) at even priors.
        labels: 1, 0, or None where there is none, n.
        layer: the block that was read.
        tokens: which tokens of each text were read, see `odesteer.extraction.tokenize`.
        truncated: how many texts were longer than the model's context.
        fitted_on: whether these are the very texts that the steering was fitted on, so that no
            number about them is a held-out one.
        radius: [n], no change of a text's activation by less takes its P past 0.5
            (`LayerSteering.radius`); None where no bound of the barrier is known.
        uncertified: why there is no radius; None where there is one.
    """

    examples: tuple[Example, ...]
    log_odds: np.ndarray
    probability: np.ndarray
    labels: tuple[int | None, ...]
    layer: int
    tokens: str
    truncated: int = 0
    fitted_on: bool = False
    radius: np.ndarray | None = None
    uncertified: str | None = None

    def ranked(self) -> list[int]:
        """Return the indices of the texts, the likeliest first."""
        return [int(i) for i in np.argsort(-self.log_odds, kind="stable")]

    def quality(self, seed: int = 0) -> Detection:
        """Compute AUC, log-loss and calibration error on labelled texts, with intervals.

        They measure the detector only on held-out texts: not those that it was fitted or chosen
        on.

        Raises:
            ValueError: if there are not both labels.
        """
        return detection(*self._labelled(), seed)

    def threshold(self, false_positives: float = 0.05, seed: int = 0) -> Threshold:
        """Find the threshold for a false-positive rate, and the share of positives above it.

        Raises:
            ValueError: if there are not both labels, or too few negatives for that rate.
        """
        log_odds, labels, groups = self._labelled()
        return threshold(log_odds, labels, false_positives, groups, seed)

    def _labelled(self) -> tuple[np.ndarray, np.ndarray, list[str]]:
        known = [i for i, label in enumerate(self.labels) if label is not None]
        labels = np.array([self.labels[i] for i in known], dtype=float)
        return self.log_odds[known], labels, [self.examples[i].group for i in known]


@forgiving()
def score(
    model: nn.Module,
    tokenizer: Any,
    steering: Steering,
    texts: Contrast | Sequence[Any],
    *,
    labels: Sequence[int | None] | None = None,
    layer: int | None = None,
    template: str = "auto",
    tokens: str | None = None,
    max_tokens: int | None = None,
    progress: Progress | None = None,
    cache: CacheChoice = False,
    check: str = "architecture",
) -> Scores:
    """Score how likely each text shows what the steering steers towards.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        steering: with a barrier; `~steering` detects the opposite.
        texts: a contrast, which has labels (its positives come first), or texts, chat messages,
            or (prompt, response) rows.
        labels: 1, 0 or None of each text, where they are known and `texts` is no contrast.
        layer: the one to read, of a steering of several layers.
        template: of texts that are no contrast, see `odesteer.models.chat_template`; the one
            that the steering was fitted with.
        tokens: which tokens are read, see `odesteer.extraction.tokenize`; None: those that it
            was fitted on.
        max_tokens, progress, cache: see `odesteer.activations`.
        check: how closely the model must match the one that it was fitted on, see
            `odesteer.models.hooks.attach`.

    Raises:
        ValueError: if there is no text, no barrier, a steering of several layers without `layer`,
            or a model that does not fit.
    """
    if isinstance(texts, str):
        raise ValueError(f"score reads a list of texts; got the text {texts!r:.80}.")
    part = _at(steering, layer)
    block = check_fits(part, model, check)
    _ = part.barrier  # raises where there is none, before anything slow
    chosen = check_tokens(str(part.receipts.get("tokens", "last")) if tokens is None else tokens)
    known_labels: Sequence[int | None]
    if isinstance(texts, Contrast):
        if labels is not None:
            raise ValueError("A contrast has its own labels; leave `labels` out.")
        examples, template = texts.positive + texts.negative, texts.template
        known_labels = [1] * len(texts.positive) + [0] * len(texts.negative)
    else:
        examples = tuple(_example(row, i) for i, row in enumerate(texts))
        known_labels = [None] * len(examples) if labels is None else labels
    if not examples:
        raise ValueError("There is no text to score.")
    if len(known_labels) != len(examples):
        raise ValueError(f"labels has one entry a text, {len(examples)}; got {len(known_labels)}.")
    if strange := {*known_labels} - {0, 1, None}:
        raise ValueError(f"A label is 1, 0 or None; got {strange.pop()!r}.")
    # Positives first, as a contrast is read, so that what was read of one is found in the cache.
    order = sorted(range(len(examples)), key=lambda i: {1: 0, 0: 1, None: 2}[known_labels[i]])
    ordered = [examples[i] for i in order]
    rows, starts, truncated = token_rows(model, tokenizer, ordered, template, chosen, max_tokens)
    a = extract(
        model,
        rows,
        [block],
        tokens=chosen,
        site=part.site,  # type: ignore[arg-type]
        starts=starts,
        progress=progress,
        cache=cache,
    )[0]
    place_of = np.argsort(order)
    radius, uncertified = None, None
    try:
        radius = part.radius(a).double().numpy()[place_of]
    except ValueError as error:
        uncertified = str(error)
    return Scores(
        examples,
        part.log_odds(a).double().numpy()[place_of],
        part.probability(a).double().numpy()[place_of],
        tuple(known_labels),
        block,
        chosen,
        truncated,
        _fitted_on(part, examples, known_labels, template),
        radius,
        uncertified,
    )


def _at(steering: Steering, layer: int | None) -> LayerSteering:
    """Return the part whose barrier is read."""
    if len(steering.parts) == 1:
        if layer is not None and layer != steering.layer:
            raise ValueError(f"This steering is of layer {steering.layer}, not {layer}.")
        return steering.only
    layers = ", ".join(str(part.layer) for part in steering.parts)
    parts = [part for part in steering.parts if part.layer == layer]
    if len(parts) != 1:
        raise ValueError(
            f"This steering has a barrier at each of the layers {layers}, and a text has one score:"
            f" choose one of them, layer={steering.first_layer} say (--layer on the command line)."
        )
    return parts[0]


def _example(row: Any, index: int) -> Example:
    """Make an example; rows with one prompt form a group, and a text is its own group."""
    if isinstance(row, Example):
        return row
    parsed = example(row, f"({index})")
    return parsed if parsed.prompt is None else replace(parsed, group=str(parsed.prompt))


def _fitted_on(
    steering: LayerSteering,
    examples: tuple[Example, ...],
    labels: Sequence[int | None],
    template: str,
) -> bool:
    classes = [
        tuple(e for e, label in zip(examples, labels, strict=True) if label == wanted)
        for wanted in (1, 0)
    ]
    data = steering.receipts.get("data")
    if not all(classes) or not isinstance(data, Mapping):
        return False
    return Contrast(classes[0], classes[1], template).sha256 == data.get("sha256")
