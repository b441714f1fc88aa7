"""Language-model judges equal their docstrings, on tiny random models."""

import pytest
import torch
from tests.helpers import models as tiny
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from odesteer.backends import TransformersBackend
from odesteer.evaluation.case import Case
from odesteer.evaluation.judges import (
    InfoLlama,
    KLToUnsteered,
    Perplexity,
    Reward,
    Score,
    ToxicityClassifier,
    TruthLlama,
)
from odesteer.evaluation.judges.models import class_logits
from odesteer.models.chat_template import encode

TEXTS = ["the cat sat", "bird", "", "the dog ran on the mat", "a bad tree"]
CASES = [Case("is the cat"), Case("was a bird"), Case("the"), Case("on the moon"), Case("is it")]


def config(**more):
    return LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        initializer_range=0.3,
        **{"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 6} | more,
    )


def saved(folder, model, chat=False):
    tokenizer = tiny.tokenizer(chat=chat)
    tokenizer.add_tokens([" yes", "True:", "Helpful:", "\n"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    torch.manual_seed(0)
    return saved(tmp_path_factory.mktemp("causal"), LlamaForCausalLM(config()))


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    torch.manual_seed(1)
    model = LlamaForSequenceClassification(config(num_labels=1))
    return saved(tmp_path_factory.mktemp("reward"), model, chat=True)


@pytest.mark.parametrize(("kind", "asks"), [(TruthLlama, "True:"), (InfoLlama, "Helpful:")])
def test_yes_is_as_likely_as_the_model_alone_says(kind, asks, causal):
    scores = kind(causal, batch_size=3).score(CASES, TEXTS)
    model = LlamaForCausalLM.from_pretrained(causal).eval()
    tokenizer = tiny.PreTrainedTokenizerFast.from_pretrained(causal)
    yes = tokenizer.convert_tokens_to_ids(" yes")
    for case, text, score in zip(CASES, TEXTS, scores, strict=True):
        if not text:
            assert score == Score(None, "empty generation")
            continue
        ids = tokenizer(f"Q: {case.prompt}\nA: {text}\n{asks}", return_tensors="pt").input_ids
        assert ids[0, 0] == 1 and 1 not in ids[0, 1:]
        with torch.no_grad():
            expected = model(ids).logits[0, -1].softmax(-1)[yes]
        assert score.value == pytest.approx(float(expected), abs=1e-6)


def test_what_a_model_cannot_read_is_not_cut_but_unscored(causal, reward):
    long = " ".join(["cat"] * 40)
    for judge in (TruthLlama(causal), Reward(reward), Perplexity(causal)):
        good, bad = judge.score(CASES[:2], ["the cat", long])
        assert good.value is not None
        assert bad.value is None and "too long" in bad.reason and "of at most 32" in bad.reason


def test_a_model_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"Could not load the model '\./nowhere'"):
        Reward("./nowhere").score(CASES[:1], TEXTS[:1])


def test_a_reward_is_the_head_at_the_end_of_the_chat_in_any_batch(reward):
    together = Reward(reward, batch_size=5).score(CASES, TEXTS)
    alone = Reward(reward, batch_size=1).score(CASES, TEXTS)
    model = LlamaForSequenceClassification.from_pretrained(reward).eval()
    tokenizer = tiny.PreTrainedTokenizerFast.from_pretrained(reward)
    for case, text, score, same in zip(CASES, TEXTS, together, alone, strict=True):
        if not text:
            assert score == same == Score(None, "empty generation")
            continue
        turns = [{"role": "user", "content": case.prompt}, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            expected = float(model(ids).logits)
        assert score.value == pytest.approx(expected, abs=1e-5)
        assert same.value == pytest.approx(expected, abs=1e-5)


def test_rows_that_end_in_the_padding_token_are_read_to_their_end(reward):
    model = LlamaForSequenceClassification.from_pretrained(reward).eval()
    model.config.pad_token_id = 6
    rows = [[1, 8, 9, 6], [1, 8, 9, 10, 11, 6], [1, 9]]
    found = class_logits(model, rows, 3).flatten()
    model.config.pad_token_id = None
    for row, value in zip(rows, found, strict=True):
        with torch.no_grad():
            assert float(value) == pytest.approx(float(model(torch.tensor([row])).logits), abs=1e-5)


def test_a_classifier_is_no_reward_model(tmp_path):
    folder = saved(tmp_path, LlamaForSequenceClassification(config(num_labels=2)), chat=True)
    with pytest.raises(ValueError, match="has 2 labels and a chat template"):
        Reward(folder).score(CASES[:1], TEXTS[:1])


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_a_label_is_as_likely_as_the_classifier_says(problem, tmp_path):
    torch.manual_seed(2)
    model = LlamaForSequenceClassification(
        config(num_labels=3, problem_type=problem, id2label={0: "fine", 1: "toxic", 2: "threat"})
    ).eval()
    folder = saved(tmp_path, model)
    scores = ToxicityClassifier(folder).score(CASES, TEXTS)
    tokenizer = tiny.PreTrainedTokenizerFast.from_pretrained(folder)
    several = problem.startswith("multi")
    for text, score in zip(TEXTS, scores, strict=True):
        if text:
            with torch.no_grad():
                logits = model(tokenizer(text, return_tensors="pt").input_ids).logits[0]
            expected = (logits.sigmoid() if several else logits.softmax(-1))[1]
            assert score.value == pytest.approx(float(expected), abs=1e-5)
    with pytest.raises(ValueError, match=r"Unknown label .* 'toxicity'\. Did you mean 'toxic'"):
        ToxicityClassifier(folder, label="toxicity").score(CASES, TEXTS)


def test_perplexity_is_the_mean_surprise_of_the_generation_alone(causal):
    scores = Perplexity(causal).score(CASES, TEXTS)
    model = LlamaForCausalLM.from_pretrained(causal).eval()
    tokenizer = tiny.PreTrainedTokenizerFast.from_pretrained(causal)
    for case, text, score in zip(CASES, TEXTS, scores, strict=True):
        if not text:
            assert score.value is None
            continue
        ids = tokenizer(f"{case.prompt} {text}", return_tensors="pt").input_ids
        with torch.no_grad():
            logp = model(ids).logits[0].log_softmax(-1)
        t = len(text.split())
        chosen = logp[:-1].gather(-1, ids[0, 1:, None])[-t:]
        assert score.value == pytest.approx(-float(chosen.mean()), abs=1e-5)


def test_perplexity_under_a_model_in_memory_uses_its_template():
    backend = TransformersBackend(tiny.model(), tiny.tokenizer(), template="Q: {prompt} {response}")
    (score,) = Perplexity(backend=backend).score([Case("the cat")], ["sat on"])
    (logp,) = backend.logprobs(["the cat"], ["sat on"])
    assert score.value == pytest.approx(-float(logp.mean()))


def test_no_divergence_without_a_steering_and_more_with_more_of_it():
    model, tokenizer = tiny.model(), tiny.tokenizer()

    def judge(steering):
        return KLToUnsteered(model, tokenizer, steering, "plain").score(CASES, TEXTS)

    none, zero, some, more = (
        judge(steering)
        for steering in (None, *(tiny.constant(strength=s) for s in (0.0, 0.5, 2.0)))
    )
    scored = [i for i, text in enumerate(TEXTS) if text]
    assert none[2] == more[2] == Score(None, "empty generation")
    for i in scored:
        assert none[i].value == 0.0
        assert zero[i].value == pytest.approx(0.0, abs=1e-9)
        assert 0.0 < some[i].value < more[i].value
    assert not tiny.hooked(model)


def test_the_divergence_is_that_of_the_two_next_token_distributions():
    model, tokenizer, steering = tiny.model(), tiny.tokenizer(), tiny.constant(strength=2.0)
    case, text = Case("the cat"), "sat on the mat"
    (score,) = KLToUnsteered(model, tokenizer, steering, "plain").score([case], [text])
    ids = torch.tensor([encode(tokenizer, case.prompt, text, "plain")])
    start = len(encode(tokenizer, case.prompt, None, "plain"))
    with torch.no_grad():
        p = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        with steering.attach(model, positions=torch.arange(ids.shape[1])[None] >= start - 1):
            q = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
    assert score.value == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-4)


def test_a_generation_is_read_as_the_template_writes_it():
    model, tokenizer = tiny.model(), tiny.tokenizer()
    tokenizer.add_tokens([" "])  # the template's space is a token that is said before the word
    backend = TransformersBackend(model, tokenizer, template="{prompt} {response}")
    spaced, empty = backend.logprobs(["cat", "cat"], ["sat", ""])
    ids = torch.tensor([tokenizer("cat sat").input_ids])
    with torch.no_grad():
        logp = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).flatten()
    assert ids.shape[1] == 4 and len(empty) == 0
    assert torch.allclose(spaced, logp[-2:], atol=1e-5)


@pytest.mark.slow
def test_a_real_model_finds_sense_likelier_than_the_same_words_in_disorder():
    case = Case("The weather was bad, so")
    sense, disorder = Perplexity("smollm2").score(
        [case] * 2, ["we stayed at home and read a book.", "book home read at we a and stayed."]
    )
    assert sense.value + 1.0 < disorder.value
    assert sense.value < 3.5
