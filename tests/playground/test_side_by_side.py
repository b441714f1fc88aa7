"""Two texts side by side are those of the library, and nothing stays on the model."""

import math
from dataclasses import replace
from itertools import zip_longest

import pytest
import torch
from tests.helpers import models as tiny
from tests.playground import small

import odesteer as ods
from odesteer.models.chat_template import encode
from odesteer.playground.side_by_side import (
    GeneratedText,
    GeneratedToken,
    own_sampling,
    read_again,
    write,
)

PROMPT = "the cat sat on the mat"


def last(pairs):
    *_, pair = pairs
    return pair


def beside(shared, prompts, steering, positions="last+generated", **sampling):
    """The unsteered text and one steered text as they grow."""
    sampling = ods.Sampling(**{"max_new_tokens": 8, **sampling})
    return write(shared, prompts, ((), (steering,)), positions, sampling)


def written(shared, steering, positions="last+generated", **sampling):
    ids = encode(shared.tokenizer, PROMPT)
    return last(beside(shared, (ids, ids), steering, positions, **sampling))


@pytest.mark.parametrize(
    "sampling", [{"repetition_penalty": 1.5}, {"temperature": 1e-4, "top_p": 0.5}], ids=str
)
def test_sampling_does_what_it_does_in_generate(sampling):
    shared = small.shared()
    plain, steered = written(shared, tiny.quadratic(), **sampling)
    backend = ods.TransformersBackend(shared.model, shared.tokenizer)
    chosen = ods.Sampling(max_new_tokens=8, **sampling)
    assert plain.text.strip() == backend.generate([PROMPT], None, chosen)[0]
    assert steered.text.strip() == backend.generate([PROMPT], tiny.quadratic(), chosen)[0]


def test_the_sampling_of_a_page_is_the_models_own_or_one_without_loops():
    model = small.shared().model
    assert own_sampling(model) == ods.Sampling(repetition_penalty=1.1)
    model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9)
    assert own_sampling(model) == ods.Sampling(temperature=0.6, top_p=0.9)


@pytest.mark.parametrize(
    ("tokens", "kept"),
    [
        (["A", " day", ".", " And", " then"], "A day."),
        (["He", " said", ' "', "no", '."', " Then"], 'He said "no."'),
        (["Do", ":\n", "1", ".", " Wash", " it"], "Do:\n1. Wash it"),
        (["It", " is", " 3", ".", "5", " long"], "It is 3.5 long"),
        (["One", "!", "\n\n", "Two"], "One!"),
    ],
)
def test_a_text_ends_with_a_sentence(tokens, kept):
    def text(**values):
        chosen = [GeneratedToken(each, None, None, 0.0, 0.0) for each in tokens]
        rows = [torch.zeros(1)] * len(tokens)
        return GeneratedText(chosen, list(range(len(tokens))), rows, list(rows), **values)

    shortened, ended = text(), text(ended=True)
    shortened.cut()
    ended.cut()
    assert shortened.text == kept and ended.text == "".join(tokens)
    assert len(shortened.ids) == len(shortened.tokens) == len(shortened.starts)


def test_three_sides_are_each_what_they_would_be_alone():
    shared, ids = small.shared(), encode(small.shared().tokenizer, PROMPT)
    sides = ((), (tiny.quadratic(),), (tiny.quadratic(seed=2), tiny.constant(layer=2)))
    sampling = ods.Sampling(max_new_tokens=6)
    texts = last(write(shared, (ids,) * 3, sides, sampling=sampling))
    for text, side in zip(texts, sides, strict=True):
        alone = last(write(shared, (ids, ids), ((), side or sides[1]), sampling=sampling))
        assert text.ids == alone[1 if side else 0].ids


def test_a_whole_text_is_read_where_the_steering_was_fitted():
    shared, part = small.shared(), tiny.quadratic().only
    ids = encode(shared.tokenizer, PROMPT)
    before, after = ids[:3], ids[3:]
    with torch.no_grad():
        states = shared.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    rows = states[part.layer + 1][0, 3:]
    _, last_token = read_again(shared, before, after, part)
    mean = replace(part, receipts={"tokens": "response"})
    _, response = read_again(shared, before, after, mean)
    assert last_token == pytest.approx(float(part.log_odds(rows[-1])), abs=1e-4)
    assert response == pytest.approx(float(part.log_odds(rows.mean(0))), abs=1e-4)


@pytest.mark.parametrize("positions", ["last+generated", "generated", "prompt", "all"])
@pytest.mark.parametrize("steering", [tiny.constant(strength=3.0), tiny.quadratic()])
def test_both_texts_are_those_that_generate_writes(steering, positions):
    shared = small.shared()
    plain, steered = written(shared, steering, positions)
    backend = ods.TransformersBackend(shared.model, shared.tokenizer, positions=positions)
    sampling = ods.Sampling(max_new_tokens=8)
    assert plain.text.strip() == backend.generate([PROMPT], None, sampling)[0]
    assert steered.text.strip() == backend.generate([PROMPT], steering, sampling)[0]


def test_unequal_prompts_are_written_each_by_itself():
    shared, steering = small.shared(), tiny.quadratic()
    long = encode(shared.tokenizer, f"{PROMPT} under the moon")
    short = encode(shared.tokenizer, PROMPT)
    plain, steered = last(beside(shared, (long, short), steering))
    assert plain.ids == last(beside(shared, (long, long), steering))[0].ids
    assert steered.ids == last(beside(shared, (short, short), steering))[1].ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_strength_zero_writes_the_same_text_on_both_sides(temperature):
    shared = small.shared()
    plain, steered = written(shared, tiny.quadratic().with_strength(0.0), temperature=temperature)
    assert plain.ids == steered.ids and steered.share_moved == 0.0
    assert all(token.before == token.after for token in steered.tokens)


def test_a_token_is_told_where_its_place_was_and_where_it_went():
    shared, steering = small.shared(), tiny.quadratic()
    _, steered = written(shared, steering)
    for token, place, arrival in zip_longest(steered.tokens, steered.starts, steered.ends):
        torch.testing.assert_close(steering(place), arrival, rtol=1e-4, atol=1e-5)
        assert token.before == pytest.approx(float(steering.log_odds(place)), abs=1e-4)
        assert token.after == pytest.approx(float(steering.log_odds(arrival)), abs=1e-4)
        assert token.after > token.before
        assert token.relative == pytest.approx(token.moved / float(place.norm()))
    assert steered.share_moved == 1.0


def test_the_first_token_is_written_unsteered_where_only_what_was_generated_is_steered():
    _, steered = written(small.shared(), tiny.quadratic(), "generated")
    assert [token.moved > 0 for token in steered.tokens] == [False, *[True] * 7]


def test_a_method_without_a_barrier_has_moves_and_no_values():
    _, steered = written(small.shared(), tiny.constant())
    assert steered.tokens[0].before is None and steered.tokens[0].moved > 0


def test_perplexity_is_that_of_the_unsteered_model():
    shared = small.shared()
    plain, steered = written(shared, tiny.quadratic())
    backend = ods.TransformersBackend(
        shared.model, shared.tokenizer, template="{prompt} {response}"
    )
    logprobs = backend.logprobs([PROMPT], ["the dog ran"])[0]
    ids = encode(shared.tokenizer, PROMPT, template="{prompt} {response}")
    part = tiny.quadratic().only
    found, _ = read_again(shared, ids, encode(shared.tokenizer, None, "the dog ran")[1:], part)
    assert found == pytest.approx(math.exp(-float(logprobs.mean())), rel=1e-4)
    assert plain.perplexity < steered.perplexity or plain.ids == steered.ids
    assert read_again(shared, ids, [], part) == (None, None)


def test_two_people_who_take_turns_token_by_token_write_what_each_would_alone():
    shared = small.shared()
    ids = encode(shared.tokenizer, PROMPT)
    steerings = (tiny.quadratic(), tiny.constant(strength=4.0, seed=3))
    sampling = ods.Sampling(max_new_tokens=8)
    alone = [
        last(write(shared, (ids, ids), ((), (one,)), sampling=sampling))[1].ids for one in steerings
    ]
    together = [write(shared, (ids, ids), ((), (one,)), sampling=sampling) for one in steerings]
    pairs = [None, None]
    for both in zip_longest(*together):
        for i, pair in enumerate(both):
            pairs[i] = pair or pairs[i]
    assert [pair[1].ids for pair in pairs] == alone
    assert alone[0] != alone[1]


def test_between_two_tokens_nothing_is_on_the_model():
    shared = small.shared()
    ids = encode(shared.tokenizer, PROMPT)
    for _ in write(
        shared, (ids, ids), ((), (tiny.quadratic(),)), sampling=ods.Sampling(max_new_tokens=3)
    ):
        assert not tiny.hooked(shared.model) and not shared.lock.locked()


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="The prompt is empty"):
        next(beside(small.shared(), ([], []), tiny.quadratic()))
