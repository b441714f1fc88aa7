"""The main job on a real language model: SmolLM2-135M-Instruct, from the wheel or the cache."""

from pathlib import Path
from typing import Any

import pytest
import torch
from experiments.barrier_quality import BOLD, DEFAULT, measure

import odesteer as ods
from odesteer.evaluation import demo
from odesteer.models.loading import SMOLLM2, load_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    return load_model(SMOLLM2)


@pytest.fixture(scope="module")
def fitted(smollm2: tuple[Any, Any]) -> ods.Steering:
    model, tokenizer = smollm2
    fit_set = half_of(demo.contrast()[0])
    positive, negative = ods.activations(model, tokenizer, fit_set, 14)
    return ods.ODESteer().fit(positive, negative, layer=14, groups=fit_set.groups)


def half_of(contrast: ods.Contrast) -> ods.Contrast:
    """Every other topic: reading takes most of the time."""
    return contrast.subset(sorted(set(contrast.groups[0]))[::2])


def test_the_prompt_becomes_these_tokens(smollm2: tuple[Any, Any]) -> None:
    from odesteer.models.chat_template import encode

    _, tokenizer = smollm2
    ids = encode(tokenizer, [{"role": "system", "content": "Be brief."}, _user("Hi")])
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert tokenizer.decode(ids) == expected + "<|im_start|>assistant\n"
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    plain = encode(tokenizer, "Why?", "So.", template="Q: {prompt}\nA: {response}")
    assert tokenizer.decode(plain) == "Q: Why?\nA: So."


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_activations_match_the_reference_library(
    smollm2: tuple[Any, Any], golden: dict[str, torch.Tensor]
) -> None:
    # The golden queries are answers of two TruthfulQA questions at block 13; find them.
    from odesteer.evaluation.benchmarks import TruthfulQA

    model, tokenizer = smollm2
    examples = [e for e, _ in TruthfulQA.load().answers if e.group in ("57", "631")]
    contrast = ods.Contrast(tuple(examples), tuple(examples), "Q: {prompt}\nA: {response}")
    rows, _ = ods.activations(model, tokenizer, contrast, 13)
    nearest = torch.cdist(golden["queries"], rows).amin(dim=1)
    assert (nearest / golden["queries"].norm(dim=1)).max() < 1e-4


def test_a_held_out_negative_becomes_positive(
    smollm2: tuple[Any, Any], fitted: ods.Steering
) -> None:
    model, tokenizer = smollm2
    _, negative = ods.activations(model, tokenizer, half_of(demo.contrast()[1]), 14)
    assert fitted.probability(negative).mean() < 0.15
    moved = fitted.with_strength(ods.Target(0.9, budget=ods.Angle(0.6)))(negative)
    assert fitted.probability(moved).min() >= 0.9 - 1e-4


def test_steering_changes_the_mood_of_generations(
    smollm2: tuple[Any, Any], fitted: ods.Steering
) -> None:
    model, tokenizer = smollm2
    backend = ods.TransformersBackend(model, tokenizer)
    chats = [
        [{"role": "system", "content": demo.SYSTEM}, _user(prompt)]
        for prompt in demo.test_prompts()[::2]
    ]
    sampling = ods.Sampling(max_new_tokens=20)
    from odesteer.evaluation.case import Case
    from odesteer.evaluation.judges import VaderMood

    def mood(texts: list[str]) -> float:
        scores = VaderMood().score([Case(text) for text in texts], texts)
        return sum(score.value or 0.0 for score in scores) / len(texts)

    unsteered = backend.generate(chats, None, sampling)
    steered = backend.generate(chats, fitted.with_strength(ods.Angle(0.25)), sampling)
    assert mood(steered) < mood(unsteered) - 0.2
    assert backend.generate(chats[:2], fitted.with_strength(0.0), sampling) == unsteered[:2]


def test_a_batch_of_steerings_says_what_each_says_alone(
    smollm2: tuple[Any, Any], fitted: ods.Steering
) -> None:
    model, tokenizer = smollm2
    backend = ods.TransformersBackend(model, tokenizer)
    prompts = demo.test_prompts()[:3]
    steerings = [None, fitted.with_strength(ods.Angle(0.2)), fitted.with_strength(ods.Angle(-0.2))]
    sampling = ods.Sampling(max_new_tokens=12)
    together = backend.generate(prompts, steerings, sampling)
    alone = [backend.generate([p], s, sampling)[0] for p, s in zip(prompts, steerings, strict=True)]
    assert together == alone
    assert len(set(together)) == 3


def test_the_steering_of_another_width_is_refused(
    smollm2: tuple[Any, Any], fitted: ods.Steering
) -> None:
    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    narrow = ods.CAA().fit(rows + 1, rows).replace(layer=3)
    with pytest.raises(ValueError, match="width 6"):
        narrow.attach(smollm2[0])


def test_the_default_barrier_is_as_good_as_the_best_single_setting(data_dir: Path) -> None:
    # The block that the README names, and 2,000 answers; `make barriers` measures three, on all.
    table = measure((BOLD, DEFAULT), layers=(13,), test_questions=250)
    bold, default = table[BOLD][13], table[DEFAULT][13]
    assert default.auc >= bold.auc - 0.01
    assert default.log_loss <= bold.log_loss + 0.01
    assert default.ece <= 0.05
