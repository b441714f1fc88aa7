"""Shared estimators: covariance, linear probe, temperature.

Temperature scaling multiplies a log density ratio h by the t that minimises the cross-entropy of
held-out rows; the temperature is 1/t. It changes no decision and no direction of steering.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
https://arxiv.org/abs/1706.04599
"""

from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from odesteer.methods.samples import Samples
from odesteer.ode import LinearBarrier, Whitening
from odesteer.ode.whitening import largest_eigenpairs

# Below this many rows or dimensions a full eigendecomposition is cheaper than block Lanczos.
DENSE = 1024


def shrunk_covariance(rows: Tensor, shrinkage: float | None = None) -> Tensor:
    """Estimate the shrunk covariance [d, d] of rows [n, d], symmetric positive definite.

    (1 - s) S + s tr(S)/d I with the s that is closest to the true covariance in expectation
    (Ledoit-Wolf), unless `shrinkage` is given.
    """
    centred = rows - rows.mean(dim=0)
    covariance = centred.mT @ centred / len(rows)
    if shrinkage is None:
        shrinkage = ledoit_wolf(centred, covariance.square().sum())
    mean = covariance.diagonal().mean()
    covariance = (1.0 - shrinkage) * covariance
    covariance.diagonal().add_(shrinkage * mean)
    # Rows that hardly differ, or a single row, give almost 0: keep the matrix invertible.
    floor = max(1e-6 * float(rows.square().mean()), torch.finfo(rows.dtype).tiny ** 0.5)
    if float(covariance.diagonal().mean()) > floor:
        return covariance
    return covariance + floor * torch.eye(len(covariance)).to(rows)


def ledoit_wolf(centred: Tensor, squared: Tensor) -> float:
    """Compute the shrinkage s in 0..1 of centred rows [n, d], given ||S||^2 = sum_ij S_ij^2.

        s = min(b, e) / e,  e = (||S||^2 - tr(S)^2/d) / d,
        b = (sum_k ||x_k||^4 / n - ||S||^2) / (n d)

    Source: Ledoit and Wolf, "A Well-Conditioned Estimator for Large-Dimensional Covariance
    Matrices", Journal of Multivariate Analysis 88, 2004.
    """
    n, d = centred.shape
    lengths = torch.linalg.vector_norm(centred, dim=1).double().square()
    total, spread = float(squared), float(lengths.sum() / n)
    excess = (total - spread**2 / d) / d
    noise = min((float(lengths.square().sum()) / n - total) / (n * d), excess)
    # In one dimension there is no other target to shrink to.
    return 0.0 if d == 1 or noise <= 0.0 else noise / excess


def pooled_covariance(positive: Tensor, negative: Tensor, shrinkage: float | None = None) -> Tensor:
    """Estimate the shrunk covariance about the class means; I if no row differs from its mean."""
    centred = torch.cat([rows - rows.mean(dim=0) for rows in (positive, negative)])
    if not bool(centred.any()):
        return torch.eye(centred.shape[1]).to(centred)
    return shrunk_covariance(centred, shrinkage)


def class_covariances(
    positive: Tensor, negative: Tensor, shrinkage: float | None = None
) -> tuple[Tensor, Tensor]:
    """Estimate both shrunk covariances; the pooled one for a class of one or two rows.

    Two rows lie on a line, in which Ledoit-Wolf finds no noise: it would not shrink at all.
    """
    covariance_positive, covariance_negative = (
        shrunk_covariance(rows, shrinkage)
        if len(rows) > 2
        else pooled_covariance(positive, negative, shrinkage)
        for rows in (positive, negative)
    )
    return covariance_positive, covariance_negative


def pooled_whitening(rows: Tensor, p: float, rank: int) -> Whitening:
    """Whiten rows of both classes, y = Sigma^-p (a - m), by their mean and shrunk covariance.

    The classes are pooled, so that no labels leak into a fold.
    """
    centre = rows.mean(dim=0)
    return whitening_about(centre, rows - centre, p, rank)


def whitening_about(centre: Tensor, centred: Tensor, p: float, rank: int) -> Whitening:
    """Compute `pooled_whitening` of centred rows [n, d].

    Shrinkage changes eigenvalues, not eigenvectors, so the smaller of S [d, d] and the inner
    products of the rows [n, n] suffices: it gives the largest variances, and the mean of the
    others by the trace.
    """
    n, d = centred.shape
    rank = min(rank, d - 1)
    if p == 0.0 or rank <= 0:
        return Whitening(centre)
    wide = n < d
    small = _products(centred if wide else centred.mT) / n
    mean = small.diagonal().sum() / d
    if float(mean) == 0.0:
        return Whitening(centre)
    shrinkage = ledoit_wolf(centred, torch.linalg.vector_norm(small, dim=1).double().square().sum())
    values, vectors = _largest(small, min(rank, n - 1 if wide else rank))
    del small
    if wide:
        # Directions without variance belong to the rest.
        nonzero = values > torch.finfo(values.dtype).eps * n * values.max()
        values, vectors = values[nonzero], centred.mT @ vectors[:, nonzero]
        vectors = torch.linalg.qr(vectors).Q
    if len(values) == 0:
        return Whitening(centre)
    rest = ((d * mean - values.sum()) / (d - len(values))).clamp_min(0.0)
    shrunk, others = ((1.0 - shrinkage) * x + shrinkage * mean for x in (values, rest))
    directions = vectors.contiguous().to(centre)
    return Whitening.from_spectrum(centre, shrunk.to(centre), directions, others.to(centre), p)


def _products(factor: Tensor) -> Tensor:
    """Compute F F^T of a factor F, each product once."""
    size = len(factor)
    out = factor.new_empty(size, size)
    step = max(256, size // 8)
    for low in range(0, size, step):
        part = factor[low : low + step] @ factor[low:].mT
        out[low : low + step, low:], out[low:, low : low + step] = part, part.mT
    return out


def _largest(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest eigenpairs of a positive semi-definite matrix."""
    pairs = None
    if len(matrix) > DENSE:
        pairs = largest_eigenpairs(lambda block: matrix @ block, matrix, count)
    if pairs is None:
        values, vectors = torch.linalg.eigh(matrix)
        return values[len(values) - count :], vectors[:, len(values) - count :]
    return pairs


def linear_probe(samples: Samples, C: float = 1.0) -> LinearBarrier:
    """Fit theta . a + b + log(n-/n+), the log density ratio of logistic regression.

    Args:
        samples: the two classes.
        C: inverse L2 regularisation.
    """
    # On raw activations, whose scales differ by orders of magnitude, Newton's method converges in
    # a few steps; lbfgs has not after 1,000.
    model = LogisticRegression(C=C, solver="newton-cholesky", max_iter=100)
    model.fit(samples.rows.cpu().numpy(), samples.labels)
    theta = torch.as_tensor(model.coef_[0]).to(samples.positive)
    return LinearBarrier(theta, float(model.intercept_[0]) - samples.log_prior_odds)


class Sharpness(NamedTuple):
    """Factor t, and the mean cross-entropy of t h in nats (0.693 is chance)."""

    factor: float
    log_loss: float


def best_sharpness(values: np.ndarray, labels: np.ndarray) -> Sharpness:
    """Find the t in 1/1000..1000 with the least cross-entropy, with equal class weights.

    Args:
        values: log density ratios h of held-out rows, [n].
        labels: 1 or 0, [n]; both must occur.
    """
    weights = np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1.0 - labels.mean()))
    # The loss is convex in t, so its slope increases: bisection in log t.
    low, high = -np.log(1000.0), np.log(1000.0)
    for _ in range(50):
        middle = (low + high) / 2
        probability = 0.5 * (1.0 + np.tanh(np.exp(middle) * values / 2))
        if np.average(values * (probability - labels), weights=weights) > 0:
            high = middle
        else:
            low = middle
    factor = float(np.exp((low + high) / 2))
    wrong = factor * np.where(labels == 1, -values, values)
    return Sharpness(factor, float(np.average(np.logaddexp(0.0, wrong), weights=weights)))
