"""Natural gradient of the margin, through the model.

    v(a) = u / ||u||,   u = ((1 - s) F + s tr(F)/d I)^-1 g

g is the gradient of the margin: what a shift of the steered tokens adds to the log-likelihood of
wanted texts, minus what it adds to that of unwanted ones. F is the Fisher information of the shift,
so that 1/2 u^T F u is the KL divergence from the unsteered model, and u is the direction of the
largest margin for each nat of KL. Both come from a backward pass
(`odesteer.extraction.sensitivities`); nothing is trained. With s = 1 the direction is g itself.

Sources: Amari, "Natural Gradient Works Efficiently in Learning", Neural Computation 10, 1998; for
directions chosen by the model downstream, Cao et al., "Personalized Steering of Large Language
Models: Versatile Steering Vectors Through Bi-directional Preference Optimization", NeurIPS 2024,
https://arxiv.org/abs/2406.00045, which trains what is a single linear solve here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from odesteer.methods.base import Method, MethodInfo
from odesteer.methods.samples import Samples
from odesteer.ode import Angle, ConstantField, Dose, LinearBarrier, VectorField

# Shrinkages that are compared on held-out examples; a tie goes to the first, the simplest.
GRID = (1.0, 0.75, 0.5, 0.25, 0.1, 0.03)


class Metric(NamedTuple):
    """Eigenvectors of F that its scores span.

    F = V diag(values) V^T, and 0 on the complement of the span.

    Attributes:
        values: [r].
        vectors: V, [d, r].
        mean: tr(F)/d, [].
    """

    values: Tensor
    vectors: Tensor
    mean: Tensor

    @staticmethod
    def of(scores: Tensor, tokens: float) -> "Metric":
        """Decompose scores^T scores / tokens for scores [n, d], in the smaller of n and d."""
        n, d = scores.shape
        scaled = scores / tokens**0.5
        if n < d:
            values, left = torch.linalg.eigh(scaled @ scaled.mT)
            kept = values > 1e-10 * values.amax().clamp_min(torch.finfo(values.dtype).tiny)
            values, left = values[kept], left[:, kept]
            vectors = scaled.mT @ left / values.sqrt()
        else:
            values, vectors = torch.linalg.eigh(scaled.mT @ scaled)
        return Metric(values, vectors, scaled.square().sum() / d)

    def solve(self, g: Tensor, shrinkage: float) -> Tensor:
        """Return ((1 - s) F + s tr(F)/d I)^-1 g up to scale, [d]."""
        values, ridge = (1.0 - shrinkage) * self.values, shrinkage * self.mean
        if ridge <= 0:
            return g
        # ridge times the inverse: g, less what the metric shrinks.
        return g - self.vectors @ (self.vectors.mT @ g * (values / (values + ridge)))


@dataclass(frozen=True)
class NaturalGradient(Method):
    """Direction of the largest margin for each nat of KL, found by one backward pass.

    It needs `sensitivities`, so it is fitted with `odesteer.fit` on a model. Its barrier is the
    calibrated projection on the direction.

    Args:
        shrinkage: s in (0, 1], of the metric towards a multiple of the identity; 1 is the plain
            gradient of the margin. None: the one of `GRID` with the largest held-out margin at
            equal KL.
    """

    name: ClassVar[str] = "natural-gradient"
    default_strength: ClassVar[Dose | float] = Angle(0.1)
    default_kl: ClassVar[str | None] = "strong"
    tokens: ClassVar[str] = "response"
    reads_sensitivities: ClassVar[bool] = True
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="((1 - s) F + s tr(F)/d I)^-1 g, normalised; g, F by a backward pass",
        barrier="projection on the direction, linear",
        exact="straight line, one Euler step",
        strength="path length",
        source="Amari, Neural Computation 1998; Cao et al., NeurIPS 2024, arXiv 2406.00045",
    )

    shrinkage: float | None = None

    def __post_init__(self) -> None:
        if self.shrinkage is not None and not 0.0 < self.shrinkage <= 1.0:
            raise ValueError(
                f"natural-gradient needs 0 < shrinkage <= 1 or None; got {self.shrinkage}."
            )

    def select_hyperparameters(self, samples: Samples) -> "NaturalGradient":
        if self.shrinkage is not None:
            return self
        margins = held_out_margins(samples, GRID)
        best = GRID[0] if margins is None else GRID[int(np.argmax(margins))]
        return replace(self, shrinkage=best)

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        return self.fit_samples(Samples(positive, negative))

    def fit_samples(self, samples: Samples, progress: object = None) -> VectorField:
        g, scores, tokens = _gradient(samples)
        shrinkage = GRID[0] if self.shrinkage is None else self.shrinkage
        u = Metric.of(scores, tokens).solve(g, shrinkage)
        if not bool(u.norm() > 0):
            raise ValueError(
                "The log-likelihood of these texts does not depend on this layer, so that there is "
                "no direction to steer; give texts that differ, or another layer."
            )
        direction = u / u.norm()
        middle = (samples.positive.mean(dim=0) + samples.negative.mean(dim=0)) / 2
        return ConstantField(direction, LinearBarrier(direction, -direction @ middle))


def held_out_margins(
    samples: Samples, grid: Sequence[float] = GRID, seed: int = 0
) -> list[float] | None:
    """Return the held-out margin at a KL of 1/2 nat a token for each shrinkage, to second order.

    The direction is fitted on four folds, and its margin and KL are predicted by g and F of the
    fifth; at another KL the margin is sqrt(2 KL) times as large. None if nothing can be held out.
    """
    margins, divergences = np.zeros(len(grid)), np.zeros(len(grid))
    folds = samples.folds(5, seed)
    for fit, test in folds:
        g, scores, tokens = _gradient(samples.subset(fit))
        metric = Metric.of(scores, tokens)
        g_test, scores_test, tokens_test = _gradient(samples.subset(test))
        for i, shrinkage in enumerate(grid):
            u = metric.solve(g, shrinkage)
            u = u / u.norm().clamp_min(torch.finfo(u.dtype).tiny)
            margins[i] += float(g_test @ u) / len(folds)
            divergences[i] += float((scores_test @ u).square().sum() / tokens_test) / len(folds)
    if not folds:
        return None
    smallest = np.finfo(np.float64).tiny
    return [*(margins / np.sqrt(np.maximum(divergences, smallest))).tolist()]


def _gradient(samples: Samples) -> tuple[Tensor, Tensor, float]:
    """Return g [d], the scores [n, d], and the number of predicted tokens behind them."""
    if samples.margins is None or samples.scores is None or samples.predicted is None:
        raise ValueError(
            "natural-gradient learns from how the model's words depend on the layer, not from "
            "activations alone: fit it with odesteer.fit(model, tokenizer, contrast, ...), or give "
            "sensitivities=."
        )
    n, draws = len(samples.positive), samples.scores.shape[1]
    g = samples.margins[:n].mean(dim=0) - samples.margins[n:].mean(dim=0)
    return g, samples.scores.flatten(0, 1), float(samples.predicted.sum()) * draws
