"""Tuning: damage and effect are what they say, and the choice obeys what was asked."""

import json
import math
import warnings
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.helpers import models as tiny
from torch import nn

import odesteer as ods
from odesteer.evaluation.judges import Judge, Score
from odesteer.evaluation.selection import Trial, Tuned, effect
from odesteer.evaluation.selection.result import Goal, choose, judged, pareto_front
from odesteer.evaluation.statistics import Interval
from odesteer.extraction import packing
from odesteer.extraction.score_texts import (
    Damage,
    LayerCache,
    baselines,
    measure_damage,
)
from odesteer.methods.samples import Samples
from odesteer.models.batching import pad
from odesteer.models.hooks.attach import scoring
from odesteer.models.layers import find_layers

TRAINED = {"hpr", "re-control", "truthflow"}  # once a fold


def contrast(groups: int = 12, seed: int = 0, good: str = "good", bare: bool = False):
    """Answers that end in "good good" against "bad bad", two to a prompt."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(groups):
        words = [tiny.WORDS[int(i)] for i in torch.randint(0, 13, (7,), generator=generator)]
        for start in (3, 5):
            stem = f"{words[start]} {words[start + 1]}"
            row = {"positive": f"{stem} {good} {good}", "negative": f"{stem} bad bad"}
            row |= {"group": f"g{number}"} if bare else {"prompt": " ".join(words[:3])}
            rows.append(row)
    return ods.Contrast.from_rows(rows)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return tiny.model()


@pytest.fixture(scope="module")
def tuned(net: nn.Module) -> Tuned:
    return ods.tune(net, tiny.tokenizer(), contrast(), "caa", max_kl=0.1)


def texts(*lengths: tuple[int, int]) -> list[packing.GivenText]:
    """Texts of random tokens, by length of prompt and answer."""
    rows = [tiny.prompt(sum(pair), seed=i)[0].tolist() for i, pair in enumerate(lengths)]
    return [
        packing.GivenText(row[:start], row[start:])
        for row, (start, _) in zip(rows, lengths, strict=True)
    ]


# ---- damage


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_dose_zero_does_exactly_no_damage(name: str) -> None:
    zero = tiny.quadratic(layer=2).with_strength(ods.Angle(0.0))
    [none] = measure_damage(tiny.model(name), texts((5, 4), (3, 6), (1, 1)), [zero])
    assert none == Damage(0.0, 0.0, 1.0, 11)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_damage_is_that_of_a_steered_model_that_says_the_same_words(name: str) -> None:
    net, written = tiny.model(name), texts((5, 4), (3, 6), (1, 2))
    steerings = [tiny.quadratic(layer=1), tiny.constant(layer=2, strength=0.3)]
    found = measure_damage(net, written, steerings)
    for steering, one in zip(steerings, found, strict=True):
        divergence, surprise = [], []
        for text in written:
            log_p = word_by_word(net, text)
            with steering.attach(net):
                log_q = word_by_word(net, text)
            # torch's argument order is KL(target || input).
            each = nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
            divergence += each.tolist()
            places = torch.arange(len(text.answer))
            surprise += (log_p - log_q)[places, text.answer].tolist()
        assert one.kl == pytest.approx(np.mean(divergence), rel=1e-3)
        assert one.kl_95 == pytest.approx(np.quantile(divergence, 0.95), rel=1e-3)
        assert one.perplexity_ratio == pytest.approx(math.exp(np.mean(surprise)), rel=1e-3)
        assert one.tokens == 12
        assert one.kl > 1e-3


def word_by_word(net: nn.Module, text: packing.GivenText) -> torch.Tensor:
    """log p of each word of the answer as a generation makes them: one at a time, cached."""
    rows, cache, ids = [], None, torch.tensor([text.prompt])
    with torch.no_grad():
        for token in text.answer:
            output = net(input_ids=ids, past_key_values=cache, use_cache=True)
            rows.append(output.logits[0, -1].log_softmax(dim=-1))
            cache, ids = output.past_key_values, torch.tensor([[token]])
    return torch.stack(rows)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_blocks_below_the_steered_one_are_replayed_to_the_bit(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, written = tiny.model(name), texts((5, 4), (3, 6))
    steering = tiny.quadratic(layer=2)
    ran = []
    hooks = [
        block.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, block in enumerate(find_layers(net))
    ]
    rows = [packing.PromptWithAnswers(text.prompt, [text.answer]) for text in written]
    [baseline] = baselines(net, rows, [steering], packed=False)
    replayed = baseline.run(steering, block=3)
    assert ran == [0, 1, 2, 3, 2, 3]
    with monkeypatch.context() as patch:
        patch.setattr(LayerCache, "replayed", lambda *_: nullcontext())
        full = baseline.run(steering, block=3)
    assert ran[6:] == [0, 1, 2, 3]
    for hook in hooks:
        hook.remove()
    assert torch.equal(replayed.log_q, full.log_q)
    assert replayed.hidden is not None and torch.equal(replayed.hidden, full.hidden)
    # As a user would run it: the whole texts, all positions, no cache.
    ids, mask = pad([text.prompt + text.answer for text in written], left=True)
    places = (mask.cumsum(dim=1) - 1).clamp_min(0)
    lengths = torch.tensor([ids.shape[1] - len(text.answer) for text in written])
    with steering.attach(net), scoring(net, lengths), torch.no_grad():
        logits = net(input_ids=ids, attention_mask=mask, position_ids=places).logits
    for slot, log_q in zip(
        baseline.batch.slots, replayed.log_q.split(baseline.batch.lengths), strict=True
    ):
        expected = logits[slot.prompt, -1 - len(log_q) : -1].log_softmax(dim=-1)
        torch.testing.assert_close(log_q, expected)


def test_a_large_vocabulary_makes_small_batches() -> None:
    rows = [packing.PromptWithAnswers(*text) for text in [([1] * 3, [[2] * 4])] * 9]
    sizes = [
        [len(batch.slots) for batch in packing.batches(rows, False, vocabulary)]
        for vocabulary in (1, 2**21)
    ]
    assert sizes == [[9], [4, 4, 1]]


def test_a_continuation_is_greedy_and_ends_with_the_end_token(net: nn.Module) -> None:
    prompts = [tiny.prompt(length, seed=length)[0].tolist() for length in (2, 5)]
    full = packing.continuations(net, tiny.tokenizer(), prompts, 6)
    for text in full:
        assert len(text.answer) == 6
        assert word_by_word(net, text).argmax(dim=-1).tolist() == text.answer
    end = full[1].answer[2]
    ending = tiny.model()
    ending.generation_config.eos_token_id = end
    cut = packing.continuations(ending, tiny.tokenizer(), prompts, 6)
    assert cut[1].answer == full[1].answer[: full[1].answer.index(end) + 1]


def test_a_bare_text_is_halved_and_a_response_keeps_its_last_token() -> None:
    tokenizer = tiny.tokenizer()
    rows = ods.Contrast.from_pairs(["the cat sat on"], [("the cat", "")])
    bare = packing.as_text(tokenizer, rows.positive[0], "auto")
    empty = packing.as_text(tokenizer, rows.negative[0], "auto")
    assert bare is not None and (len(bare.prompt), len(bare.answer)) == (3, 2)
    assert empty is not None and (len(empty.prompt), len(empty.answer)) == (2, 1)
    lone = ods.Contrast.from_pairs(["the"], ["cat"]).positive[0]
    assert packing.as_text(tiny.tokenizer(bos=False), lone, "auto") is None


# ---- effect


def test_the_probe_is_the_calibrated_classifier_of_two_gaussians() -> None:
    samples = Samples(*tiny.two_gaussians(400, 400), groups=np.arange(800))
    probe = effect.fit_probe(3, samples)
    log_odds = probe.log_odds(torch.cat(tiny.two_gaussians(2000, 2000, seed=1)))
    assert (
        (log_odds > 0) == np.repeat([True, False], 2000)
    ).mean() > 0.76  # the best possible is 0.788
    # For N(c + s, I) and N(c - s, I) the log-odds are 2 s . (a - c), of variance 4 ||s||^2.
    assert log_odds[:2000].std() == pytest.approx(1.6, rel=0.2)


def test_the_effect_counts_in_standard_deviations_of_the_unsteered_read_out() -> None:
    raw = np.array([[0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 5.0], [0.0, np.nan, 2.0, np.nan]])
    plain, moved, gaps = Numbers().outcomes(raw)
    assert (plain.value, plain.effect.mean) == (1.5, 0.0)
    assert moved.effect.mean == pytest.approx(2.0 / np.std(raw[0], ddof=1))
    assert (gaps.value, gaps.effect.mean, gaps.effect.n) == (1.0, 0.0, 2)
    with pytest.raises(ValueError, match="unsteered model to compare with"):
        Numbers().outcomes(raw * np.nan)


class Numbers(effect.EffectMeter):
    groups = ("a", "a", "b", "b")

    def raw(self, steerings, read):
        raise NotImplementedError

    def value(self, raw):
        return raw

    def facts(self, raw):
        return {}


class Badness(Judge):
    """How many words are bad (lower is better); it has no opinion on the prompts it skips."""

    name = "badness"
    unit = "words"
    higher_is = "worse"
    agreement = "exact"

    def __init__(self, skip: str = "-"):
        self.skip = skip
        self.seen: list[str] = []

    def score(self, cases, generations):
        prompts = [case.question for case in cases]
        self.seen += prompts
        return [
            Score(None, "skipped")
            if prompt.startswith(self.skip)
            else Score(float(text.count("bad") + 0.1 * len(text.split())))
            for prompt, text in zip(prompts, generations, strict=True)
        ]


def test_a_judge_says_by_itself_in_which_direction_is_better(net: nn.Module) -> None:
    asked = ["the cat", "a dog sat", "the bird flew on"]
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the choice
        result = ods.tune(
            net,
            tiny.tokenizer(),
            contrast(),
            "caa",
            layers=[1],
            doses=[ods.Angle(0.3), ods.Angle(1.0)],
            judge=(judge := Badness(skip="a dog")),
            prompts=asked,
            target=-1.0,
        )
    assert torch.equal(torch.get_rng_state(), before)
    assert set(asked) <= set(judge.seen)
    assert result.facts["readout"] | {"auc": 0} == {
        "kind": "judge",
        "name": "badness",
        "unit": "words",
        "sign": -1,
        "auc": 0,
        "unscored": 3,
    }
    assert result.wanted.target == "badness <= -1"
    for trial in result.rows[1:]:
        lower = trial.value < result.rows[0].value
        assert (trial.effect.mean > 0) == lower or trial.effect.mean == 0


# ---- the choice


def trial(effect: float, kl_95: float, layer: int | None = 1, value: float = 0.5) -> Trial:
    spread = Interval(effect, effect - 0.1, effect + 0.1, 10)
    return Trial(layer, ods.Angle(kl_95), value, spread, kl_95 / 3, kl_95, 1.0 + kl_95)


TRIALS = [
    trial(0.0, 0.0, None, 0.1),
    trial(1.0, 0.2, 1, 0.4),
    trial(0.8, 0.3, 2, 0.5),
    trial(2.0, 0.6, 2, 0.7),
    trial(3.0, 1.5, 1, 0.95),
    trial(2.5, 2.0, 2, 0.96),
]


def test_without_a_target_the_largest_effect_within_the_budget_is_taken() -> None:
    wanted = Goal(1.0, 2.0)
    choice = choose(judged(TRIALS, wanted), wanted)
    assert (choice.trial.kl_95, choice.met) == (0.6, True)
    assert choice.reason.startswith("Layer 2 at angle 0.6 has the largest effect")


def test_with_a_target_the_least_damage_that_reaches_it_is_taken() -> None:
    wanted = Goal(1.0, 2.0, value=0.4)
    assert choose(judged(TRIALS, wanted), wanted).trial.kl_95 == 0.2
    wanted = Goal(1.0, 2.0, effect=1.5)
    assert choose(judged(TRIALS, wanted), wanted).trial.kl_95 == 0.6
    wanted = Goal(1.0, 2.0, value=0.05)
    assert choose(judged(TRIALS, wanted), wanted).trial.layer is None


def test_a_target_out_of_reach_gives_the_closest_and_says_what_would_reach_it() -> None:
    wanted = Goal(1.0, 2.0, value=0.9)
    choice = choose(judged(TRIALS, wanted), wanted)
    assert (choice.trial.kl_95, choice.met) == (0.6, False)
    assert "the closest is layer 2 at angle 0.6" in choice.reason
    assert "layer 1 at angle 1.5 would, at KL p95 1.5" in choice.reason
    wanted = Goal(1.0, 2.0, value=0.99)
    assert "no trial does at any damage" in choose(judged(TRIALS, wanted), wanted).reason


def test_the_budget_is_for_both_damages() -> None:
    feasible = [t.feasible for t in judged(TRIALS, Goal(1.0, 1.25))]
    assert feasible == [True, True, False, False, False, False]
    # Numbers that are none are beyond every budget.
    broken = TRIALS[1]._replace(kl_95=math.nan), TRIALS[1]._replace(value=math.nan)
    assert not any(t.feasible for t in judged(broken, Goal(math.inf, math.inf)))


def test_the_unsteered_model_is_left_where_nothing_helps() -> None:
    wanted = Goal(1.0, 2.0)
    harmful = [TRIALS[0], trial(-1.0, 0.2)]
    choice = choose(judged(harmful, wanted), wanted)
    assert (choice.trial.layer, choice.met) == (None, False)


def test_the_front_holds_what_no_other_trial_beats() -> None:
    assert [t.kl_95 for t in pareto_front(TRIALS)] == [0.0, 0.2, 0.6, 1.5]
    # Equal damage: only the larger effect; equal effect: only the smaller damage.
    tied = [trial(1.0, 0.2), trial(2.0, 0.2), trial(2.0, 0.3)]
    assert pareto_front(tied) == [tied[1]]


def test_a_larger_budget_never_gives_a_smaller_effect(tuned: Tuned) -> None:
    effects = []
    for max_kl in np.linspace(0.0, 0.5, 30):
        wanted = Goal(float(max_kl), math.inf)
        effects.append(choose(judged(tuned.rows, wanted), wanted).trial.effect.mean)
    assert effects == sorted(effects)
    assert effects[0] == 0.0 < effects[-1]


# ---- tune


def test_the_chosen_trial_is_within_the_budget_and_on_the_front(tuned: Tuned) -> None:
    assert tuned.met
    assert tuned.chosen.kl_95 <= 0.1
    assert tuned.chosen.feasible and tuned.chosen.pareto
    assert tuned.chosen in tuned.rows
    assert (tuned.steering.layer, tuned.steering.dose) == (tuned.chosen.layer, tuned.chosen.dose)
    origin = tuned.rows[0]
    assert (origin.layer, origin.kl, origin.kl_95, origin.perplexity_ratio) == (None, 0, 0, 1)
    assert origin.effect[:3] == (0, 0, 0)
    assert len(tuned.rows) == 1 + 2 * len(effect.DOSES)


def test_a_target_is_reached_with_the_least_damage(net: nn.Module, tuned: Tuned) -> None:
    middle = sorted(t.value for t in tuned.rows if t.kl_95 <= 0.1)[-3]
    again = ods.tune(net, tiny.tokenizer(), contrast(), "caa", max_kl=0.1, target=middle)
    # The same seed: the same numbers, whatever is asked of them.
    assert [t[:-2] for t in again.rows] == [t[:-2] for t in tuned.rows]
    assert again.met and again.chosen.value >= middle
    cheaper = [t for t in again.rows if t.kl_95 < again.chosen.kl_95]
    assert all(t.value < middle for t in cheaper)


def test_the_tuned_steering_never_saw_the_held_out_groups(net: nn.Module) -> None:
    tokenizer, whole = tiny.tokenizer(), contrast()
    fit_part, held_out = whole.split(effect.FIT_SHARE, seed=0)
    assert not {*fit_part.groups[0]} & {*held_out.groups[0]}
    other = replace(
        whole,
        positive=(*fit_part.positive, *(replace(e, response="tree") for e in held_out.positive)),
        negative=(*fit_part.negative, *(replace(e, response="moon") for e in held_out.negative)),
    )
    only = ods.Contrast(fit_part.positive, fit_part.negative)
    settings = {"layers": [1], "doses": [ods.Angle(0.1)]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of read-outs of nonsense
        results = [ods.tune(net, tokenizer, c, "odesteer", **settings) for c in (whole, other)]
    expected = ods.fit(net, tokenizer, only, "odesteer", layer=1, tokens="last")
    rows = torch.randn(5, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    first = expected.with_strength(ods.Angle(0.1))(rows)
    for result in results:
        assert torch.equal(result.steering.with_strength(ods.Angle(0.1))(rows), first)
    # And what is measured is what was held out.
    assert results[0].rows[1].effect != results[1].rows[1].effect


def test_what_is_read_steered_is_the_late_block_at_the_last_token(
    net: nn.Module, tuned: Tuned, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = []
    fit_probe = effect.fit_probe
    monkeypatch.setattr(
        effect, "fit_probe", lambda *args: probes.append(fit_probe(*args)) or probes[0]
    )
    settings = {"layers": [1], "doses": [ods.Angle(0.2)]}
    result = ods.tune(net, tiny.tokenizer(), contrast(), "caa", **settings)
    _, held_out = contrast().split(effect.FIT_SHARE, seed=0)
    log_odds = []
    for example in held_out.negative:
        text = packing.as_text(tiny.tokenizer(), example, "auto")
        ids = torch.tensor([text.prompt + text.answer])
        with (
            result.steering.with_strength(ods.Angle(0.2)).attach(net),
            scoring(net, torch.tensor([len(text.prompt)])),
        ):
            outputs, _ = tiny.block_outputs(net, ids)
        log_odds.append(probes[0].log_odds(outputs[3][0, -1]))
    assert result.facts["readout"]["block"] == probes[0].block == 3
    expected = torch.tensor(np.array(log_odds)).sigmoid().mean()
    assert result.rows[1].value == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("method", ods.METHODS)
def test_every_method_can_be_tuned(net: nn.Module, method: str, tmp_path) -> None:
    layers = None if method == "iti-heads" else [1]
    chosen = ods.METHODS[method](**({"min_steps": 80} if method in TRAINED else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a barrier or a choice may be poor on so few rows
        result = ods.tune(
            net, tiny.tokenizer(), contrast(), chosen, layers=layers, doses=[ods.Angle(0.2)]
        )
    assert all(math.isfinite(x) for t in result.rows for x in (t.value, t.kl_95, t.effect.mean))
    moves = result.rows[1].kl_95 > 0
    assert moves == (method != "none")
    result.steering.save_pretrained(tmp_path / "steering")
    loaded = ods.load(tmp_path / "steering")
    part = loaded.parts[0] if isinstance(loaded, ods.Steering) else loaded
    assert part.receipts["tune"] == json.loads(json.dumps(result.facts))


def test_several_layers_and_negative_doses_are_candidates_too(net: nn.Module) -> None:
    result = ods.tune(
        net,
        tiny.tokenizer(),
        contrast(),
        "caa",
        layers=[[0, 1], -3],
        doses=[ods.Angle(0.1), -0.1],
    )
    assert [t.layer for t in result.rows] == [None, (0, 1), (0, 1), 1, 1]
    assert result.rows[2].effect.mean < 0 < result.rows[1].effect.mean


def test_bare_texts_serve_as_their_own_prompts(net: nn.Module) -> None:
    settings = {"layers": [1], "doses": [ods.Angle(0.2)]}
    result = ods.tune(net, tiny.tokenizer(), contrast(bare=True), "caa", **settings)
    assert result.facts["n"] == {"texts": 8, "prompts": 16, "tokens": 16 * effect.NEW_TOKENS}
    assert result.rows[1].kl_95 > 0


def test_a_prompt_with_many_answers_is_continued_once(tuned: Tuned) -> None:
    assert tuned.facts["split"]["held_out"] == {"groups": 4, "positive": 8, "negative": 8}
    assert tuned.facts["n"] == {"texts": 8, "prompts": 4, "tokens": 4 * effect.NEW_TOKENS}


def test_the_receipt_comes_back_from_disk_and_tells_everything(tuned: Tuned, tmp_path) -> None:
    tuned.steering.save_pretrained(tmp_path)
    receipt = ods.Steering.from_pretrained(tmp_path).receipts["tune"]
    assert receipt == json.loads(json.dumps(tuned.facts, allow_nan=False))
    assert receipt["chosen"]["layer"] == tuned.chosen.layer
    assert len(receipt["trials"]) == len(tuned.rows)
    assert (receipt["seed"], receipt["max_kl"]) == (0, 0.1)
    # The ranking of the layers stands where `fit` writes it, and `inspect` shows it.
    assert set(tuned.steering.receipts["layers"]) == {"0", "1"}
    infinite = Goal(math.inf, 2.0).to_json()
    assert json.loads(json.dumps(infinite, allow_nan=False))["max_kl"] is None


def test_the_table_marks_the_choice_and_the_plot_is_a_picture(tuned: Tuned, tmp_path) -> None:
    lines = tuned.table().splitlines()
    assert [line for line in lines if line.startswith(">")] == [
        line for line in lines if f"{tuned.chosen.value:.3f}" in line and line.startswith(">")
    ]
    assert len(lines) == 1 + len(tuned.pareto)
    assert len(tuned.table(every=True).splitlines()) == 1 + len(tuned.rows)
    path = tuned.plot(tmp_path / "new" / "tune.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["tune.png"]


def test_tuning_leaves_nothing_behind(net: nn.Module) -> None:
    settings = {"layers": [1], "doses": [ods.Angle(0.2)]}
    stages: list[int] = []

    def stop_at(limit: float):
        def progress(done: int, total: int) -> None:
            stages.append(done)
            assert done <= total == 1000
            if done > limit:
                raise KeyboardInterrupt

        return progress

    find_layers(net)[2].train()
    training = [module.training for module in net.modules()]
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    for limit in (0, 300, 500, 900, math.inf):
        stages.clear()
        if limit == math.inf:
            ods.tune(net, tiny.tokenizer(), contrast(), "caa", progress=stop_at(limit), **settings)
            assert stages == sorted(stages) and stages[-1] == 1000
        else:
            with pytest.raises(KeyboardInterrupt):
                ods.tune(
                    net, tiny.tokenizer(), contrast(), "caa", progress=stop_at(limit), **settings
                )
        assert tiny.hooked(net) == []
        assert not any("forward" in vars(module) for module in net.modules())
        assert "generate" not in vars(net)
        assert [module.training for module in net.modules()] == training
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    net.eval()


def test_a_target_out_of_reach_warns_once_and_says_not_met(net: nn.Module) -> None:
    with pytest.warns(UserWarning, match=r"within the budget .* reaches P\(positive\)") as caught:
        result = ods.tune(
            net,
            tiny.tokenizer(),
            contrast(),
            "caa",
            layers=[1],
            doses=[ods.Angle(0.05)],
            target=0.99,
        )
    assert len(caught) == 1
    assert not result.met
    assert result.reason == str(caught[0].message)


def test_a_read_out_that_cannot_tell_the_classes_apart_is_said_to_be_useless(
    net: nn.Module,
) -> None:
    same = contrast(good="bad")
    with pytest.warns(UserWarning, match="hardly tells held-out positives from negatives"):
        ods.tune(net, tiny.tokenizer(), same, "caa", layers=[1], doses=[ods.Angle(0.1)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "cca"}, "Did you mean 'caa'"),
        ({"layers": [7]}, "4 decoder blocks"),
        ({"layers": []}, "name at least one block"),
        ({"layers": [3]}, "no later one is left to read the effect from"),
        ({"doses": [0.0]}, "at least one that is not 0"),
        ({"target": 1.5}, r"between 0 and 1 \(exclusive\); got 1.5"),
        ({"target": 0.5, "target_effect": 1.0}, "give one of them"),
        ({"max_kl": -1.0}, "at least 0 nats"),
        ({"max_perplexity_ratio": 0.9}, "at least 1"),
        ({"max_kl": math.nan}, "got nan"),
        ({"prompts": []}, "prompts is empty"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(
    net: nn.Module, settings: dict, words: str
) -> None:
    def progress(_done: int, _total: int) -> None:
        raise AssertionError("something was read")

    with pytest.raises(ValueError, match=words):
        ods.tune(net, tiny.tokenizer(), contrast(), **({"progress": progress} | settings))


def test_too_few_groups_to_hold_any_out_say_how_many_there_are(net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"holds out a third of the groups.*has 1 group:"):
        ods.tune(net, tiny.tokenizer(), contrast(groups=1))


def test_a_judge_without_prompts_asks_for_them(net: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"judge badness.*give prompts=\[...\]"):
        ods.tune(net, tiny.tokenizer(), contrast(bare=True), "caa", judge=Badness())
