"""Tuning on a real language model: a choice that also shows in what the model writes."""

from typing import Any

import pytest

import odesteer as ods
from odesteer.evaluation import demo
from odesteer.evaluation.judges import VaderMood
from odesteer.models.loading import SMOLLM2, load_model

pytestmark = pytest.mark.slow


def test_a_choice_is_feasible_found_in_minutes_and_shows_in_what_the_model_writes() -> None:
    # One test: whichever process runs it, it tunes once.
    smollm2 = load_model(SMOLLM2)
    whole, _ = demo.contrast()
    # Every third topic; a dose that some layers bear and one that none does: each trial reads all
    # held-out texts twice.
    topics, doses = sorted(set(whole.groups[0]))[::3], [ods.Angle(x) for x in (0.2, 0.3)]
    tuned = ods.tune(*smollm2, whole.subset(topics), doses=doses)
    a_feasible_choice_with_a_positive_effect_is_found(tuned)
    it_says_how_long_it_took_which_is_minutes(tuned)
    more_of_a_dose_does_more_and_damages_more(tuned)
    the_choice_shows_in_what_the_model_writes_about_unseen_topics(smollm2, tuned)


def a_feasible_choice_with_a_positive_effect_is_found(tuned: ods.Tuned) -> None:
    print(tuned.table(every=True), tuned.reason, sep="\n")
    assert tuned.met
    assert tuned.chosen.layer is not None
    assert tuned.chosen.effect.low > 1.0
    assert tuned.chosen.kl_95 <= tuned.wanted.max_kl
    assert tuned.chosen.perplexity_ratio <= tuned.wanted.max_perplexity_ratio
    assert tuned.facts["readout"]["auc"] > 0.95


def it_says_how_long_it_took_which_is_minutes(tuned: ods.Tuned) -> None:
    print(f"tuned in {tuned.facts['seconds']} seconds")
    # Three minutes on two idle cores; three times as much where others use them too.
    assert 0 < tuned.facts["seconds"] < 3 * 180


def more_of_a_dose_does_more_and_damages_more(tuned: ods.Tuned) -> None:
    for layer in {trial.layer for trial in tuned.rows[1:]}:
        own = [trial for trial in tuned.rows if trial.layer in (None, layer)]
        assert [t.effect.mean for t in own] == sorted(t.effect.mean for t in own)
        assert [t.kl for t in own] == sorted(t.kl for t in own)


def the_choice_shows_in_what_the_model_writes_about_unseen_topics(
    smollm2: tuple[Any, Any], tuned: ods.Tuned
) -> None:
    chats = [
        [{"role": "system", "content": demo.SYSTEM}, {"role": "user", "content": prompt}]
        for prompt in demo.test_prompts()[::2]
    ]
    backend = ods.TransformersBackend(*smollm2)
    sampling = ods.Sampling(max_new_tokens=20)

    def mood(steering: Any) -> float:
        texts = backend.generate(chats, steering, sampling)
        return sum(score.value or 0.0 for score in VaderMood().score(texts, texts)) / len(texts)

    unsteered, steered = mood(None), mood(tuned.steering)
    print(f"mood {unsteered:+.2f} -> {steered:+.2f} (VADER, -1 gloomy to +1 bright)")
    assert steered < unsteered - 0.1
