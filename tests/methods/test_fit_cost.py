"""What does a fit of many rows hold and compute? Counted, not timed."""

from collections import Counter

import pytest
import torch
from tests.helpers.models import two_gaussians
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from odesteer import ODESteer
from odesteer.methods.samples import Samples

D, LANDMARKS = 96, 64


class Counting(TorchDispatchMode):
    """The largest tensor an operation makes, in bytes and shape, and how often each ran."""

    def __init__(self):
        super().__init__()
        self.largest, self.shapes, self.calls = 0, set(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                stored = leaf.untyped_storage().nbytes()
                self.largest = max(self.largest, stored)
                self.shapes.add((tuple(leaf.shape), leaf.dtype))
        return out


def counted(pairs, method=None, d=D):
    method = ODESteer(landmarks=LANDMARKS) if method is None else method
    classes = two_gaussians(pairs, pairs, d, seed=1)
    with Counting() as counting:
        method.fit(*classes)
    return counting


def test_the_largest_tensor_is_one_copy_of_the_rows():
    for pairs in (200, 400):
        assert counted(pairs).largest <= 2 * pairs * max(D, LANDMARKS) * 8


def test_twice_the_rows_take_twice_the_memory_and_as_many_operations():
    one, two = counted(300), counted(600)
    assert 1.9 <= two.largest / one.largest <= 2.1
    assert not any(len(s) == 2 and min(s) >= 600 for s, _ in two.shapes)
    # Steps to the optimum may differ by a few.
    assert sum(two.calls.values()) < 1.3 * sum(one.calls.values())


def test_an_exact_machine_of_all_rows_would_fail_these_checks():
    exact = ODESteer(landmarks=10**6)
    one, two = counted(150, exact), counted(300, exact)
    assert two.largest / one.largest > 2.5
    assert any(len(s) == 2 and min(s) >= 600 for s, _ in two.shapes)


def test_rows_beyond_the_landmarks_are_worked_on_in_single_precision():
    doubles = {s for s, dtype in counted(300).shapes if dtype == torch.float64 and 600 in s}
    # Twelve C and folds, log-odds: thin. What is given is taken in double, a class at a time.
    assert all(600 not in s or min(s) <= 24 for s in doubles if len(s) == 2), doubles


def test_gamma_and_C_cost_one_decomposition_a_gamma():
    # And a few more, whichever way: of the covariance, and for the rank.
    few, many = (
        counted(200, ODESteer(landmarks=LANDMARKS, rank=3, gammas=gammas, Cs=Cs)).calls
        for gammas, Cs in (((1.0,), (1.0,)), ((0.3, 1.0, 3.0), (0.1, 0.3, 1.0, 3.0)))
    )
    assert many["_linalg_eigh"] == few["_linalg_eigh"] + 2


@pytest.mark.parametrize("landmarks", [60, 2000])
def test_one_study_learns_what_its_parts_learn_one_by_one(landmarks):
    method = ODESteer(landmarks=landmarks)
    samples = method.check(*two_gaussians(90, 90, 20, seed=2))
    chosen, field, (values, labels) = method.fit_and_validate(samples, 0)
    tuned = method.select_hyperparameters(samples)
    assert chosen == tuned
    again = tuned.fit_samples(samples)
    a = torch.cat(two_gaussians(50, 50, 20, seed=3)).double()
    # In single precision, other columns beside them round otherwise.
    loose = {"rtol": 0.0, "atol": 1e-6 if landmarks == 2000 else 5e-3}
    torch.testing.assert_close(field.barrier.value(a), again.barrier.value(a), **loose)
    held_out, same = tuned.held_out_values(samples, 0)
    assert (labels == same).all()
    assert abs(values - held_out).max() < loose["atol"]


def test_held_out_values_of_other_folds_are_of_those_folds():
    method = ODESteer(gamma=1.0, C=1.0, rank=3)
    samples = method.check(*two_gaussians(90, 90, 20, seed=2))
    for seed in (0, 1):
        values = method.fit_and_validate(samples, seed).held_out[0]
        assert abs(values - method.held_out_values(samples, seed)[0]).max() < 1e-6
    first, second = (method.fit_and_validate(samples, seed).held_out[0] for seed in (0, 1))
    assert abs(first - second).max() > 1e-3


def test_no_held_out_value_has_seen_the_label_of_its_row():
    method = ODESteer(gamma=1.0, C=1.0, rank=3)
    positive, negative = two_gaussians(40, 40, 20, seed=4)
    samples = method.check(positive, negative)
    values = method.fit_and_validate(samples, 0).held_out[0]
    swapped = Samples(samples.positive.clone(), samples.negative.clone(), samples.groups)
    # Pair 0 trades places: its own held-out values follow their rows, those of others change.
    swapped.positive[0], swapped.negative[0] = samples.negative[0], samples.positive[0]
    after = method.fit_and_validate(swapped, 0).held_out[0]
    assert abs(after[0] - values[40]) < 1e-6 and abs(after[40] - values[0]) < 1e-6
    assert abs(after[1:40] - values[1:40]).max() > 1e-4
