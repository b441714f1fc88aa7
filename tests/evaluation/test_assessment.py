"""Assessment: the verdict follows what is written, and what it costs."""

import json

import pytest
from tests.helpers import models as tiny

import odesteer as ods
from odesteer.evaluation.assessment import (
    BREAKS,
    NOTHING,
    OPPOSITE,
    PROMPTS,
    WEAK,
    WORKS,
    Assessment,
    Assessor,
    verdict,
)
from odesteer.evaluation.statistics import Interval


@pytest.mark.parametrize(
    ("mean", "low", "ratio", "repeated", "word"),
    [
        (0.5, 0.3, 1.2, 0.0, WORKS),
        (0.3, 0.05, 1.2, 0.0, WEAK),
        (0.5, -0.1, 1.2, 0.0, WEAK),
        (0.05, 0.01, 1.2, 0.0, WEAK),
        (0.05, -0.1, 1.2, 0.0, NOTHING),
        (-0.5, -0.7, 1.2, 0.0, NOTHING),
        (0.5, 0.3, 2.5, 0.0, BREAKS),
        (0.5, 0.3, 1.2, 0.3, BREAKS),
    ],
)
def test_a_verdict_follows_effect_and_damage(mean, low, ratio, repeated, word):
    assert verdict(Interval(mean, low, 1.0, 12), ratio, repeated) == word


def test_an_effect_that_is_surely_negative_is_said_to_go_the_other_way():
    assert verdict(Interval(-0.3, -0.49, -0.09, 12), 1.2, 0.0) == OPPOSITE
    assert verdict(Interval(-0.3, -0.6, 0.0, 12), 1.2, 0.0) == NOTHING
    assert verdict(Interval(-0.3, -0.49, -0.09, 12), 2.5, 0.0) == BREAKS


def test_nothing_is_said_to_work_by_a_probe_that_cannot_tell_the_classes_apart(fitted):
    assert verdict(Interval(0.5, 0.3, 1.0, 12), 1.2, 0.0, auc=0.5) == WEAK
    model, tokenizer, _, steering = fitted
    texts = [("the cat", f"is {word}") for word in ("good", "bad", "tree", "moon", "mat", "cat")]
    same = ods.Contrast.from_pairs(texts, texts[::-1])
    result = ods.assess(model, tokenizer, steering, same, new_tokens=4)
    assert result.auc < 0.65
    assert result.verdict != WORKS
    assert abs(result.effect.mean) < 100.0


@pytest.fixture(scope="module")
def fitted():
    contrast = ods.Contrast.from_pairs(
        [("the cat", f"is good {w}") for w in ("tree", "moon", "mat") * 4],
        [("the cat", f"is bad {w}") for w in ("tree", "moon", "mat") * 4],
        groups=[*range(12), *range(12)],
    )
    model, tokenizer = tiny.model(), tiny.tokenizer()
    return model, tokenizer, contrast, ods.fit(model, tokenizer, contrast, "caa", 1)


def test_a_steering_that_does_nothing_is_said_to(fitted):
    model, tokenizer, contrast, steering = fitted
    result = ods.assess(model, tokenizer, steering.with_strength(0.0), contrast, new_tokens=4)
    assert result.verdict == NOTHING
    assert result.effect.mean == 0.0
    assert result.perplexity_ratio == pytest.approx(1.0)
    assert all(unsteered == steered for _, unsteered, steered in result.answers)


def test_the_contrasts_own_prompts_are_answered_or_neutral_ones(fitted):
    model, tokenizer, contrast, steering = fitted
    own = ods.assess(model, tokenizer, steering, contrast, new_tokens=2)
    assert [prompt for prompt, _, _ in own.answers] == ["the cat"]
    bare = ods.Contrast.from_pairs(["good mat", "good tree"] * 6, ["bad mat", "bad tree"] * 6)
    neutral = ods.assess(model, tokenizer, steering, bare, new_tokens=2)
    assert [prompt for prompt, _, _ in neutral.answers] == list(PROMPTS)
    with pytest.raises(ValueError, match="no prompt to answer"):
        ods.assess(model, tokenizer, steering, contrast, [])


def test_it_is_kept_in_the_receipts_as_json(fitted):
    model, tokenizer, contrast, steering = fitted
    result = ods.assess(model, tokenizer, steering, contrast, new_tokens=2)
    kept = result.recorded(steering).receipts["assessment"]
    assert json.loads(json.dumps(kept)) == result.facts
    assert kept["verdict"] == result.verdict
    assert "times the perplexity" in str(result)


def outcome(verdict, ratio, low):
    effect = Interval(low + 0.1, low, 1.0, 12)
    return Assessment(verdict, effect, ratio, 0.0, (), 0.1, 1.0)


@pytest.mark.parametrize(
    ("outcomes", "kept", "factor"),
    [
        ([outcome(WORKS, 1.3, 0.2)], 0, 1.0),  # fluent and effective: nothing else is tried
        ([outcome(WORKS, 1.4**4, 0.3), outcome(WORKS, 1.4, 0.1)], 1, 0.5),
        ([outcome(NOTHING, 1.4**0.25, -0.1), outcome(WORKS, 1.4, 0.1)], 1, 1.5),
        (
            [outcome(WORKS, 1.4**4, 0.3), outcome(WORKS, 1.4**4, 0.2), outcome(WEAK, 1.4, 0.1)],
            2,
            0.25,
        ),
        (
            [outcome(WORKS, 1.4**4, 0.2), outcome(WORKS, 1.4**4, 0.3), outcome(WEAK, 1.6, 0.1)],
            1,
            0.5,
        ),
        ([outcome(WEAK, 1.8, 0.1), outcome(NOTHING, 1.4, -0.1)], 1, "less"),  # fluency first
        ([outcome(WEAK, 1.35, 0.1)], 0, 1.0),  # another dose would be the same
        ([outcome(BREAKS, 3.0, 0.5), outcome(NOTHING, 1.4, -0.1)], 1, "less"),
        ([outcome(BREAKS, 1.4, 0.5), outcome(WORKS, 1.2, 0.3)], 1, 0.5),  # by repetition
        ([outcome(WEAK, 1.1, 0.1), outcome(BREAKS, 2.5, 0.4), outcome(BREAKS, 2.2, 0.4)], 0, 1.0),
    ],
)
def test_a_dose_that_costs_too_much_or_does_too_little_is_scaled(
    fitted, monkeypatch, outcomes, kept, factor
):
    model, tokenizer, contrast, steering = fitted
    steering = steering.with_strength(ods.Angle(0.2)).replace(receipts={"kl": {}, "held_out": {}})
    assessor = Assessor(model, tokenizer, contrast)
    answers = iter(outcomes)
    monkeypatch.setattr(assessor, "assess", lambda *_: next(answers))
    chosen, assessment = assessor.with_fluent_dose(steering)
    change = chosen.dose.amount / 0.2
    assert 0.5 <= change < 1.0 if factor == "less" else change == pytest.approx(factor)
    assert assessment is outcomes[kept]
    assert list(answers) == []
    assert set(chosen.receipts) == ({"held_out"} if kept else {"kl", "held_out"})
