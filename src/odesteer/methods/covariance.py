"""What is the covariance of a class with fewer rows than dimensions?"""

import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor

from odesteer.ode import Whitening


def shrunk_covariance(rows: Tensor, shrinkage: float | None = None) -> Tensor:
    """The shrunk covariance [d, d] of rows [n, d]: symmetric positive definite.

    (1 - s) S + s tr(S)/d I with the s that is closest to the true covariance in expectation
    (Ledoit-Wolf), or the one given.

    Source: Ledoit and Wolf, "A Well-Conditioned Estimator for Large-Dimensional Covariance
    Matrices", Journal of Multivariate Analysis 88, 2004.
    """
    if shrinkage is None:
        covariance = torch.as_tensor(ledoit_wolf(rows.cpu().numpy())[0]).to(rows)
    else:
        sample = rows.mT.cov(correction=0).reshape(rows.shape[1], -1)
        covariance = (1.0 - shrinkage) * sample
        covariance.diagonal().add_(shrinkage * sample.diagonal().mean())
    # Rows that hardly differ (or one row alone) shrink to nothing: keep it invertible.
    floor = max(1e-6 * float(rows.square().mean()), torch.finfo(rows.dtype).tiny ** 0.5)
    if float(covariance.diagonal().mean()) > floor:
        return covariance
    return covariance + floor * torch.eye(len(covariance)).to(rows)


def pooled_covariance(positive: Tensor, negative: Tensor, shrinkage: float | None = None) -> Tensor:
    """The shrunk covariance about each class's own mean; I where no row differs from it."""
    centred = torch.cat([rows - rows.mean(dim=0) for rows in (positive, negative)])
    if not bool(centred.any()):
        return torch.eye(centred.shape[1]).to(centred)
    return shrunk_covariance(centred, shrinkage)


def class_covariances(
    positive: Tensor, negative: Tensor, shrinkage: float | None = None
) -> tuple[Tensor, Tensor]:
    """Shrunk covariances of both classes; a class of one or two rows takes the pooled one.

    Two rows lie on a line, and Ledoit-Wolf sees no noise in it: it would not shrink at all.
    """
    above, below = (
        shrunk_covariance(rows, shrinkage)
        if len(rows) > 2
        else pooled_covariance(positive, negative, shrinkage)
        for rows in (positive, negative)
    )
    return above, below


def pooled_whitening(rows: Tensor, p: float, rank: int) -> Whitening:
    """y = Sigma^-p (a - m) of rows of both classes: their mean and shrunk covariance.

    It pools the classes, so that it carries nothing of the labels into a fold.
    """
    centre = rows.mean(dim=0)
    if p == 0.0:
        return Whitening(centre)
    return Whitening.from_covariance(centre, shrunk_covariance(rows), p, rank)
