"""What every method in the table promises."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tests.helpers.models import two_gaussians

from odesteer import CAA, METHODS, Angle, PathLength
from odesteer.methods import Method
from odesteer.testing import METHOD_CHECKS, FittedMethod

# The paper's 8,000 buckets cost seconds and change nothing that is tested here.
CHEAPER = {
    "odesteer-paper": {"components": 256},
    "odesteer-one-step": {"components": 256},
    "odesteer-fourier": {"components": 128},
    # Twelve dimensions bear larger steps, and then need fewer of them.
    "hpr": {"lr": 2e-3, "min_steps": 80},
    "re-control": {"lr": 1e-3, "min_steps": 200},
    "truthflow": {"lr": 2e-3, "min_steps": 200},
}
D = 12
POSITIVE, NEGATIVE = two_gaussians(60, 60, D, seed=1)
# The unsteered model moves nothing, so no strength can change what a probe says.
MOVING = [name for name in METHODS if name != "none"]
# A random direction knows nothing of the data, so nothing is promised of where it leads.
AIMED = [name for name in MOVING if name != "random"]
PAIRS = [name for name in METHODS if METHODS[name].needs_pairs]
_trials: dict[str, FittedMethod] = {}


def make(name):
    return METHODS[name](**CHEAPER.get(name, {}))


def trial(name):
    if name not in _trials:
        _trials[name] = FittedMethod.of(make(name))
    return _trials[name]


def fitted(name):
    return trial(name).steering


def fresh(n=200, seed=7):
    return torch.cat(two_gaussians(n, n, D, seed=seed))


every_method = pytest.mark.parametrize("name", METHODS)
moving_method = pytest.mark.parametrize("name", MOVING)
aimed_method = pytest.mark.parametrize("name", AIMED)


@every_method
@pytest.mark.parametrize("promise", METHOD_CHECKS.values(), ids=METHOD_CHECKS)
def test_every_promise_is_kept(name, promise):
    promise(trial(name))


def test_a_method_that_changes_its_rows_is_told_which():
    class InPlace(CAA):
        def fit(self, positive, negative, **settings):
            negative.add_(1.0)
            return super().fit(positive, negative, **settings)

    with pytest.raises(AssertionError, match=r"fitting changed the negative rows\b"):
        METHOD_CHECKS["nothing-is-changed"](FittedMethod.of(InPlace()))


@every_method
def test_the_table_knows_every_method_by_its_own_name(name):
    assert METHODS[name].name == name == fitted(name).method


@aimed_method
@pytest.mark.parametrize("small", [0.4, PathLength(0.4), Angle(0.1)], ids=str)
def test_small_strength_raises_what_a_held_out_probe_calls_positive(name, small):
    rows, labels = fresh(1000, seed=11), [1] * 1000 + [0] * 1000
    probe = LogisticRegression().fit(rows.numpy(), labels)
    a = fresh(seed=12)
    size = small if isinstance(small, float) else small.amount
    opposite = -size if isinstance(small, float) else type(small)(-size)
    share = {
        key: probe.predict(fitted(name).with_strength(s)(a).numpy()).mean()
        for key, s in (("down", opposite), ("none", 0.0), ("up", small))
    }
    assert share["down"] < share["none"] < share["up"]


@moving_method
def test_a_negative_strength_moves_other_rows_or_the_other_way(name):
    a = fresh()
    if fitted(name).field.gated:
        there, back = ((fitted(name).with_strength(s)(a) != a).any(dim=-1) for s in (0.5, -0.5))
        assert not bool((there & back).any())
    else:
        there = fitted(name).with_strength(0.05)(a) - a
        back = fitted(name).with_strength(-0.05)(a) - a
        assert bool((torch.cosine_similarity(there, back, dim=-1) < -0.9).all())


@moving_method
def test_the_barrier_tells_fresh_rows_apart(name):
    positive, negative = two_gaussians(300, 300, D, seed=21)
    steering = fitted(name)
    if steering.field.barrier is None:
        pytest.skip(f"{name} has no barrier")
    right = torch.cat([steering.probability(positive) > 0.5, steering.probability(negative) < 0.5])
    # The best possible share is Phi(0.8) = 0.79.
    assert right.float().mean() > 0.7
    assert 0.5 < steering.receipts["held_out"]["auc"] <= 1.0


@pytest.mark.parametrize("name", PAIRS)
def test_rows_that_are_no_pairs_are_refused_where_pairs_are_needed(name):
    with pytest.raises(ValueError, match=rf"{name} learns from pairs.*\[60, 12\].*\[59, 12\].*caa"):
        make(name).fit(POSITIVE, NEGATIVE[:59])
    shifted = [*range(1, 60), 0]
    with pytest.raises(ValueError, match=rf"{name} learns from pairs.*other groups"):
        make(name).fit(POSITIVE, NEGATIVE, groups=(range(60), shifted))


@every_method
def test_rewards_and_prompts_must_be_one_a_row(name):
    with pytest.raises(ValueError, match=rf"{name} takes one finite reward a row: 60 and 60"):
        make(name).fit(POSITIVE, NEGATIVE, rewards=(torch.ones(60), torch.ones(59)))
    with pytest.raises(ValueError, match=rf"{name} takes one prompt activation.*\[59, 12\]"):
        make(name).fit(POSITIVE, NEGATIVE, prompts=POSITIVE[:59])


@every_method
def test_every_method_says_what_it_is(name):
    facts = METHODS[name].facts
    assert facts is not Method.facts
    assert all(facts[:5]), facts
    assert facts.barrier == "-" or fitted(name).field.barrier is not None


@moving_method
def test_the_norm_is_kept_exactly_where_the_table_says_so(name):
    a = fresh().double()
    change = (fitted(name).with_strength(0.7)(a).norm(dim=-1) - a.norm(dim=-1)).abs().max()
    if METHODS[name].facts.keeps_norm:
        assert change < 1e-6
    else:
        assert change > 1e-3


@every_method
@pytest.mark.parametrize(
    ("positive", "negative", "words"),
    [
        ((60, 12), (60, 11), ["[60, 12]", "[60, 11]", "one width"]),
        ((12,), (60, 12), ["[12]", "[60, 12]", "[n, d]"]),
        ((2, 3, 12), (6, 12), ["[2, 3, 12]", "[6, 12]", "[n, d]"]),
        ((0, 12), (60, 12), ["[0, 12]", "[60, 12]", "positive class is empty", "at least one"]),
        ((60, 12), (0, 12), ["[60, 12]", "[0, 12]", "negative class is empty", "at least one"]),
    ],
)
def test_wrong_shapes_are_answered_with_method_shapes_and_cure(name, positive, negative, words):
    with pytest.raises(ValueError, match=name) as error:
        make(name).fit(torch.ones(positive), torch.ones(negative))
    assert all(word in str(error.value) for word in [name, *words]), str(error.value)


@every_method
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_counted_and_the_cure_named(name, value):
    negative = NEGATIVE.clone()
    negative[3, 4] = negative[3, 5] = negative[17, 0] = value
    with pytest.raises(ValueError, match=name) as error:
        make(name).fit(POSITIVE, negative)
    assert all(word in str(error.value) for word in [name, "2 of 60 negative", "Drop"])


@every_method
def test_groups_must_be_one_a_row(name):
    with pytest.raises(ValueError, match=rf"{name}.*60 and 60.*60 and 59"):
        make(name).fit(POSITIVE, NEGATIVE, groups=(range(60), range(59)))
