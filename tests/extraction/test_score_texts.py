"""Packed answers are as likely as answers by themselves, steered or not."""

import math

import pytest
import torch
from tests.helpers import models as tiny

from odesteer.backends import TransformersBackend
from odesteer.evaluation.benchmarks.truthfulqa import TEMPLATE
from odesteer.extraction.packing import GivenText, PromptWithAnswers, batches
from odesteer.extraction.score_texts import (
    compare_prompts,
    measure_damage,
    score_texts,
    takes_packed,
)
from odesteer.models.chat_template import encode_parts
from odesteer.testing import ARCHITECTURES

QUESTIONS = {
    "the cat sat": ["on the mat", "under a tree", "good"],
    "was a dog good": ["bad bad bad bad", "the dog was good"],
    "the moon": ["is", "flew", "ran on the tree", "was under the mat"],
}
TOKENIZER = tiny.tokenizer()
STEERINGS = [tiny.constant(1, 0.5), tiny.quadratic(2), None]


def prompts_with_answers() -> list[PromptWithAnswers]:
    made = []
    for question, answers in QUESTIONS.items():
        parts = [encode_parts(TOKENIZER, question, answer, TEMPLATE) for answer in answers]
        made.append(PromptWithAnswers(parts[0][0], [answer for _, answer in parts]))
    return made


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
@pytest.mark.parametrize("steering", STEERINGS, ids=["constant", "quadratic", "none"])
@pytest.mark.parametrize("positions", ["last+generated", "all-prompt[:1]-generated[:1]"])
def test_packed_answers_have_the_log_probability_that_the_engine_gives_them(
    name, steering, positions
):
    net = tiny.model(name)
    packed = takes_packed(net, prompts_with_answers())
    assert packed == (name != "gemma2")  # its window is shorter than these rows
    scores = score_texts(
        net, prompts_with_answers(), [steering], packed=packed, positions=positions
    )[0]
    backend = TransformersBackend(net, TOKENIZER, template=TEMPLATE, positions=positions)
    for answer_scores, (question, answers) in zip(scores, QUESTIONS.items(), strict=True):
        expected = backend.logprobs([question] * len(answers), answers, steering)
        for one, tokens in zip(answer_scores, expected, strict=True):
            assert one.tokens == len(tokens)
            assert one.logprob == pytest.approx(float(tokens.sum()), abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mamba"])
def test_a_condition_does_not_depend_on_the_others(name):
    net = ARCHITECTURES[name].build(0)
    packed = takes_packed(net, prompts_with_answers())
    assert packed == (name != "mamba")
    together = score_texts(net, prompts_with_answers(), STEERINGS, packed=packed)
    alone = [score_texts(net, prompts_with_answers(), [one], packed=packed)[0] for one in STEERINGS]
    assert together == alone


def test_kl_is_what_tuning_measures_and_displacement_is_that_of_the_block():
    net, steering = tiny.model(), tiny.constant(1, 0.5)
    scores = score_texts(net, prompts_with_answers(), [steering, steering.with_strength(0.0)])
    texts = [
        GivenText(one.prompt, answer) for one in prompts_with_answers() for answer in one.answers
    ]
    [measured] = measure_damage(net, texts, [steering])
    steered, still = ([score for row in rows for score in row] for rows in scores)
    tokens = sum(score.tokens for score in steered)
    assert measured.kl == pytest.approx(sum(score.kl for score in steered) / tokens, rel=1e-4)
    shift = sum(score.unsteered - score.logprob for score in steered) / tokens
    assert measured.perplexity_ratio == pytest.approx(math.exp(shift), rel=1e-4)
    assert all(one.kl == one.displacement == 0 < abs(one.logprob) for one in still)
    # By hand, of the first answer: every read position moves by the same vector.
    ids = torch.tensor([texts[0].prompt + texts[0].answer[:-1]])
    blocks, _ = tiny.block_outputs(net, ids)
    a = blocks[1][0, len(texts[0].prompt) - 1 :]
    step = 0.5 * steering.field(a[:1]).norm()
    assert steered[0].displacement == pytest.approx(float((step / a.norm(dim=-1)).sum()), rel=1e-4)


def test_another_prompt_is_compared_with_the_plain_one():
    net = tiny.model()
    plain = prompts_with_answers()
    longer = [
        PromptWithAnswers([*row.prompt[:1], 9, 12, *row.prompt[1:]], row.answers) for row in plain
    ]
    compared = compare_prompts(net, plain, longer)
    for scores, after, before in zip(
        compared,
        score_texts(net, longer, [None])[0],
        score_texts(net, plain, [None])[0],
        strict=True,
    ):
        assert [x.logprob for x in scores] == pytest.approx([x.logprob for x in after], abs=1e-4)
        assert [x.unsteered for x in scores] == pytest.approx([x.logprob for x in before], abs=1e-4)
        assert all(x.kl > 0 for x in scores)


def test_batches_hold_every_answer_once_and_no_more_than_they_may():
    texts = [
        PromptWithAnswers([1] * (3 + i % 5), [[2] * (1 + k) for k in range(4)]) for i in range(400)
    ]
    for packed in (True, False):
        packed_batches = list(batches(texts, packed, 2**15))
        slots = [tuple(slot) for batch in packed_batches for slot in batch.slots]
        assert sorted(slots) == [(i, k) for i in range(400) for k in range(4)]
        assert all(batch.ids.numel() <= 2048 for batch in packed_batches)
        assert all(len(batch.targets) * 2**15 <= 2**25 for batch in packed_batches)
