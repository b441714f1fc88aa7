"""Calibration of a barrier as a probability on held-out rows."""

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
    """Score log-odds by AUC, log-loss and expected calibration error.

    Args:
        log_odds: [n].
        labels: [n].
        balanced: weigh both classes the same, as fits log-odds at even priors.
    """
    labels = np.asarray(labels, dtype=float)
    weights = _weights(labels, balanced)
    losses = np.logaddexp(0.0, np.where(labels == 1, -log_odds, log_odds))
    return BinaryQuality(
        auc=round(float(roc_auc_score(labels, log_odds)), 4),
        log_loss=round(float(np.average(losses, weights=weights)), 4),
        ece=round(_expected_calibration_error(reliability(log_odds, labels, balanced)), 4),
        n=len(labels),
    )


class Bin(NamedTuple):
    """Bin of rows with about the same predicted probability.

    `probability`: the mean that was predicted. `frequency`: the share of positives among them.
    `share`: how much of all rows they weigh. `n`: rows.
    """

    probability: float
    frequency: float
    share: float
    n: int


def reliability(
    log_odds: np.ndarray, labels: np.ndarray, balanced: bool = False, bins: int = 10
) -> list[Bin]:
    """Bin rows by predicted probability, in bins of equal count.

    Args:
        log_odds: [n].
        labels: [n], 0 and 1.
        balanced: weigh both classes the same, as fits log-odds at even priors.
        bins: at most so many.

    Source: Nguyen and O'Connor, "Posterior Calibration and Exploratory Analysis for Natural
    Language Processing Models", EMNLP 2015, for bins of equal count.
    """
    labels = np.asarray(labels, dtype=float)
    weights = _weights(labels, balanced)
    probability = 1.0 / (1.0 + np.exp(-np.clip(log_odds, -500, 500)))
    order = np.argsort(probability, kind="stable")
    return [
        Bin(
            probability=float(np.average(probability[part], weights=weights[part])),
            frequency=float(np.average(labels[part], weights=weights[part])),
            share=float(weights[part].sum() / weights.sum()),
            n=len(part),
        )
        for part in np.array_split(order, min(bins, len(order)))
    ]


def _weights(labels: np.ndarray, balanced: bool) -> np.ndarray:
    if not balanced:
        return np.ones_like(labels)
    return np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1.0 - labels.mean()))


def _expected_calibration_error(bins: list[Bin]) -> float:
    """Sum (share of rows) * |mean probability - share of positives| over the bins.

    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning",
    AAAI 2015.
    """
    return sum(each.share * abs(each.probability - each.frequency) for each in bins)
