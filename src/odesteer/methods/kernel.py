"""Which logistic regression with a polynomial kernel separates the classes best?

    log p(positive | y) / p(negative | y) = sum_i w_i (gamma x_i . y + c0)^2 + b

The kernel is exact: an eigendecomposition of the Gram matrix of the landmarks (all rows,
or a random subset when there are many: the Nystroem method) gives features whose inner
products are the kernel, and an ordinary regularised logistic regression on them is the
kernel machine.

Source: Zhu and Hastie, "Kernel Logistic Regression and the Import Vector Machine", 2005,
https://doi.org/10.1198/106186005X25619; Williams and Seeger, "Using the Nystroem Method to
Speed Up Kernel Machines", NeurIPS 2000.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor


class KernelMachine(NamedTuple):
    """sum_i weights_i (gamma support_i . y + c0)^2 + bias."""

    support: Tensor
    weights: Tensor
    bias: float


class KernelFeatures(NamedTuple):
    """Features whose inner products are the kernel on the landmarks' span."""

    features: Tensor  # [n, l]
    to_weights: Tensor  # [landmarks, l]: a weight on features -> weights on landmarks
    landmarks: Tensor  # [landmarks, d]


def kernel_features(
    rows: Tensor, gamma: float, c0: float, landmarks: int, seed: int
) -> KernelFeatures:
    """Features of unit rows [n, d]; exact on all rows when n <= landmarks."""
    chosen = rows
    if len(rows) > landmarks:
        generator = torch.Generator().manual_seed(seed)
        index = torch.randperm(len(rows), generator=generator)[:landmarks]
        chosen = rows[index.to(rows.device)]
    gram = (gamma * chosen @ chosen.mT + c0).square()
    eigenvalues, vectors = torch.linalg.eigh(gram)
    kept = eigenvalues > 1e-10 * eigenvalues[-1]
    to_weights = vectors[:, kept] / eigenvalues[kept].sqrt()
    cross = gram if chosen is rows else (gamma * rows @ chosen.mT + c0).square()
    return KernelFeatures(cross @ to_weights, to_weights, chosen)


def fit_machine(
    rows: Tensor, labels: np.ndarray, gamma: float, C: float, c0: float, landmarks: int, seed: int
) -> KernelMachine:
    """The kernel machine of unit rows [n, d] and labels 0 or 1."""
    features = kernel_features(rows, gamma, c0, landmarks, seed)
    model = _regression(C).fit(features.features.cpu().numpy(), labels)
    weights = features.to_weights @ torch.as_tensor(model.coef_[0]).to(rows)
    return KernelMachine(features.landmarks, weights, float(model.intercept_[0]))


def cross_validated_log_odds(
    rows: Tensor,
    labels: np.ndarray,
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
    gammas: Sequence[float],
    Cs: Sequence[float],
    c0: float,
    landmarks: int,
    seed: int,
) -> np.ndarray:
    """Held-out log-odds of every row for every gamma and C: [gammas, Cs, n].

    Features are made once for each gamma and shared by the folds: they depend on the rows
    and not on the labels, and a kernel machine's solution lies in the span of its own rows.
    """
    log_odds = np.full((len(gammas), len(Cs), len(rows)), np.nan)
    for i, gamma in enumerate(gammas):
        features = kernel_features(rows, gamma, c0, landmarks, seed).features.cpu().numpy()
        for fit, test in folds:
            model = _regression(1.0, warm_start=True)
            for j, C in enumerate(Cs):
                model.set_params(C=C).fit(features[fit], labels[fit])
                log_odds[i, j, test] = model.decision_function(features[test])
    return log_odds


def _regression(C: float, warm_start: bool = False) -> LogisticRegression:
    return LogisticRegression(C=C, tol=1e-5, max_iter=1000, warm_start=warm_start)
