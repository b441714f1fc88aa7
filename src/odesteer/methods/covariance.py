"""What is the covariance of a class with fewer rows than dimensions?"""

import torch
from sklearn.covariance import ledoit_wolf
from torch import Tensor


def shrunk_covariance(rows: Tensor) -> Tensor:
    """The Ledoit-Wolf covariance [d, d] of rows [n, d]: symmetric positive definite.

    (1 - s) S + s tr(S)/d I with the s that is closest to the true covariance in expectation.

    Source: Ledoit and Wolf, "A Well-Conditioned Estimator for Large-Dimensional Covariance
    Matrices", Journal of Multivariate Analysis 88, 2004.
    """
    covariance, _ = ledoit_wolf(rows.cpu().numpy())
    covariance = torch.as_tensor(covariance).to(rows)
    # Rows that hardly differ (or one row alone) shrink to nothing: keep it invertible.
    floor = max(1e-6 * float(rows.square().mean()), torch.finfo(rows.dtype).tiny ** 0.5)
    if float(covariance.diagonal().mean()) > floor:
        return covariance
    return covariance + floor * torch.eye(len(covariance)).to(rows)


def class_covariances(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Shrunk covariances of both classes; a class of one row takes the pooled one."""
    pooled = None
    result = []
    for rows in (positive, negative):
        if len(rows) < 2 and pooled is None:
            centred = [part - part.mean(dim=0) for part in (positive, negative)]
            pooled = shrunk_covariance(torch.cat(centred))
        result.append(shrunk_covariance(rows) if len(rows) > 1 else pooled)
    return result[0], result[1]
