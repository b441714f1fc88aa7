"""RE-Control learns a value and climbs it."""

import pytest
import torch
from sklearn.metrics import roc_auc_score
from tests.helpers.models import two_gaussians
from torch import Tensor

from odesteer import Angle, REControl, Steering

D = 12
QUICK = REControl(lr=1e-3, min_steps=200)


def rank_correlation(x: Tensor, y: Tensor) -> float:
    ranks = torch.stack([x.argsort().argsort(), y.argsort().argsort()]).double()
    return float(torch.corrcoef(ranks)[0, 1])


def rewarded(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Rows, and a reward from 1 to 5 that no linear function tells."""
    rows = torch.randn(n, D, generator=torch.Generator().manual_seed(seed))
    return rows, 1.0 + 4.0 * torch.sigmoid(2.0 * rows[:, 0] + 1.5 * rows[:, 1].abs() - 1.0)


@pytest.fixture(scope="module")
def labelled() -> Steering:
    return QUICK.fit(*two_gaussians(200, 200, D, seed=1))


@pytest.fixture(scope="module")
def graded() -> Steering:
    rows, reward = rewarded(800, seed=0)
    high = reward > reward.median()
    return REControl(lr=1e-3).fit(
        rows[high], rows[~high], rewards=(reward[high], reward[~high]), calibrate=False
    )


def test_the_field_is_the_gradient_that_autograd_finds(labelled: Steering) -> None:
    a = torch.cat(two_gaussians(50, 50, D, seed=2)).requires_grad_(True)
    (gradient,) = torch.autograd.grad(labelled.field.value(a).sum(), a)
    torch.testing.assert_close(labelled.field(a.detach()), gradient)
    # As long as it is: it is no unit vector.
    assert gradient.norm(dim=-1).std() > 1e-3


def test_labels_make_the_value_a_log_density_ratio(labelled: Steering) -> None:
    positive, negative = two_gaussians(500, 500, D, seed=3)
    rows = torch.cat([positive, negative])
    # Of N(centre + shift, I) and N(centre - shift, I): 2 shift.(a - centre).
    shift = 0.8 * torch.nn.functional.normalize(torch.cos(torch.arange(D).float()), dim=0)
    truth = 2 * (rows - torch.linspace(-1.0, 2.0, D)) @ shift
    assert rank_correlation(labelled.field.value(rows), truth) > 0.9
    assert roc_auc_score([1] * 500 + [0] * 500, labelled.log_odds(rows)) > 0.83  # best: 0.871


def test_the_size_of_the_classes_is_taken_out_of_the_log_odds() -> None:
    positive, negative = two_gaussians(300, 60, D, seed=4)
    value = QUICK.fit(positive, negative, calibrate=False).field.value
    fresh = two_gaussians(500, 500, D, seed=5)
    assert (value(fresh[0]).mean() + value(fresh[1]).mean()).abs() < 0.6  # log(300/60) = 1.6


def test_graded_rewards_are_ordered_and_in_their_own_units(graded: Steering) -> None:
    rows, reward = rewarded(500, seed=6)
    predicted = graded.field.value(rows) + float(reward.mean())
    assert rank_correlation(predicted, reward) > 0.93
    assert (predicted - reward).abs().mean() < 0.35
    # Labels alone know less of it.
    assert (predicted - reward).abs().mean() < 0.5 * reward.std()


def test_thirty_steps_raise_the_reward(graded: Steering) -> None:
    def reward(a: Tensor) -> Tensor:
        return 1.0 + 4.0 * torch.sigmoid(2.0 * a[:, 0] + 1.5 * a[:, 1].abs() - 1.0)

    rows, before = rewarded(500, seed=7)
    assert graded.steps == 30
    up, down = (graded.with_strength(Angle(x))(rows) for x in (0.4, -0.4))
    assert reward(up).mean() > before.mean() + 0.5
    assert reward(down).mean() < before.mean() - 0.5


def test_eps_is_where_the_region_begins() -> None:
    rows, reward = rewarded(200, seed=8)
    data = {"rewards": (reward[:100], reward[100:]), "calibrate": False}
    low = QUICK.fit(rows[:100], rows[100:], **data)
    high = REControl(lr=1e-3, min_steps=200, eps=4.0).fit(rows[:100], rows[100:], **data)
    difference = low.field.value(rows) - high.field.value(rows)
    # None is the mean of the rewards it is fitted on.
    torch.testing.assert_close(
        difference, torch.full_like(difference, 4.0 - float(reward.mean())), atol=0.1, rtol=0
    )
    torch.testing.assert_close(low.field(rows), high.field(rows))


def test_the_strength_is_steps_times_their_size(labelled: Steering) -> None:
    a = two_gaussians(20, 20, D, seed=9)[1]
    expected = a.clone()
    for _ in range(30):
        expected = expected + 0.05 * labelled.field(expected)
    torch.testing.assert_close(labelled.with_strength(30 * 0.05)(a), expected)


def test_training_stops_when_held_out_rows_gain_nothing() -> None:
    seen: list[tuple[int, int]] = []
    noise = torch.randn(2, 60, D, generator=torch.Generator().manual_seed(0))
    REControl(lr=3e-3, patience=5).fit(
        *noise, calibrate=False, progress=lambda *now: seen.append(now)
    )
    total = seen[0][1]
    assert len(seen) < total / 2
    assert seen[-1] == (total, total)


def test_the_same_seed_gives_the_same_tensors_whatever_the_global_state() -> None:
    data = two_gaussians(40, 40)
    before = torch.get_rng_state()
    one = QUICK.fit(*data, calibrate=False).field.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(99)
        two = QUICK.fit(*data, calibrate=False).field.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_graded_value_is_saved_and_loaded(graded: Steering, tmp_path) -> None:
    rows, _ = rewarded(20, seed=10)
    loaded = Steering.from_pretrained(graded.save_pretrained(tmp_path / "it"))
    assert torch.equal(loaded(rows), graded(rows))


def test_rewards_that_are_all_equal_are_refused() -> None:
    data, same = two_gaussians(40, 40), torch.full((40,), 2.0)
    with pytest.raises(ValueError, match="re-control needs rewards that differ; all 64 are 2"):
        QUICK.fit(*data, rewards=(same, same))
