"""Does HPR learn which side a row is on, and the angle to the other?"""

import math

import pytest
import torch
from tests.helpers.models import two_gaussians
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from odesteer import HPR, Steering
from odesteer.methods.samples import Samples

D, ANGLE = 16, 0.9
QUICK = HPR(lr=2e-3, min_steps=150)


def planted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positives on one side of a plane, and each turned by ANGLE, straight to the other side."""
    generator = torch.Generator().manual_seed(seed)
    axis = normalize(torch.cos(torch.arange(D).float()), dim=0)
    along = torch.randn(n, D, generator=generator)
    along = normalize(along - (along @ axis)[:, None] * axis, dim=-1)
    height = 0.3 + 0.3 * torch.rand(n, 1, generator=generator)
    length = 20 * (1 + torch.rand(n, 1, generator=generator))
    positive = height.sin() * axis + height.cos() * along
    negative = (height - ANGLE).sin() * axis + (height - ANGLE).cos() * along
    return length * positive, length * negative


@pytest.fixture(scope="module")
def learnt() -> Steering:
    return HPR(lr=2e-3, min_steps=150).fit(*planted(300, seed=0))


def turn(a: Tensor, b: Tensor) -> Tensor:
    return torch.acos(cosine_similarity(a, b, dim=-1).clamp(-1, 1))


def test_fresh_negatives_are_turned_by_about_the_angle_to_their_positives(learnt: Steering) -> None:
    positive, negative = planted(300, seed=1)
    angles = turn(negative, learnt(negative))
    assert (angles - ANGLE).abs().mean() < 0.1
    # Where they should be, and not just as far away as they should be.
    assert cosine_similarity(learnt(negative), positive, dim=-1).mean() > 0.98


def test_fresh_positives_stay_and_all_is_positive_afterwards(learnt: Steering) -> None:
    positive, negative = planted(300, seed=2)
    assert (learnt(positive) == positive).all(dim=-1).float().mean() > 0.97
    assert (learnt.log_odds(learnt(negative)) > 0).float().mean() > 0.97
    assert learnt.receipts["held_out"]["auc"] > 0.99


def test_a_negative_strength_undoes_it_for_the_other_class(learnt: Steering) -> None:
    positive, negative = planted(300, seed=3)
    back = learnt.with_strength(-1.0)
    assert (back(negative) == negative).all(dim=-1).float().mean() > 0.97
    assert cosine_similarity(back(positive), negative, dim=-1).mean() > 0.95
    torch.testing.assert_close(back(positive).norm(dim=-1), positive.norm(dim=-1))


def test_the_units_of_the_activations_do_not_matter() -> None:
    positive, negative = two_gaussians(60, 60)
    small = QUICK.fit(positive, negative, calibrate=False)
    large = QUICK.fit(1024 * positive, 1024 * negative, calibrate=False)
    torch.testing.assert_close(large(1024 * negative), 1024 * small(negative))


def test_the_same_seed_gives_the_same_tensors_whatever_the_global_state() -> None:
    data = two_gaussians(40, 40)
    before = torch.get_rng_state()
    one = QUICK.fit(*data, calibrate=False).field.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(99)
        two = QUICK.fit(*data, calibrate=False).field.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)
    other = HPR(lr=2e-3, min_steps=150, seed=1).fit(*data, calibrate=False).field
    assert not torch.equal(one["theta"], other.theta)


def test_progress_counts_up_to_the_total() -> None:
    seen: list[tuple[int, int]] = []
    QUICK.fit(*two_gaussians(40, 40), calibrate=False, progress=lambda *now: seen.append(now))
    # 64 rows to fit on, batches of 16: 4 steps an epoch.
    total = math.ceil(QUICK.min_steps / 4)
    assert seen == [(i + 1, total) for i in range(total)]


def test_rows_without_groups_are_paired_by_index() -> None:
    positive, negative = (rows.double() for rows in two_gaussians(40, 40))
    field = QUICK.fit_field(positive, negative)
    groups = torch.arange(40).repeat(2).numpy()
    same = QUICK.fit_samples(Samples(positive, negative, groups))
    assert torch.equal(field.theta, same.theta)


def test_unpaired_rows_are_refused() -> None:
    positive, negative = two_gaussians(40, 30)
    with pytest.raises(ValueError, match=r"hpr learns from pairs.*\[40, 12\].*\[30, 12\]"):
        QUICK.fit(positive, negative)
