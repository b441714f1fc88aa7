"""What `fit` chooses where nothing is said: the layer, the dose and the tokens that are read."""

import warnings

import pytest
from tests.helpers import models as tiny

import odesteer as ods
from odesteer.fitting import best_layer, spread_layers
from odesteer.steering.calibration import BinaryQuality

NOUNS = ("mat", "tree", "moon", "cat")
WANTED = [("the cat", f"{verb} on the {noun}") for verb in ("sat", "ran") for noun in NOUNS]
UNWANTED = [("the cat", f"{verb} under a {noun}") for verb in ("flew", "was") for noun in NOUNS]


def qualities(losses: dict[int, float]) -> dict[int, BinaryQuality]:
    return {index: BinaryQuality(1.0, loss, 0.0, 40) for index, loss in losses.items()}


def test_of_equal_layers_the_one_nearest_the_middle_is_taken():
    ties = qualities({6: 0.001, 7: 0.0, 14: 0.004, 15: 0.01, 18: 0.3})
    assert best_layer(ties, 30) == 14
    assert best_layer(qualities({6: 0.5, 14: 0.6}), 30) == 6


def test_candidates_are_spread_over_equal_layers():
    ties = qualities({index: 0.0001 * index for index in range(6, 20)})
    assert spread_layers(ties, 3) == [6, 12, 19]
    assert spread_layers(qualities({6: 0.5, 8: 0.3, 9: 0.4, 12: 0.9}), 3) == [6, 8, 9]


def test_without_a_dose_odesteer_has_the_strong_budget_and_reads_responses():
    contrast = ods.Contrast.from_pairs(WANTED, UNWANTED)
    steering = ods.fit(tiny.model(), tiny.tokenizer(), contrast, layer=1)
    assert steering.receipts["kl"]["asked"] == ods.KL("strong").budget
    assert steering.receipts["tokens"] == "response"
    assert "kl" not in ods.fit(tiny.model(), tiny.tokenizer(), contrast, "caa", 1).receipts


def test_texts_that_predict_nothing_get_the_methods_own_dose():
    contrast = ods.Contrast.from_pairs(["good", "moon"] * 4, ["bad", "mat"] * 4)
    steering = ods.fit(tiny.model(), tiny.tokenizer(bos=False), contrast, layer=1)
    assert steering.strength == ods.ODESteer.default_strength


def test_where_the_ends_tell_the_classes_apart_all_tokens_are_read():
    dotted = ods.Contrast.from_pairs([(p, f"{r} .") for p, r in WANTED], UNWANTED)
    with pytest.warns(UserWarning, match="ends of the texts tell the classes apart"):
        steering = ods.fit(tiny.model(), tiny.tokenizer(), dotted, "caa", 1)
    assert steering.receipts["tokens"] == "response"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = ods.fit(tiny.model(), tiny.tokenizer(), dotted, "caa", 1, tokens="last")
    assert chosen.receipts["tokens"] == "last"
