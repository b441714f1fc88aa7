"""Scores are the steering's own probabilities at its own tokens, and tell what they rest on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.models import constant, model, quadratic, tokenizer

import odesteer as ods

POSITIVE = ["the cat is good", "a bird was good", "good dog", "the moon is good"] * 2
NEGATIVE = ["the cat is bad", "a bird was bad", "bad dog", "the moon is bad"] * 2
CONTRAST = ods.Contrast.from_pairs(POSITIVE, NEGATIVE)


@pytest.mark.parametrize("tokens", ["last", "mean", "response"])
def test_they_are_what_the_steering_says_of_the_activations_it_was_fitted_on(tokens: str) -> None:
    net, words = model(), tokenizer()
    steering = ods.fit(net, words, CONTRAST, layer=1, tokens=tokens)
    scores = ods.score(net, words, steering, CONTRAST)
    both = ods.activations(net, words, CONTRAST, 1, tokens=tokens)
    expected = steering.probability(torch.cat(both)).double().numpy()
    assert np.array_equal(scores.probability, expected)
    assert (scores.layer, scores.tokens) == (1, tokens)
    assert scores.labels == (1,) * 8 + (0,) * 8
    assert scores.fitted_on
    assert [scores.log_odds[i] for i in scores.ranked()] == sorted(scores.log_odds, reverse=True)


def test_texts_without_labels_have_the_same_scores_and_no_quality() -> None:
    net, words = model(), tokenizer()
    steering = ods.fit(net, words, CONTRAST, layer=1)
    bare = ods.score(net, words, steering, POSITIVE + NEGATIVE)
    assert np.allclose(bare.log_odds, ods.score(net, words, steering, CONTRAST).log_odds, atol=1e-5)
    assert set(bare.labels) == {None} and not bare.fitted_on
    with pytest.raises(ValueError, match="both classes"):
        bare.quality()


def test_quality_uses_the_texts_whose_labels_are_known() -> None:
    net, words = model(), tokenizer()
    steering = ods.fit(net, words, CONTRAST, layer=1)
    labels = [1, 1, 1, None, 0, 0, 0, None]
    scores = ods.score(net, words, steering, POSITIVE[:4] + NEGATIVE[:4], labels=labels)
    quality = scores.quality()
    assert (quality.positive, quality.negative) == (3, 3)
    assert scores.threshold(0.5).false_positives.n == 3


def test_rows_with_one_prompt_are_one_group() -> None:
    rows = [("the cat", "is good"), ("the cat", "is bad"), "the moon"]
    scores = ods.score(model(), tokenizer(), quadratic(), rows)
    assert [e.group for e in scores.examples] == ["the cat", "the cat", "(2)"]


def test_mixed_rows_find_what_was_read_of_their_contrast_in_the_cache(tmp_path: Path) -> None:
    net, words = model(), tokenizer()
    steering = ods.fit(net, words, CONTRAST, layer=1, cache=tmp_path)
    mixed = [text for pair in zip(POSITIVE, NEGATIVE, strict=True) for text in pair]
    before = sorted(tmp_path.rglob("*"))
    scores = ods.score(net, words, steering, mixed, labels=[1, 0] * 8, cache=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before, "nothing was computed"
    alone = ods.score(net, words, steering, CONTRAST)
    assert np.array_equal(scores.log_odds[::2], alone.log_odds[:8])
    assert np.array_equal(scores.log_odds[1::2], alone.log_odds[8:])


def test_what_is_steered_away_from_is_scored_by_the_opposite() -> None:
    net, words = model(), tokenizer()
    one, other = (ods.score(net, words, s, POSITIVE) for s in (quadratic(), ~quadratic()))
    assert np.allclose(one.log_odds, -other.log_odds)


def test_several_layers_have_to_be_chosen_from() -> None:
    both = ods.Steering.of((quadratic(0), quadratic(1)))
    with pytest.raises(ValueError, match=r"layers 0, 1.*layer=0"):
        ods.score(model(), tokenizer(), both, POSITIVE)
    chosen = ods.score(model(), tokenizer(), both, POSITIVE, layer=1)
    assert np.array_equal(
        chosen.log_odds, ods.score(model(), tokenizer(), quadratic(1), POSITIVE).log_odds
    )


@pytest.mark.parametrize(
    ("steering", "texts", "more", "said"),
    [
        (constant(), POSITIVE, {}, "no barrier"),
        (quadratic().replace(layer=None), POSITIVE, {}, "does not know its layer"),
        (quadratic(), [], {}, "no text"),
        (quadratic(), POSITIVE, {"labels": [1]}, "one entry a text, 8; got 1"),
        (quadratic(), POSITIVE, {"labels": [2] * 8}, "1, 0 or None; got 2"),
        (quadratic(), CONTRAST, {"labels": [1]}, "its own labels"),
        (quadratic(), POSITIVE, {"tokens": "first"}, "tokens must be"),
        (quadratic(), POSITIVE, {"layer": 2}, "of layer 1, not 2"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    steering: ods.Steering, texts: object, more: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        ods.score(model(), tokenizer(), steering, texts, **more)
