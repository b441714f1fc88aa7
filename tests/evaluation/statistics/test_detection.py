"""A detector's numbers are scikit-learn's, its intervals cover, its threshold keeps its rate."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from odesteer.evaluation.statistics import _statistics, detection, threshold
from odesteer.steering.calibration import binary_quality


def data(n: int, seed: int = 0, shift: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds of two Gaussians one standard deviation wide, `shift` apart: calibrated."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(n) % 3 == 0).astype(float)
    x = generator.normal(size=n) + shift * labels
    return shift * x - shift**2 / 2, labels


def test_one_of_each_row_gives_the_quality_of_the_rows_themselves() -> None:
    log_odds, labels = data(90)
    log_odds = np.round(log_odds, 1)  # with ties
    found = next(_statistics(log_odds, labels, iter([np.ones((1, 90))])))[0]
    expected = binary_quality(log_odds, labels, balanced=True)
    assert found == pytest.approx(expected[:3], abs=1e-4)


def test_a_row_drawn_twice_counts_twice() -> None:
    log_odds, labels = data(30)
    times = np.random.default_rng(1).integers(0, 3, size=(1, 30)).astype(float)
    auc, loss, _ = next(_statistics(log_odds, labels, iter([times])))[0]
    rows = np.repeat(np.arange(30), times[0].astype(int))
    assert auc == pytest.approx(roc_auc_score(labels[rows], log_odds[rows]))
    repeated = binary_quality(log_odds[rows], labels[rows], balanced=True)
    assert loss == pytest.approx(repeated.log_loss, abs=1e-4)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    from statistics import NormalDist

    truth = NormalDist().cdf(1.5 / 2**0.5)
    found = [detection(*data(120, seed), draws=300).auc for seed in range(60)]
    covered = np.mean([one.low <= truth <= one.high for one in found])
    assert covered > 0.85


def test_rows_of_one_group_are_drawn_together() -> None:
    log_odds, labels = data(60)
    twice = np.tile(log_odds, 2), np.tile(labels, 2)
    alone = detection(log_odds, labels)
    grouped = detection(*twice, groups=[*range(60), *range(60)])
    careless = detection(*twice)

    def width(one: object) -> float:
        return one.auc.high - one.auc.low  # type: ignore[attr-defined]

    assert (grouped.groups, grouped.positive, grouped.negative) == (60, 40, 80)
    assert width(grouped) == pytest.approx(width(alone), rel=0.1)
    assert width(careless) < 0.85 * width(grouped)


def test_the_threshold_is_the_lowest_that_keeps_the_rate() -> None:
    log_odds, labels = data(300)
    found = threshold(log_odds, labels, 0.05)
    negatives = log_odds[labels == 0]
    assert found.false_positives.mean == pytest.approx(0.05)
    assert (negatives > np.nextafter(found.log_odds, -np.inf)).mean() > 0.05
    assert found.recall.mean == (log_odds[labels == 1] > found.log_odds).mean()
    assert found.recall.low < found.recall.mean < found.recall.high
    assert found.probability == pytest.approx(1 / (1 + np.exp(-found.log_odds)))


def test_ties_never_break_the_rate() -> None:
    labels = np.array([0.0] * 20 + [1.0] * 5)
    found = threshold(np.zeros(25), labels, 0.1)
    assert (found.false_positives.mean, found.recall.mean) == (0.0, 0.0)


def test_a_share_of_rows_is_not_lost_to_rounding() -> None:
    log_odds, labels = np.arange(25.0), np.array([0.0] * 20 + [1.0] * 5)
    assert threshold(log_odds, labels, 0.15).false_positives.mean == pytest.approx(0.15)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold(*data(60), rate)


def test_too_few_negatives_say_how_many_it_takes() -> None:
    with pytest.raises(ValueError, match=r"20 negatives or more; got 10"):
        threshold(*data(15), 0.05)


def test_one_class_is_no_measure() -> None:
    with pytest.raises(ValueError, match="both classes"):
        detection(np.zeros(3), np.ones(3))
