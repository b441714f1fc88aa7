"""The method passes every method check and moves activations towards the positives."""

import pytest
import torch
from odesteer_median import MedianDifference

import odesteer as ods
from odesteer.testing import METHOD_CHECKS, FittedMethod

TRIAL = FittedMethod.of(MedianDifference())


@pytest.mark.parametrize("promise", METHOD_CHECKS.values(), ids=METHOD_CHECKS)
def test_it_keeps_every_promise(promise):
    promise(TRIAL)


def test_outliers_turn_the_mean_and_not_the_median():
    odd = TRIAL.positive.clone()
    odd[:3] -= 1000.0
    learnt = [MedianDifference().fit(p, TRIAL.negative) for p in (TRIAL.positive, odd)]
    means = [ods.CAA().fit(p, TRIAL.negative) for p in (TRIAL.positive, odd)]

    def turn(one, other):
        return torch.cosine_similarity(one.field.direction, other.field.direction, dim=0)

    assert turn(*learnt) > 0.95
    assert turn(*means) < 0.5
