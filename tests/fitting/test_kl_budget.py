"""A KL budget becomes the dose that has it, on texts that the direction was not fitted on."""

import pytest
from tests.helpers import models as tiny

import odesteer as ods

NOUNS = ("mat", "tree", "moon")
WANTED = [("the cat", f"{verb} on the {noun}") for verb in ("sat", "ran") for noun in NOUNS]
UNWANTED = [("the cat", f"{verb} under a {noun}") for verb in ("flew", "was") for noun in NOUNS]


@pytest.mark.parametrize(("given", "nats"), [(0.3, 0.3), ("light", 0.15), ("strong", 0.6)])
def test_a_budget_is_a_number_or_a_word(given: float | str, nats: float) -> None:
    assert ods.KL(given).budget == nats


@pytest.mark.parametrize("given", [0.0, -1.0, float("nan"), float("inf"), "huge"])
def test_another_budget_is_refused_in_a_sentence(given: float | str) -> None:
    with pytest.raises(ValueError, match="positive number of nats a token, or one of light"):
        ods.KL(given)


@pytest.mark.parametrize("method", ["natural-gradient", "caa", "odesteer", "linear-act"])
@pytest.mark.parametrize("layer", [1, [0, 2]])
def test_the_dose_has_the_budget_on_held_out_texts(method: str, layer: int | list[int]) -> None:
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    contrast = ods.Contrast.from_pairs(WANTED, UNWANTED)
    budget = 0.002 if method == "linear-act" else 0.02  # a map is complete at strength 1
    steering = ods.fit(model, tokenizer, contrast, method, layer, strength=ods.KL(budget))
    receipt = steering.parts[0].receipts["kl"]
    assert receipt["asked"] == budget and 0 < receipt["texts"] < len(WANTED + UNWANTED)
    if method != "linear-act":
        assert receipt["measured"] == pytest.approx(budget, rel=0.04)
    expected = ods.Time if method == "linear-act" else ods.Angle
    assert all(isinstance(part.strength, expected) for part in steering.parts)
    assert len({part.strength for part in steering.parts}) == 1
