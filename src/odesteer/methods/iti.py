"""Inference-Time Intervention (ITI), on the residual stream and on attention heads.

v(a) = theta / ||theta||,  optionally times sigma, the spread of theta^ . a
    h(a) = theta . a + b + log(n-/n+)   from logistic regression

Source: Li et al., "Inference-Time Intervention: Eliciting Truthful Answers from a Language
Model", NeurIPS 2023, https://arxiv.org/abs/2306.03341

Inference-Time Intervention (ITI) as published: on single attention heads.

    v(a)_h = sigma_h u_h for the K chosen heads h, 0 for the others
    u_h = (mean+ - mean-) / ||mean+ - mean-||,  sigma_h the spread of the projections u_h . a_h
    h(a) = v . (a - (mean+ + mean-) / 2)

a is the outputs of a layer's attention heads side by side (the input of their output
projection). The heads are those whose logistic probes do best on held-out rows.

Source: Li et al., "Inference-Time Intervention: Eliciting Truthful Answers from a Language
Model", NeurIPS 2023, https://arxiv.org/abs/2306.03341
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from odesteer.methods.base import Method, MethodInfo
from odesteer.methods.estimators import linear_probe
from odesteer.methods.samples import Groups, Samples
from odesteer.ode import ConstantField, Dose, LinearBarrier, VectorField


@dataclass(frozen=True)
class ITI(Method):
    """Moves every activation along the unit normal of a linear probe.

    The original intervenes on single attention heads; this is the form that ODESteer's
    paper compares with: one logistic regression on the layer's output.

    Args:
        C: inverse L2 regularisation of the probe.
        spread: multiply by the standard deviation of the projections on the normal, as the
            original does; then `strength` counts in standard deviations.
    """

    name: ClassVar[str] = "iti"
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="theta / ||theta||, theta the normal of a linear probe",
        barrier="theta.a + b + log(n-/n+), by logistic regression",
        exact="straight line, one Euler step",
        strength="path length; with spread=True, standard deviations along theta",
        source="Li et al., NeurIPS 2023, arXiv 2306.03341",
    )

    C: float = 1.0
    spread: bool = False

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        samples = Samples(positive, negative)
        probe = linear_probe(samples, self.C)
        theta = probe.weight
        direction = theta / theta.norm()
        if self.spread:
            direction = direction * (samples.rows @ direction).std()
        return ConstantField(direction, probe)


@dataclass(frozen=True)
class HeadITI(Method):
    """Moves the heads that know best, each along its own mean difference.

    Fitted at several layers, the heads are chosen over all of them together and layers without
    a chosen head are left out; `odesteer.fit` does that over the whole model.

    Args:
        num_heads: K.
        head_dim: width of one head; None takes the model's, or the whole row as one head.
        heads: the chosen heads; None chooses them.
        probe: move along the probe's weights instead of the mean difference.
        C: inverse L2 regularisation of the probes.
        folds: of their cross-validation.
        seed: of the folds.
    """

    name: ClassVar[str] = "iti-heads"
    default_strength: ClassVar[Dose | float] = 15.0
    site: ClassVar[str] = "heads"
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="sigma_h u_h for each of the K best heads, u_h its unit mean difference",
        barrier="v.a",
        exact="straight line, one Euler step",
        strength="alpha, standard deviations of each head's projection",
        source="Li et al., NeurIPS 2023, arXiv 2306.03341",
    )

    num_heads: int = 48
    head_dim: int | None = None
    heads: tuple[int, ...] | None = None
    probe: bool = False
    C: float = 1.0
    folds: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_heads < 1:
            raise ValueError(f"iti-heads needs num_heads >= 1; got {self.num_heads}.")

    def for_model(self, head_width: int | None) -> "HeadITI":
        return self if self.head_dim is not None else replace(self, head_dim=head_width)

    def choose_layers(
        self, data: dict[int, tuple[Tensor, Tensor]], groups: tuple[Groups, Groups], seed: int
    ) -> "dict[int, Method]":
        scores = {
            (layer, head): accuracy
            for layer, rows in data.items()
            for head, accuracy in enumerate(self._accuracies(self.check(*rows, groups)))
        }
        best = sorted(scores, key=lambda place: -scores[place])[: self.num_heads]
        return {
            layer: replace(self, heads=tuple(sorted(h for at, h in best if at == layer)))
            for layer in data
            if any(at == layer for at, _ in best)
        }

    def select_hyperparameters(self, samples: Samples) -> "HeadITI":
        if self.heads is not None:
            return self
        accuracies = self._accuracies(samples)
        return replace(
            self, heads=tuple(sorted(int(h) for h in np.argsort(-accuracies)[: self.num_heads]))
        )

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        above, below = self._split(positive), self._split(negative)
        direction = above.mean(dim=0) - below.mean(dim=0)  # [heads, head_dim]
        if self.probe:
            labels = Samples(positive, negative).labels
            rows = torch.cat([above, below])
            weights = [
                _regression(self.C).fit(rows[:, head].cpu().numpy(), labels).coef_[0]
                for head in range(rows.shape[1])
            ]
            direction = torch.as_tensor(np.stack(weights)).to(positive)
        norm = direction.norm(dim=-1, keepdim=True)
        unit = torch.where(norm > 0, direction / norm, torch.zeros_like(direction))
        # The spread over both classes, as large as the activations themselves vary.
        projection = (torch.cat([above, below]) * unit).sum(dim=-1)
        velocity = unit * projection.std(dim=0, correction=0).unsqueeze(-1)
        if self.heads is not None:
            chosen = velocity.new_zeros(len(velocity), 1)
            chosen[list(self.heads)] = 1.0
            velocity = velocity * chosen
        velocity = velocity.flatten()
        middle = (positive.mean(dim=0) + negative.mean(dim=0)) / 2
        return ConstantField(velocity, LinearBarrier(velocity, -velocity @ middle))

    def _split(self, rows: Tensor) -> Tensor:
        """[n, d] -> [n, heads, head_dim]."""
        width = rows.shape[1] if self.head_dim is None else self.head_dim
        if rows.shape[1] % width:
            raise ValueError(
                f"iti-heads reads heads of width {width} side by side; {rows.shape[1]} is not a "
                f"multiple of it. Give head_dim, and activations of site 'heads'."
            )
        return rows.reshape(len(rows), -1, width)

    def _accuracies(self, samples: Samples) -> np.ndarray:
        """Held-out accuracy of each head's probe, [heads]; the class means' where none is held."""
        heads = self._split(samples.rows).cpu().numpy()
        labels = samples.labels
        folds = samples.folds(self.folds, self.seed) or [(np.arange(len(labels)),) * 2]
        right = np.zeros((len(labels), heads.shape[1]))
        for fit, test in folds:
            for head in range(heads.shape[1]):
                probe = _regression(self.C).fit(heads[fit, head], labels[fit])
                right[test, head] = probe.predict(heads[test, head]) == labels[test]
        return right.mean(axis=0)


def _regression(C: float) -> LogisticRegression:
    return LogisticRegression(C=C, solver="newton-cholesky", max_iter=100)
