"""Every benchmark keeps its texts to learn from apart from those judged."""

import json
from dataclasses import asdict

import pytest

from odesteer.backends import Sampling
from odesteer.evaluation.benchmarks import (
    BENCHMARKS,
    Benchmark,
    Fold,
    Persona,
    RealToxicityPrompts,
    Sentiment,
    TruthfulQA,
    UltraFeedback,
    load_benchmark,
)
from odesteer.evaluation.benchmarks.base import cross_validation, evenly
from odesteer.evaluation.benchmarks.real_toxicity_prompts import Jigsaw
from odesteer.evaluation.judges import JUDGES
from odesteer.evaluation.metrics import answers

by_name = pytest.mark.parametrize("name", BENCHMARKS)
PARTS = ("fit", "validation", "test")


def texts(benchmark: Benchmark, fold: Fold, part):
    """What a part learns from: of RealToxicityPrompts' test part, nothing."""
    if benchmark.name == "real-toxicity-prompts" and part == "test":
        return set()
    contrast = benchmark.contrast(fold, part)
    return {(e.prompt, e.response) for e in (*contrast.positive, *contrast.negative)}


@by_name
def test_folds_are_the_same_for_the_same_seed_and_survive_json(name, local):
    benchmark = load_benchmark(name, local, verify=False)
    folds = benchmark.folds(seed=3)
    assert folds == load_benchmark(name, local, verify=False).folds(seed=3)
    assert folds != benchmark.folds(seed=4)
    stored = json.loads(json.dumps([fold.as_dict() for fold in folds]))
    assert tuple(map(Fold.from_dict, stored)) == folds


@by_name
def test_what_is_tested_was_never_learnt_from(name, local):
    benchmark = load_benchmark(name, local, verify=False)
    for fold in benchmark.folds():
        learnt = [texts(benchmark, fold, part) for part in PARTS]
        asked = [{case.id for case in benchmark.examples(fold, part)} for part in PARTS]
        for parts in (learnt, asked):
            assert sum(map(len, parts)) == len(set().union(*parts))
        assert asked[2] and learnt[0]


@by_name
def test_a_case_is_plain_data_and_named_once(name, local):
    benchmark = load_benchmark(name, local, verify=False)
    for fold in benchmark.folds():
        cases = benchmark.examples(fold)
        assert len({case.id for case in cases}) == len(cases)
        assert all(case.question.strip() and case.group for case in cases)
        json.dumps([asdict(case) for case in cases])


@by_name
def test_settings_are_ones_that_the_library_knows(name, local):
    benchmark = load_benchmark(name, local, verify=False)
    Sampling(**benchmark.sampling)
    assert benchmark.files and all(len(sha) == 64 for sha in benchmark.files.values())
    assert {*benchmark.judges, *benchmark.offline_judges, *benchmark.wanted} <= set(JUDGES)
    assert benchmark.instruction and benchmark.source and benchmark.metrics


def test_a_wrong_name_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"Unknown benchmark 'truthfulq'\. Did you mean 'truthfulqa"
    ):
        load_benchmark("truthfulq")


def test_a_fold_cannot_test_on_what_it_learnt_from():
    with pytest.raises(ValueError, match="share ids"):
        Fold(("a", "b"), (), ("b",))


def test_cross_validation_tests_every_group_once():
    groups = [str(i) for i in range(31)]
    folds = cross_validation(groups, 3, seed=0)
    tested = [group for fold in folds for group in fold.test]
    assert sorted(tested) == sorted(groups)
    for fold in folds:
        assert {*fold.fit, *fold.validation, *fold.test} == set(groups)
        assert len(fold.validation) == pytest.approx(0.2 * (31 - len(fold.test)), abs=1)
    with pytest.raises(ValueError, match="2 groups are too few"):
        cross_validation(["a", "b"], 2, seed=0)


def test_truthfulqa_has_references_and_choices(local):
    benchmark = TruthfulQA.load(local, verify=False)
    case = benchmark.cases[3]
    assert case.prompt == "What is 3?"
    assert (case.references, case.distractors) == (("3", "it is 3"), ("4", "30"))
    assert case.choices["mc1"] == (("3", True), ("4", False))
    assert answers(case) == ("3", "4", "it is 3")
    (fold, other) = benchmark.folds()
    contrast = benchmark.contrast(fold)
    assert {e.group for e in contrast.positive} == set(fold.fit)
    assert not set(fold.test) & set(other.test)


def test_an_answer_ends_where_the_model_asks_the_next_question(local):
    benchmark = TruthfulQA.load(local, verify=False)
    assert benchmark.trim("It is 3.\nQ: What is 4?\nA: 4") == "It is 3."
    assert benchmark.trim("It is 3. ") == "It is 3."


def test_prompts_are_toxic_enough_likely_enough_and_spread(local):
    likely = {f"prompt-{i}": (900.0 if i % 2 else 20.0) for i in range(100)}
    benchmark = RealToxicityPrompts.load(local, verify=False, perplexity=likely)
    cases = benchmark.eligible()
    assert [case.id for case in cases] == [f"prompt-{i}" for i in range(52, 100, 2)]
    assert not any("perplexity" in note for note in benchmark.notes)
    unfiltered = RealToxicityPrompts.load(local, verify=False)
    assert any("perplexity" in note for note in unfiltered.notes)
    assert any("binary labels" in note for note in unfiltered.notes)


def test_benign_comments_are_what_is_wanted(local):
    benchmark = load_benchmark("real-toxicity-prompts", local, verify=False)
    contrast = benchmark.contrast(benchmark.folds()[0])
    assert all(int(e.response.split()[1].strip("\n,")) % 2 == 0 for e in contrast.positive)
    assert len(contrast.positive) == len(contrast.negative) == 18  # of 20; 2 for choices


def test_rows_are_drawn_evenly_and_a_short_bin_leaves_its_share():
    scores = [0.05] * 100 + [0.55] * 100 + [0.95] * 4
    places = evenly(scores, 44, seed=0)
    counts = [sum(scores[i] == value for i in places) for value in (0.05, 0.55, 0.95)]
    assert counts == [20, 20, 4]
    assert places == sorted(set(places)) == evenly(scores, 44, seed=0) != evenly(scores, 44, 1)
    assert evenly(scores, 1000, seed=0) == list(range(204))
    assert evenly([0.0, 1.0], 2, seed=0) == [0, 1]
    with pytest.raises(ValueError, match="from 0 to 1"):
        evenly([1.5], 1, seed=0)


def test_a_preference_is_learnt_only_where_the_scores_differ(local):
    benchmark = UltraFeedback.load(local, verify=False)
    # "train 0" is a test prompt as well
    assert len(benchmark.train) == 44 - 11 - 1
    (fold,) = benchmark.folds()
    contrast = benchmark.contrast(fold)
    assert contrast.is_paired
    assert contrast.rewards == ([8.0] * len(fold.fit), [5.0] * len(fold.fit))
    assert [case.prompt for case in benchmark.examples(fold)].count("train 0") == 1
    assert any("the protocol has 10500" in note for note in benchmark.notes)


def test_a_persona_answers_yes_and_no_equally_often(local):
    benchmark = Persona.load(local, verify=False)
    assert {case.references for case in benchmark.cases} == {("Yes",), ("No",)}
    fold = benchmark.folds()[0]
    contrast = benchmark.contrast(fold)
    assert contrast.is_paired
    assert contrast.positive[0].prompt == contrast.negative[0].prompt
    with pytest.raises(ValueError, match="Unknown trait 'agreeable'"):
        Persona.load(local, trait="agreeable")


def test_the_sentences_ask_chat_models_as_a_friend_and_others_plainly():
    fold = Sentiment.load().folds()[0]
    asked = Sentiment.load().examples(fold)[0]
    assert [part["role"] for part in asked.prompt] == ["system", "user"]
    assert Sentiment(system=None).examples(fold)[0].prompt == asked.question
    contrast = Sentiment.load().contrast(fold)
    assert contrast.is_paired
    assert {e.prompt for e in contrast.positive} == {None}


# ---- the Hub


def test_truthfulqa_is_the_same_from_the_hub(local, hub):
    there = TruthfulQA.from_hub(str(hub / "truthful_qa"))
    here = TruthfulQA.load(local, verify=False)
    assert there.folds(1) == here.folds(1)
    assert [asdict(c) | {"prompt": c.prompt.strip()} for c in here.cases] == [
        asdict(c) for c in there.cases
    ]
    assert len(there.answers) == len(here.answers)
    assert set(there.files) != set(here.files)


def test_graded_comments_are_spread_over_their_bins(hub):
    comments = Jigsaw.from_hub(str(hub / "civil_comments"))
    assert comments.graded and not comments.notes
    fit, held_out = comments.draw((50, 10), seed=0)
    assert len(fit) == 100 and len(held_out) == 20 and not set(fit) & set(held_out)
    toxicity = dict(zip(comments.ids, comments.toxicity, strict=True))
    counts = [sum(round(toxicity[i] * 10 - 0.5) == b for i in fit) for b in range(10)]
    assert counts == [10] * 10
    benchmark = RealToxicityPrompts.from_hub(str(hub / "rtp"), comments)
    assert len(benchmark.eligible()) == 49  # toxicity .51 to .99


def test_preferences_and_personas_come_from_the_hub(local, hub):
    there = UltraFeedback.from_hub(str(hub / "ultrafeedback"))
    assert there.test == UltraFeedback.load(local, verify=False).test[: len(there.test)]
    persona = Persona.from_hub(str(hub / "evals"))
    assert persona.cases == Persona.load(local, verify=False).cases


def test_a_data_set_that_cannot_be_had_is_named(tmp_path, hub):
    with pytest.raises(ValueError, match=r"Could not load the data set '.*nowhere' \(train\)"):
        Jigsaw.from_hub(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="has no column text, toxicity"):
        Jigsaw.from_hub(str(hub / "rtp"))


# ---- the files that results are about


def test_another_file_is_refused_in_one_line(local):
    with pytest.raises(ValueError, match="SHA-256 begins") as caught:
        TruthfulQA.load(local)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="ODESTEER_DATA"):
        TruthfulQA.load(local / "truthfulqa")
    (local / "truthfulqa" / "mc_task.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"No 'mc_task.json'"):
        TruthfulQA.load(local, verify=False)


def test_the_real_files_have_the_known_checksums_and_sizes(data_dir):
    truthfulqa = TruthfulQA.load(data_dir)
    assert len(truthfulqa.cases) == 817
    assert len(truthfulqa.answers) == 6209
    assert [len(fold.test) for fold in truthfulqa.folds()] == [409, 408]
    # MC1's answers are among MC2's: one pass over them serves both.
    for case in truthfulqa.cases:
        assert {text for text, _ in case.choices["mc1"]} <= {t for t, _ in case.choices["mc2"]}
    toxicity = RealToxicityPrompts.load(data_dir)
    (fold,) = toxicity.folds()
    assert len(toxicity.examples(fold)) == 500
    assert len(toxicity.examples(fold, "validation")) == 100
    contrast = toxicity.contrast(fold)
    assert len(contrast.positive) == len(contrast.negative) == 5000
    held_out = toxicity.contrast(fold, "validation")
    assert len(held_out.positive) == len(held_out.negative) == 500
    (fold,) = UltraFeedback.load(data_dir).folds()
    assert [len(part) for part in (fold.fit, fold.validation, fold.test)] == [847, 42, 200]
    assert len(Persona.load(data_dir).cases) == 1000
    assert len(Persona.load(data_dir, trait="corrigible").cases) == 340
