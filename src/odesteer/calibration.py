"""How good is a barrier as a probability, on rows it has not seen?"""

from typing import NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score


class BinaryQuality(NamedTuple):
    """Held-out quality of log-odds.

    `auc`: chance that a positive ranks above a negative. `log_loss`: mean -log P(label), in
    nats; chance is 0.693 for even classes. `ece`: expected calibration error over ten bins
    of equal count. `n`: rows.
    """

    auc: float
    log_loss: float
    ece: float
    n: int


def binary_quality(
    log_odds: np.ndarray, labels: np.ndarray, balanced: bool = False
) -> BinaryQuality:
    """AUC, log-loss and expected calibration error of log-odds against labels 0 and 1.

    Args:
        log_odds: [n].
        labels: [n].
        balanced: weigh both classes the same, as fits log-odds at even priors.
    """
    labels = np.asarray(labels, dtype=float)
    weights = np.ones_like(labels)
    if balanced:
        weights = np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1.0 - labels.mean()))
    losses = np.logaddexp(0.0, np.where(labels == 1, -log_odds, log_odds))
    return BinaryQuality(
        auc=round(float(roc_auc_score(labels, log_odds)), 4),
        log_loss=round(float(np.average(losses, weights=weights)), 4),
        ece=round(_expected_calibration_error(log_odds, labels, weights), 4),
        n=len(labels),
    )


def _expected_calibration_error(
    log_odds: np.ndarray, labels: np.ndarray, weights: np.ndarray, bins: int = 10
) -> float:
    """sum over bins of (share of rows) * |mean probability - share of positives|.

    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning",
    AAAI 2015, with bins of equal count (Nguyen and O'Connor, 2015).
    """
    probability = 1.0 / (1.0 + np.exp(-np.clip(log_odds, -500, 500)))
    order = np.argsort(probability, kind="stable")
    total, error = weights.sum(), 0.0
    for part in np.array_split(order, min(bins, len(order))):
        gap = np.average(probability[part], weights=weights[part])
        gap -= np.average(labels[part], weights=weights[part])
        error += weights[part].sum() / total * abs(gap)
    return float(error)
