"""A target with a coverage stops where held-out rows show that the stated share is wanted.

The share is at even priors, of fresh rows at and above the level. Rows here are their own h.
`python -m tests.steering.test_coverage 20000` prints the shares over so many random splits.
"""

import json
import math
import sys

import numpy as np
import pytest
import torch

from odesteer import CAA, Angle, Calibration, PerRow, Steering, Target
from odesteer.ode import GradientField, LinearBarrier
from odesteer.steering.coverage import Coverage, Levels


def gaussians(rng, n):
    return rng.normal(1.0, 1.0, n), rng.normal(-1.0, 1.0, n)


def skewed(rng, n):
    """A tenth of the unwanted rows look most wanted, which no sigmoid of h can say."""
    wanted, unwanted = gaussians(rng, n)
    return wanted, np.where(rng.random(n) < 0.1, rng.normal(2.5, 0.3, n), unwanted)


def normal_tail(t, mean, deviation=1.0):
    return 0.5 * math.erfc((t - mean) / deviation / math.sqrt(2.0))


def share_of(kind, t):
    """The exact share of wanted rows among those at and above t, at even priors."""
    wanted, unwanted = normal_tail(t, 1.0), normal_tail(t, -1.0)
    if kind is skewed:
        unwanted = 0.9 * unwanted + 0.1 * normal_tail(t, 2.5, 0.3)
    return wanted / (wanted + unwanted)


def shares(kind, n, coverage, splits):
    """The true share above the conformal level in every random split, 1 where it refuses."""
    rng, found = np.random.default_rng(0), []
    for _ in range(splits):
        values, labels = np.concatenate(kind(rng, n)), np.repeat([1, 0], n)
        try:
            found.append(share_of(kind, Coverage.of(values, labels).toward.at(coverage)))
        except ValueError:
            found.append(1.0)
    return np.array(found)


def test_the_level_is_not_higher_than_the_rows_need():
    found = shares(gaussians, 200, 0.9, 500)
    assert 0.9 <= found.mean() < 0.92 and not (found == 1.0).any()


def test_the_way_back_has_levels_of_its_own():
    rng = np.random.default_rng(0)
    values, labels = np.concatenate(skewed(rng, 100)), np.repeat([1, 0], 100)
    coverage = Coverage.of(values, labels)
    assert coverage.reversed() == Coverage.of(-values, 1 - labels)


@pytest.mark.parametrize(("coverage", "needed"), [(0.5, 1), (0.75, 3), (0.9, 9), (0.95, 19)])
def test_too_few_rows_are_refused_with_the_number_that_it_takes(coverage, needed):
    # 1 / (1 - coverage) - 1, as of any conformal prediction.
    labels = np.repeat([1, 0], needed)
    apart = Coverage.of(np.where(labels == 1, 1.0, -1.0), labels)
    assert apart.toward.at(coverage) == 1.0
    if needed > 1:
        few = Coverage.of(np.array([1.0] * (needed - 1) + [-1.0] * (needed - 1)), labels[1:-1])
        with pytest.raises(ValueError, match=f"at least {needed} held-out rows .* {needed - 1} "):
            few.toward.at(coverage)


def test_a_barrier_that_tells_nothing_apart_is_refused_with_its_highest_share():
    rng = np.random.default_rng(0)
    same = Coverage.of(rng.normal(size=200), np.repeat([1, 0], 100))
    with pytest.raises(ValueError, match=r"No level .* coverage 0\.99|takes at least 99"):
        same.toward.at(0.99)
    with pytest.raises(ValueError, match=r"No level .* the highest is 0\.\d+"):
        same.toward.at(0.95)


# ---- in a steering


def rows(seed, n=60):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, generator=generator)


FITTED = CAA().fit(rows(0) + 0.7, rows(1) - 0.7, layer=1)
ASKED = Target(0.5, budget=50.0, coverage=0.9)
LEVEL = FITTED.only.coverage.toward.at(0.9)


def test_rows_stop_at_the_higher_of_both_levels_and_those_above_keep_every_bit():
    a = rows(2)
    moved = FITTED.with_strength(ASKED)(a)
    h = FITTED.field.value(a)
    there = h >= LEVEL
    assert torch.equal(moved[there], a[there]) and there.any() and not there.all()
    assert (FITTED.field.value(moved) >= LEVEL - 1e-5).all()
    assert (FITTED.field.value(moved)[~there] <= LEVEL + 1e-3).all()
    high = Target(0.999, 50.0)
    both = Target(0.999, 50.0, coverage=0.9)
    assert torch.equal(FITTED.with_strength(both)(a), FITTED.with_strength(high)(a))


def test_each_row_of_a_batch_may_have_its_own_coverage():
    a = rows(2, 4)
    doses = [ASKED, Target(0.5, 50.0), Angle(0.1), Target(0.99, 50.0, coverage=0.8)]
    together = FITTED.with_strength(PerRow(doses))
    apart = torch.cat([FITTED.with_strength(d)(a[i : i + 1]) for i, d in enumerate(doses)])
    assert torch.allclose(together(a), apart, atol=1e-3)
    assert torch.equal(FITTED(a, dose=PerRow(doses)), together(a))


def test_the_other_way_stops_at_its_own_level():
    a = rows(2)
    away = ~FITTED
    moved = away.with_strength(ASKED)(a)
    assert (away.field.value(moved) >= away.only.coverage.toward.at(0.9) - 1e-5).all()


def test_it_comes_back_from_a_file_which_without_levels_says_fit_again(tmp_path):
    path = FITTED.with_strength(ASKED).save_pretrained(tmp_path)
    loaded = Steering.from_pretrained(path)
    assert loaded.dose == ASKED and loaded.only.coverage == FITTED.only.coverage
    assert torch.equal(loaded(rows(2)), FITTED.with_strength(ASKED)(rows(2)))
    config = json.loads((path / "steering_config.json").read_text())
    del config["coverage"]
    (path / "steering_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="fit it again"):
        Steering.from_pretrained(path)
    config["dose"] = {"type": "time", "amount": 1.0}
    (path / "steering_config.json").write_text(json.dumps(config))
    older = Steering.from_pretrained(path)
    assert older.only.coverage is None
    with pytest.raises(ValueError, match="fit it again"):
        older.with_strength(ASKED)


@pytest.mark.parametrize(
    "tree",
    [
        None,
        [],
        [{}, {}],
        [{"h": [1.0], "share": [], "wanted": 1, "unwanted": 1}] * 2,
        [{"h": [float("inf")], "share": [0.5], "wanted": 1, "unwanted": 1}] * 2,
        [{"h": [2.0, 1.0], "share": [0.5, 0.6], "wanted": 1, "unwanted": 1}] * 2,
        [{"h": [1.0], "share": [0.5], "wanted": -1, "unwanted": 1}] * 2,
        [{"h": [0.1] * 101, "share": [0.5] * 101, "wanted": 1, "unwanted": 1}] * 2,
    ],
)
def test_levels_of_a_stranger_are_checked(tree):
    with pytest.raises(ValueError, match="levels"):
        Coverage.from_json(tree)


def test_a_composition_and_an_uncalibrated_fit_have_no_levels():
    for steering in (FITTED & FITTED, CAA().fit(rows(0), rows(1), calibrate=False)):
        with pytest.raises(ValueError, match="no levels of held-out rows"):
            steering.with_strength(ASKED)


def test_a_level_that_no_float32_probability_says_is_refused_where_it_has_to_be_one():
    levels = Levels((20.0,), (0.95,), 50, 50)
    steering = Steering(
        GradientField(LinearBarrier(torch.tensor([1.0, 0.0]))),
        Target(0.9, 30.0, coverage=0.9),
        calibration=Calibration(1.0, 0.0),
        coverage=Coverage(levels, levels),
    )
    assert steering(torch.zeros(1, 2))[0, 0] == pytest.approx(20.0, abs=1e-3)
    with pytest.raises(ValueError, match="log-odds of 20"):
        steering.with_strength(PerRow([steering.dose, 0.0]))


@pytest.mark.parametrize("coverage", [0.0, 1.0, -1.0, float("nan")])
def test_a_coverage_is_a_share(coverage):
    with pytest.raises(ValueError, match="coverage"):
        Target(0.9, 1.0, coverage)


def main(splits: int) -> None:
    print("rows, coverage | mean share above the level | of splits not refused | refused")
    for kind in (gaussians, skewed):
        for n, coverage in ((20, 0.9), (40, 0.75), (200, 0.8), (200, 0.9), (1000, 0.9)):
            found = shares(kind, n, coverage, splits)
            refused = found == 1.0
            others = found[~refused].mean()
            print(f"{kind.__name__} {n}, {coverage} | {found.mean():.3f} | ", end="")
            print(f"{others:.3f} | {refused.mean():.1%}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
