"""Stratified samples: rows spread evenly over a score.

Scores of real texts crowd at the ends. To learn from (or be judged on) weak as well as strong
cases, as many rows are taken of every bin of the score as it has, up to an equal share.
"""

from collections.abc import Sequence

import numpy as np

BINS = 10  # of width 0.1, over scores from 0 to 1


def evenly(
    scores: Sequence[float] | np.ndarray, size: int, seed: int, bins: int = BINS
) -> list[int]:
    """Places of `size` rows (or of all, if there are fewer), in order.

    Rows are drawn at random within their bin, one of every bin in turn, until there are enough:
    a bin that has too few leaves its share to the others.

    Args:
        scores: [n], from 0 to 1.
        size: how many rows.
        seed: of the draw.
        bins: of equal width over [0, 1]; 1 is in the last.

    Raises:
        ValueError: for a score outside of [0, 1].
    """
    values = np.asarray(scores, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("Only scores from 0 to 1 are spread over bins.")
    bin_of = np.minimum((values * bins).astype(int), bins - 1)
    shuffled = np.random.default_rng(seed).permutation(len(values))
    turn = np.empty(len(values), dtype=int)  # which of its bin's rows it is
    for one in range(bins):
        own = shuffled[bin_of[shuffled] == one]
        turn[own] = np.arange(len(own))
    # Ties between bins in the last turn fall to chance, not to the lower bin.
    order = shuffled[np.argsort(turn[shuffled], kind="stable")]
    return sorted(order[:size].tolist())
