"""A field trained through the model gains on held-out texts, and is the same for the same seed."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.fitting.test_kl_budget import UNWANTED, WANTED
from tests.helpers import models as tiny

import odesteer as ods
from odesteer.fitting.train import _pairs
from odesteer.methods.trained import FieldParameters

CONTRAST = ods.Contrast.from_pairs(WANTED, UNWANTED)
QUICK: dict[str, Any] = {"rank": 4, "batch": 2}


def fit(method: ods.Method, **settings: Any) -> ods.Steering:
    strength = settings.pop("strength", ods.KL(0.02))
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    return ods.fit(model, tokenizer, CONTRAST, method, 1, strength, **settings)


@pytest.mark.parametrize("barrier", ["quadratic", "constant"])
@pytest.mark.parametrize("objective", ["dpo", "bipo", "lm"])
def test_the_held_out_margin_at_the_budget_grows(barrier: str, objective: str) -> None:
    method = ods.TrainedODESteer(barrier=barrier, objective=objective, epochs=3, **QUICK)
    steering = fit(method)
    record = [each["at_budget"] for each in steering.receipts["epochs"]]
    assert len(record) == 4
    assert max(record) > record[0] > 0
    receipt = steering.receipts["kl"]
    assert receipt["measured"] == pytest.approx(0.02, rel=0.04)
    assert receipt["margin"] > 0


def test_the_same_seed_gives_the_same_field_and_weights_stay(tmp_path) -> None:
    method = ods.TrainedODESteer(epochs=1, **QUICK)
    one, two, other = (fit(method, seed=seed) for seed in (3, 3, 4))
    rows = torch.randn(5, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one(rows), two(rows))
    assert not torch.equal(one(rows), other(rows))
    loaded = ods.load(one.save_pretrained(tmp_path / "steering"))
    assert torch.equal(loaded(rows), one(rows))
    assert not any(tensor.requires_grad for tensor in one.field.buffers())


def test_without_a_budget_the_dose_is_the_one_given() -> None:
    steering = fit(ods.TrainedODESteer(epochs=0, **QUICK), strength=ods.Angle(0.07))
    assert steering.strength == ods.Angle(0.07) and "kl" not in steering.receipts


def test_it_is_trained_at_one_layer() -> None:
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    with pytest.raises(ValueError, match="trained at one layer"):
        ods.fit(model, tokenizer, CONTRAST, "odesteer-trained", [0, 1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"objective": "x"}, "objective"), ({"barrier": "x"}, "barrier"), ({"lr": 0.0}, "lr > 0")],
)
def test_settings_that_are_none_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ods.TrainedODESteer(**settings)


def test_the_field_starts_along_the_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    direction, rows = torch.randn(8, generator=generator), torch.randn(20, 8, generator=generator)
    for barrier in ("quadratic", "constant"):
        field = FieldParameters(barrier, 3, direction, rows, seed=0).requires_grad_(False).field()
        moved = field(rows)
        assert bool((moved @ direction > 0).all())


def test_texts_that_are_no_pairs_are_paired_by_lot() -> None:
    texts: list[Any] = list("abcdefg")
    pairs = _pairs(texts, np.array([0, 1, 2, 4, 5, 6]), 4, np.random.default_rng(0))
    assert [tuple(pair) for pair in pairs] == [("a", "e"), ("b", "f"), ("c", "g")]
    uneven = _pairs(texts, np.array([0, 1, 2, 3, 4]), 4, np.random.default_rng(0))
    assert sorted(pair.wanted for pair in uneven) == ["a", "b", "c", "d"]
    assert {pair.unwanted for pair in uneven} == {"e"}
