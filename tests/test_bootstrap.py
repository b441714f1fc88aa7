"""Bootstrap intervals cover what they should, also for values that come in groups."""

import numpy as np
import pytest

from odesteer.bootstrap import interval


def test_the_interval_is_as_wide_as_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(size=400)
    mean, low, high, n = interval(values)
    assert (mean, n) == (values.mean(), 400)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_copies_of_one_value_in_a_group_count_once() -> None:
    values = np.random.default_rng(0).normal(size=50)
    alone = interval(values)
    copied = interval(np.repeat(values, 7), groups=np.repeat(np.arange(50), 7))
    assert copied[:3] == pytest.approx(alone[:3], abs=0.03)  # other draws
    assert copied.n == 350
    naive = interval(np.repeat(values, 7))
    assert naive.high - naive.low < 0.5 * (copied.high - copied.low)


def test_groups_of_different_sizes_keep_the_mean_of_the_values() -> None:
    values = np.array([0.0, 0.0, 0.0, 1.0])
    mean, low, high, _ = interval(values, groups=["a", "a", "a", "b"])
    assert (mean, low, high) == (0.25, 0.0, 1.0)
