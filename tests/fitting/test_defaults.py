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


@pytest.mark.parametrize(
    ("arguments", "positions"),
    [
        ({}, "all"),
        ({"strength": ods.KL(0.02)}, "all"),
        ({"strength": ods.Angle(0.1)}, "last+generated"),
        ({"positions": "prompt[:2]"}, "prompt[:2]"),
        ({"strength": ods.Angle(0.1), "positions": "all - prompt[:1]"}, "all-prompt[:1]"),
        ({"method": "natural-gradient"}, "all"),
        ({"method": "truthflow", "strength": ods.KL(0.02)}, "last+generated"),
        ({"layer": [0, 1]}, "all"),
    ],
)
def test_a_steering_knows_the_tokens_that_it_was_fitted_for(arguments, positions, tmp_path):
    contrast = ods.Contrast.from_pairs(WANTED, UNWANTED)
    model, tokenizer = tiny.model(), tiny.tokenizer()
    steering = ods.fit(model, tokenizer, contrast, **{"layer": 1, **arguments})
    assert steering.positions == positions
    assert ods.load(steering.save_pretrained(tmp_path / "s")).positions == positions


@pytest.mark.parametrize("own", ["all", "generated", "prompt[1:]"])
def test_without_positions_those_of_the_steering_are_steered(own):
    model, tokenizer = tiny.model(), tiny.tokenizer()
    steering = ods.Steering.from_vector([2.0] * model.config.hidden_size, 1)
    ids = tokenizer("the cat sat on", return_tensors="pt")
    outputs = []
    for one, positions in ((steering.replace(positions=own), None), (steering, own)):
        with one.attach(model, positions=positions):
            outputs.append(model.generate(**ids, max_new_tokens=3, pad_token_id=0))
        with one.attach(model, positions=positions):
            outputs.append(model(**ids).logits)
    assert (outputs[0] == outputs[2]).all() and (outputs[1] == outputs[3]).all()


def test_a_composition_steers_the_tokens_of_its_first_and_layers_agree():
    contrast = ods.Contrast.from_pairs(WANTED, UNWANTED)
    one = ods.fit(tiny.model(), tiny.tokenizer(), contrast, "caa", 1)
    everywhere = one.replace(positions="all")
    assert (everywhere & one).positions == "all" and (one | everywhere).positions != "all"
    assert ods.guarded(everywhere, one).positions == (~everywhere).positions == "all"
    with pytest.raises(ValueError, match=r"same positions; got all, last\+generated"):
        ods.Steering.of([everywhere, one.replace(layer=2)])
    with pytest.raises(ValueError, match="no tokens are called 'prompts'"):
        one.replace(positions="prompts")
