"""Two texts side by side are those of the library, and nothing stays on the model."""

import math
from itertools import zip_longest

import pytest
import torch
from tests.helpers import models as tiny
from tests.playground import small

import odesteer as ods
from odesteer.models.chat_template import encode
from odesteer.playground.generate_pair import perplexity, write

PROMPT = "the cat sat on the mat"


def last(pairs):
    *_, pair = pairs
    return pair


def written(shared, steering, positions="last+generated", **sampling):
    ids = encode(shared.tokenizer, PROMPT)
    chosen = ods.Sampling(**{"max_new_tokens": 8, **sampling})
    return last(write(shared, (ids, ids), steering, positions, chosen))


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
    sampling = ods.Sampling(max_new_tokens=6)
    plain, steered = last(write(shared, (long, short), steering, sampling=sampling))
    assert plain.ids == last(write(shared, (long, long), steering, sampling=sampling))[0].ids
    assert steered.ids == last(write(shared, (short, short), steering, sampling=sampling))[1].ids


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
    found = perplexity(shared, ids, encode(shared.tokenizer, None, "the dog ran")[1:])
    assert found == pytest.approx(math.exp(-float(logprobs.mean())), rel=1e-4)
    assert plain.perplexity < steered.perplexity or plain.ids == steered.ids
    assert perplexity(shared, ids, []) is None


def test_two_people_who_take_turns_token_by_token_write_what_each_would_alone():
    shared = small.shared()
    ids = encode(shared.tokenizer, PROMPT)
    steerings = (tiny.quadratic(), tiny.constant(strength=4.0, seed=3))
    sampling = ods.Sampling(max_new_tokens=8)
    alone = [last(write(shared, (ids, ids), one, sampling=sampling))[1].ids for one in steerings]
    together = [write(shared, (ids, ids), one, sampling=sampling) for one in steerings]
    pairs = [None, None]
    for both in zip_longest(*together):
        for i, pair in enumerate(both):
            pairs[i] = pair or pairs[i]
    assert [pair[1].ids for pair in pairs] == alone
    assert alone[0] != alone[1]


def test_between_two_tokens_nothing_is_on_the_model():
    shared = small.shared()
    ids = encode(shared.tokenizer, PROMPT)
    for _ in write(shared, (ids, ids), tiny.quadratic(), sampling=ods.Sampling(max_new_tokens=3)):
        assert not tiny.hooked(shared.model) and not shared.lock.locked()


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="The prompt is empty"):
        next(write(small.shared(), ([], []), tiny.quadratic()))
