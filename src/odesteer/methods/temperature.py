"""Temperature scaling of a log density ratio.

One number t makes t h as honest as it can be: the temperature 1/t that minimises the
cross-entropy of held-out rows. It changes no decision and no direction of steering.

Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
https://arxiv.org/abs/1706.04599
"""

from typing import NamedTuple

import numpy as np


class Sharpness(NamedTuple):
    """`factor` t, and the mean cross-entropy of t h in nats (0.693 knows nothing)."""

    factor: float
    log_loss: float


def best_sharpness(values: np.ndarray, labels: np.ndarray) -> Sharpness:
    """The t in 1/1000..1000 with the least cross-entropy, both classes weighing the same.

    Args:
        values: log density ratios h of held-out rows, [n].
        labels: 1 or 0, [n], some of each.
    """
    weights = np.where(labels == 1, 0.5 / labels.mean(), 0.5 / (1.0 - labels.mean()))
    # The loss is convex in t, so its slope rises: bisection, in the logarithm of t.
    low, high = -np.log(1000.0), np.log(1000.0)
    for _ in range(50):
        middle = (low + high) / 2
        chance = 0.5 * (1.0 + np.tanh(np.exp(middle) * values / 2))
        if np.average(values * (chance - labels), weights=weights) > 0:
            high = middle
        else:
            low = middle
    factor = float(np.exp((low + high) / 2))
    wrong = factor * np.where(labels == 1, -values, values)
    return Sharpness(factor, float(np.average(np.logaddexp(0.0, wrong), weights=weights)))
