"""Training is repeatable, has its own generator, and stops at its best epoch."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.helpers.models import two_gaussians
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from odesteer.methods.estimators import best_sharpness
from odesteer.methods.samples import Samples
from odesteer.methods.training import Recipe, hold_out, learning, train
from odesteer.ode import Network

D = 6


def samples(n=60, m=40, groups=None):
    positive, negative = two_gaussians(n, m, D, seed=3)
    return Samples(positive.double(), negative.double(), groups)


def fitted(recipe=None, seed=0, score=True, progress=None):
    with learning():
        data = samples()
        rows, labels = data.rows.float(), torch.as_tensor(data.labels).float()
        fit, test = hold_out(data, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        network = Network.draw([D, 8, 1], "silu", generator)

        def loss(index):
            return cross_entropy(network(rows[index])[:, 0], labels[index])

        result = train(
            list(network.buffers()),
            loss,
            fit,
            recipe or Recipe(epochs=8, batch=16, lr=0.01),
            generator,
            score=(lambda: -float(loss(test))) if score else None,
            progress=progress,
        )
    return network, result, (lambda: -float(loss(test)))


def test_the_loss_falls_and_nothing_is_left_of_the_gradients():
    network, result, _ = fitted()
    assert result.losses[-1] < 0.8 * result.losses[0]
    assert len(result.losses) == 8
    assert all(not t.requires_grad and t.grad is None and t.is_leaf for t in network.buffers())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_one_seed_gives_equal_bits_whatever_the_caller_does_with_autograd(mode):
    expected, _, _ = fitted()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with mode():
        network, _, _ = fitted()
    assert torch.equal(torch.get_rng_state(), state)
    other, _, _ = fitted(seed=1)
    for a, b, c in zip(network.buffers(), expected.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b) and not a.is_inference()
        assert not torch.equal(a, c)


def test_rows_made_under_inference_mode_can_be_learnt_from():
    with torch.inference_mode():
        data = samples()
        assert data.positive.is_inference()
        with learning():
            rows, weight = data.rows.clone(), torch.zeros(D, dtype=torch.float64)
            generator = torch.Generator().manual_seed(0)
            train([weight], lambda i: (rows[i] @ weight - 1).square().mean(), 100,
                  Recipe(epochs=3), generator)  # fmt: skip
    assert float(weight.norm()) > 0


def test_the_best_epoch_is_the_one_that_is_left():
    scores = iter([0.1, 0.5, 0.3, 0.9, 0.2, 0.4])
    seen = []
    weight = torch.zeros(2)

    def score():
        seen.append(weight.detach().clone())
        return next(scores)

    def loss(index):
        return (weight - 1).square().mean()

    generator = torch.Generator().manual_seed(0)
    result = train([weight], loss, 4, Recipe(epochs=6), generator, score=score)
    assert (result.epoch, result.score) == (3, 0.9)
    assert torch.equal(weight, seen[3]) and not torch.equal(weight, seen[5])


def test_patience_counts_epochs_since_the_best_and_progress_still_ends():
    scores = iter([0.1, 0.5, 0.3, 0.4, 0.5, 0.45, 0.9])
    done = []
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(2)
    result = train(
        [weight],
        lambda index: weight.square().mean(),
        4,
        Recipe(epochs=20, patience=3),
        generator,
        score=lambda: next(scores),
        progress=lambda *now: done.append(now),
    )
    # An equal score is not a better one.
    assert result.epoch == 1 and len(result.losses) == 5
    assert done == [(i, 20) for i in (1, 2, 3, 4, 5)] + [(20, 20)]


def test_every_row_is_visited_once_an_epoch_in_a_new_order():
    batches = []

    def loss(index):
        batches.append(index.tolist())
        return weight.square().mean()

    weight = torch.ones(1)
    chosen = torch.tensor([3, 5, 7, 11, 13])
    train([weight], loss, chosen, Recipe(epochs=3, batch=2), torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == 3 * [2, 2, 1]
    orders = [[*batches[i], *batches[i + 1], *batches[i + 2]] for i in (0, 3, 6)]
    assert all(sorted(order) == chosen.tolist() for order in orders)
    assert len({tuple(order) for order in orders}) > 1


def test_the_rate_warms_up_stays_or_falls_to_zero():
    flat = Recipe(lr=0.5, warmup=0.2)
    assert [flat.rate(i, 10) for i in (0, 1, 2, 9)] == [0.25, 0.5, 0.5, 0.5]
    falling = Recipe(lr=0.5, warmup=0.2, cosine=True)
    rates = [falling.rate(i, 10) for i in range(10)]
    assert rates[:3] == [0.25, 0.5, 0.5]
    assert all(after < before for before, after in pairwise(rates[2:]))
    assert falling.rate(6, 10) == pytest.approx(0.25) and 0 < rates[-1] < 0.05


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_what_is_held_out_shares_no_group_and_keeps_the_proportions(share):
    groups = np.concatenate([np.arange(60) // 2, np.arange(40) // 2])
    fit, test = hold_out(samples(groups=groups), share, seed=1)
    assert len(fit) + len(test) == 100
    assert not set(groups[fit.numpy()]) & set(groups[test.numpy()])
    assert len(test) == pytest.approx(100 * share, abs=5)
    positives = int((test < 60).sum())
    assert positives == pytest.approx(0.6 * len(test), abs=4)


def test_rows_without_groups_are_each_their_own():
    fit, test = hold_out(samples(), 0.2)
    assert len(test) == 20 and not set(fit.tolist()) & set(test.tolist())


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 5), (5, 1)])
def test_where_nothing_can_be_held_out_everything_is_both(n, m):
    fit, test = hold_out(samples(n, m))
    assert fit.tolist() == test.tolist() == list(range(n + m))


def test_divergence_is_reported_with_the_epoch_and_the_cure():
    weight = torch.ones(1)
    with pytest.raises(RuntimeError, match=r"loss of epoch 1 is (inf|nan).*lr 0.001.*clip"):
        train([weight], lambda i: (weight / 0).sum(), 3, Recipe(), torch.Generator())
    assert not weight.requires_grad


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0}, {"batch": 0}, {"lr": 0.0}, {"weight_decay": -1.0}, {"warmup": 1.5}],
    ids=str,
)
def test_recipes_that_train_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="Training needs"):
        Recipe(**wrong)


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="at least one row"):
        train([torch.ones(1)], lambda i: torch.zeros(()), 0, Recipe(), torch.Generator())


@pytest.mark.parametrize("true", [0.02, 1.0, 30.0])
def test_the_temperature_of_honest_log_odds_is_found(true):
    rng = np.random.default_rng(0)
    honest = 1.5 * rng.standard_normal(40_000)
    labels = (rng.random(len(honest)) < 1 / (1 + np.exp(-honest))).astype(int)
    sharpness = best_sharpness(honest / true, labels)
    assert sharpness.factor == pytest.approx(true, rel=0.05)
    assert sharpness.log_loss < np.log(2)
    # One number rules the loss: the neighbours are worse.
    for factor in (0.8, 1.25):
        wrong = factor * sharpness.factor / true * np.where(labels == 1, -honest, honest)
        assert np.logaddexp(0, wrong).mean() > sharpness.log_loss


def test_log_odds_that_point_the_wrong_way_are_flattened():
    sharpness = best_sharpness(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([1, 1, 0, 0]))
    assert sharpness.factor == pytest.approx(1e-3)
    assert sharpness.log_loss == pytest.approx(np.log(2), abs=0.01)
