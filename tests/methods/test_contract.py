"""What every method in the table promises."""

import dataclasses
import json

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from odesteer import METHODS, Angle, PathLength, Steering
from odesteer.ode import as_dose
from tiny import two_gaussians

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
_fitted: dict[str, Steering] = {}


def make(name):
    return METHODS[name](**CHEAPER.get(name, {}))


def fitted(name):
    if name not in _fitted:
        _fitted[name] = make(name).fit(POSITIVE, NEGATIVE, layer=1)
    return _fitted[name]


def fresh(n=200, seed=7):
    return torch.cat(two_gaussians(n, n, D, seed=seed))


def moving_rows(name, a, strength):
    """Which rows a steering moves: all of them, or those on one side of its gate."""
    steering = fitted(name).with_strength(strength)
    moved = (steering(a) != a).any(dim=-1)
    if not steering.field.one_way:
        assert bool(moved.all())
    # A gate that hardly opens would make every promise about the moved rows empty.
    assert moved.float().mean() > 0.2
    return moved


every_method = pytest.mark.parametrize("name", METHODS)
moving_method = pytest.mark.parametrize("name", MOVING)
aimed_method = pytest.mark.parametrize("name", AIMED)


@every_method
def test_the_table_knows_every_method_by_its_own_name(name):
    assert METHODS[name].name == name == fitted(name).method


@every_method
@pytest.mark.parametrize("shape", [(D,), (7, D), (2, 3, D), (0, D)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_output_has_the_shape_and_dtype_of_its_input(name, shape, dtype):
    a = fresh()[: max(1, torch.Size(shape[:-1]).numel())].reshape(-1, D)
    a = a[: torch.Size(shape[:-1]).numel()].reshape(shape).to(dtype)
    out = fitted(name).with_strength(0.7)(a)
    assert out.shape == a.shape
    assert out.dtype == dtype
    assert out.device == a.device
    assert bool(torch.isfinite(out).all())


@moving_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_the_float32_result_rounded_once(name, dtype):
    steering, a = fitted(name).with_strength(0.7), fresh().to(dtype)
    assert torch.equal(steering(a), steering(a.float()).to(dtype))


@moving_method
def test_float64_agrees_with_float32_to_rounding(name):
    steering, a = fitted(name).with_strength(0.7), fresh()
    torch.testing.assert_close(steering(a.double()).float(), steering(a), atol=2e-4, rtol=1e-4)


@every_method
def test_leading_dimensions_do_not_matter(name):
    steering, a = fitted(name).with_strength(0.7), fresh()[:24]
    flat = steering(a)
    torch.testing.assert_close(steering(a.reshape(2, 3, 4, D)).reshape(-1, D), flat)
    torch.testing.assert_close(steering(a[5]), flat[5])


@every_method
def test_a_row_does_not_depend_on_the_other_rows(name):
    steering, a = fitted(name).with_strength(0.7), fresh()[:16]
    others = 100 * torch.randn(16, D, generator=torch.Generator().manual_seed(0))
    others[3] = a[3]
    assert torch.equal(steering(a)[3], steering(others)[3])


@every_method
@pytest.mark.parametrize("zero", [0, 0.0, -0.0, Angle(0.0), PathLength(0.0)])
def test_strength_zero_returns_the_activation_bit_for_bit(name, zero):
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        a = fresh().to(dtype)
        assert torch.equal(fitted(name).with_strength(zero)(a), a)


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
def test_every_strength_moves_differently(name):
    a = fresh()
    for sign in (1, -1):
        mine = a[moving_rows(name, a, sign * 0.5)]
        strengths = [sign * s for s in (0.25, 0.5, 1.0)]
        moved = [fitted(name).with_strength(s)(mine) for s in strengths]
        distance = [(m - mine).norm(dim=-1) for m in moved]
        assert bool((distance[0] > 0).all())
        assert bool((distance[0] < distance[1]).all())
        assert bool((distance[1] < distance[2]).all())


@moving_method
def test_a_negative_strength_moves_other_rows_or_the_other_way(name):
    a = fresh()
    if fitted(name).field.one_way:
        assert not bool((moving_rows(name, a, 0.5) & moving_rows(name, a, -0.5)).any())
    else:
        there = fitted(name).with_strength(0.05)(a) - a
        back = fitted(name).with_strength(-0.05)(a) - a
        assert bool((torch.cosine_similarity(there, back, dim=-1) < -0.9).all())


@moving_method
def test_a_short_way_raises_the_barrier_of_every_row_it_moves(name):
    steering, a = fitted(name).with_strength(PathLength(0.02)), fresh().double()
    if steering.field.barrier is None:
        with pytest.raises(ValueError, match="has no barrier"):
            steering.log_odds(a)
        return
    mine = a[moving_rows(name, a, PathLength(0.02))]
    assert bool((steering.log_odds(steering(mine)) > steering.log_odds(mine)).all())


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


@every_method
def test_the_same_seed_gives_equal_tensors(name):
    again = make(name).fit(POSITIVE, NEGATIVE, layer=1)
    one, two = fitted(name).field.state_dict(), again.field.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert fitted(name).calibration == again.calibration


@every_method
def test_fit_leaves_its_inputs_and_the_method_unchanged(name):
    positive, negative, method = POSITIVE.clone(), NEGATIVE.clone(), make(name)
    method.fit(positive, negative)
    assert torch.equal(positive, POSITIVE)
    assert torch.equal(negative, NEGATIVE)
    assert method == make(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.steps = 3


@every_method
def test_fit_works_on_half_precision_and_on_rows_that_need_gradients(name):
    positive = POSITIVE.half().requires_grad_(True)
    steering = make(name).fit(positive, NEGATIVE.half())
    torch.testing.assert_close(
        steering.with_strength(0.5)(fresh()),
        fitted(name).with_strength(0.5)(fresh()),
        atol=0.1,
        rtol=0.1,
    )
    assert not any(t.requires_grad for t in steering.field.state_dict().values())


@every_method
@pytest.mark.parametrize(("n", "m"), [(40, 9), (1, 1), (6, 5)])
def test_unequal_and_tiny_classes_can_be_learnt_from(name, n, m):
    m = n if name in PAIRS else m
    out = make(name).fit(POSITIVE[:n], NEGATIVE[:m]).with_strength(0.5)(fresh())
    assert bool(torch.isfinite(out).all())


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


@every_method
def test_saving_and_loading_gives_equal_outputs(name, tmp_path):
    steering = fitted(name)
    loaded = Steering.from_pretrained(steering.save_pretrained(tmp_path / "it"))
    assert torch.equal(loaded(fresh()), steering(fresh()))
    assert as_dose(loaded.strength) == as_dose(steering.strength)
    for attribute in ("solver", "steps", "layer", "method", "calibration", "receipts"):
        assert getattr(loaded, attribute) == getattr(steering, attribute)


@every_method
def test_repr_shows_every_hyperparameter_and_the_steering_remembers_them(name):
    method = make(name)
    for field in dataclasses.fields(method):
        assert f"{field.name}={getattr(method, field.name)!r}" in repr(method)
        assert field.name in fitted(name).hyperparameters
    json.dumps(fitted(name).hyperparameters, allow_nan=False)
