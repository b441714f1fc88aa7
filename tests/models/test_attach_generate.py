"""Generating under a steering: every way of decoding the same tokens gives the same tokens."""

import threading

import pytest
import torch
from tests.helpers.models import ARCHITECTURES, constant, model, padded, prompt, tokenizer
from tests.helpers.models import quadratic as steering
from transformers import GenerationConfig, pipeline

from odesteer import Angle, PerRow, Target

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
every_position = pytest.mark.parametrize(
    "positions", ["last+generated", "generated", "prompt", "all"]
)
NEW = 6
PROMPTS = [prompt(t, seed=t) for t in (4, 9, 7)]
IDS, MASK = padded(PROMPTS)
WIDTH = IDS.shape[1]


def generate(net, ids=IDS, mask=MASK, n=NEW, **how):
    """[b, n] new tokens."""
    how = {"do_sample": False} | how
    return net.generate(ids, attention_mask=mask, max_new_tokens=n, **how)[:, ids.shape[1] :]


def chosen(positions, mask, total):
    """Which of `total` tokens each position name means, written out as a mask."""
    real = torch.cat([mask, mask.new_ones(len(mask), total - mask.shape[1])], dim=1).bool()
    place = torch.arange(total)
    return real & {
        "all": place >= 0,
        "prompt": place < mask.shape[1],
        "generated": place >= mask.shape[1],
        "last+generated": place >= mask.shape[1] - 1,
    }[positions].expand_as(real)


def slowly(net, one, positions, ids=IDS, mask=MASK, n=NEW):
    """Greedy tokens by whole forward passes with an explicit mask: no cache, no tracker."""
    for _ in range(n):
        whole = torch.cat([mask, mask.new_ones(len(mask), ids.shape[1] - mask.shape[1])], dim=1)
        with (
            one.attach(net, positions=chosen(positions, mask, ids.shape[1])),
            torch.no_grad(),
        ):
            places = (whole.cumsum(dim=1) - 1).clamp_min(0)
            logits = net(ids, attention_mask=whole, position_ids=places, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids[:, mask.shape[1] :]


@every_architecture
def test_steering_changes_what_is_said_and_only_while_attached(name):
    net = model(name)
    plain = generate(net)
    with steering().attach(net):
        assert not torch.equal(generate(net), plain)
    assert torch.equal(generate(net), plain)


@every_architecture
@every_position
def test_every_position_name_means_what_it_says(name, positions):
    net = model(name)
    with steering().attach(net, positions=positions):
        tokens = generate(net)
        uncached = generate(net, use_cache=False)
    assert torch.equal(tokens, slowly(net, steering(), positions))
    assert torch.equal(uncached, tokens)


@every_architecture
@every_position
def test_a_padded_batch_says_what_each_prompt_says_alone(name, positions):
    net = model(name)
    with steering().attach(net, positions=positions):
        together = generate(net)
        alone = torch.cat([generate(net, ids, torch.ones_like(ids)) for ids in PROMPTS])
    assert torch.equal(together, alone)


def test_a_mask_that_generate_finds_by_itself_counts_too():
    net = model()
    with steering().attach(net, positions="all"):
        assert torch.equal(generate(net, mask=None), generate(net))


def test_only_the_generated_are_steered_so_the_first_new_token_is_not():
    net = model()
    with steering().attach(net, positions="generated"):
        tokens = generate(net)
    assert torch.equal(tokens[:, 0], generate(net)[:, 0])


@pytest.mark.parametrize("shape", ["[t]", "[b, t]"])
def test_a_mask_is_counted_from_the_start_of_the_padded_prompt(shape):
    net, mask = model(), chosen("last+generated", torch.ones_like(IDS), WIDTH + NEW)
    with steering().attach(net, positions=mask if shape == "[b, t]" else mask[0]):
        tokens = generate(net)
    with steering().attach(net):
        assert torch.equal(generate(net), tokens)


@every_architecture
@every_position
def test_beam_search_with_and_without_a_cache_agree(name, positions):
    net = model(name)
    with steering().attach(net, positions=positions):
        cached = generate(net, num_beams=2)
        assert torch.equal(generate(net, num_beams=2, use_cache=False), cached)
    assert not torch.equal(generate(net, num_beams=2), cached)


@pytest.mark.parametrize("how", [{"num_beams": 2}, {"num_beams": 3, "num_return_sequences": 3}])
def test_rows_are_prompts_also_with_beams(how):
    net, each = model(), how.get("num_return_sequences", 1)
    plain = generate(net, **how).reshape(3, each, NEW)
    with steering().attach(net):
        all_steered = generate(net, **how).reshape(3, each, NEW)
    with steering().attach(net, rows=[0, 2]):
        tokens = generate(net, **how).reshape(3, each, NEW)
    assert torch.equal(tokens[1], plain[1])
    assert torch.equal(tokens[[0, 2]], all_steered[[0, 2]])


def sample(net, seed, **how):
    torch.manual_seed(seed)
    return generate(net, do_sample=True, **how)


@pytest.mark.parametrize("each", [1, 3])
def test_sampling_follows_its_seed_and_the_cache_does_not_matter(each):
    net, how = model(), {"num_return_sequences": each, "top_k": 0}
    with steering().attach(net):
        one, two = sample(net, 5, **how), sample(net, 5, **how)
        assert one.shape == (3 * each, NEW)
        assert torch.equal(one, two)
        assert not torch.equal(one, sample(net, 6, **how))
        assert torch.equal(one, sample(net, 5, use_cache=False, **how))


def test_several_answers_a_prompt_are_all_steered_or_none():
    net, how = model(), {"num_return_sequences": 2}
    plain = sample(net, 5, **how)
    with steering().attach(net):
        every = sample(net, 5, **how)
    with steering().attach(net, rows=[1]):
        some = sample(net, 5, **how)
    # One draw a row from one generator: rows that see equal logits draw equal tokens.
    assert torch.equal(some[2:4], every[2:4])
    assert torch.equal(some[[0, 1, 4, 5]], plain[[0, 1, 4, 5]])


@every_architecture
@every_position
def test_a_decoding_loop_written_by_hand_equals_generate(name, positions):
    net, tokens, cache, ids, mask = model(name), [], None, IDS, MASK
    with steering().attach(net, positions=positions):
        expected = generate(net)
        for _ in range(NEW):
            places = (mask.cumsum(dim=1) - 1).clamp_min(0)[:, -ids.shape[1] :]
            with torch.no_grad():
                out = net(ids, attention_mask=mask, position_ids=places, past_key_values=cache)
            cache, ids = out.past_key_values, out.logits[:, -1:].argmax(dim=-1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            tokens.append(ids)
    assert torch.equal(torch.cat(tokens, dim=1), expected)


@every_position
@pytest.mark.parametrize("how", [{"cache_implementation": "static"}, {"prefill_chunk_size": 4}])
def test_other_ways_to_fill_the_cache_give_the_same_tokens(positions, how):
    net = model()
    with steering().attach(net, positions=positions):
        assert torch.equal(generate(net, **how), generate(net))


@every_position
def test_embeddings_instead_of_token_ids_give_the_same_tokens(positions):
    net = model()
    with steering().attach(net, positions=positions):
        embedded = net.get_input_embeddings()(IDS).detach()
        tokens = net.generate(
            inputs_embeds=embedded, attention_mask=MASK, max_new_tokens=NEW, do_sample=False
        )
        assert torch.equal(tokens, generate(net))


def test_every_way_to_hand_over_the_prompt_is_understood():
    net, how = model(), {"max_new_tokens": NEW, "do_sample": False}
    ids = PROMPTS[1]
    with steering().attach(net):
        expected = net.generate(ids, **how)
        for given in ({"input_ids": ids}, {"inputs": ids}, {"inputs": None, "input_ids": ids}):
            assert torch.equal(net.generate(**given, **how), expected)


def test_the_answer_to_a_longer_prompt_after_another_is_not_confused_by_it():
    net = model()
    with steering().attach(net):
        first = [generate(net, ids, torch.ones_like(ids)) for ids in PROMPTS]
        again = [generate(net, ids, torch.ones_like(ids)) for ids in reversed(PROMPTS)]
    for one, two in zip(first, reversed(again), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_generate(dtype):
    net = model().to(dtype)
    with steering().attach(net) as handle:
        assert generate(net).shape == (3, NEW)
    # The last token of each prompt, then every new one but the last, which is never read.
    assert handle.stats()["steered"] == 3 * NEW


def test_two_threads_on_one_attached_model_say_what_they_say_alone():
    net, results = model(), {}
    with steering().attach(net), constant(2).attach(net, positions="prompt"):
        expected = {i: generate(net, ids, torch.ones_like(ids)) for i, ids in enumerate(PROMPTS)}

        def work(i):
            ids = PROMPTS[i]
            results[i] = [generate(net, ids, torch.ones_like(ids)) for _ in range(8)]

        threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, rounds in results.items():
        assert all(torch.equal(tokens, expected[i]) for tokens in rounds)
    assert set(results) == {0, 1}


def test_a_pipeline_on_the_same_model_is_steered():
    net, tok = model(), tokenizer()
    talk = pipeline("text-generation", model=net, tokenizer=tok)
    how = {"max_new_tokens": NEW, "do_sample": False, "return_full_text": False}
    plain = talk("the cat sat", **how)
    with steering().attach(net):
        steered = talk("the cat sat", **how)
        ids = torch.tensor([tok("the cat sat").input_ids])
        assert steered[0]["generated_text"] == tok.decode(
            generate(net, ids, torch.ones_like(ids))[0], skip_special_tokens=True
        )
    assert steered != plain == talk("the cat sat", **how)


def test_continuous_batching_is_steered_where_all_tokens_are():
    from transformers import ContinuousBatchingConfig  # not in transformers 4

    net, one = model(), steering()
    with one.attach(net, positions="all"):
        found = net.generate_batch(
            [ids[0].tolist() for ids in PROMPTS],
            generation_config=GenerationConfig(
                max_new_tokens=NEW, do_sample=False, eos_token_id=-1
            ),
            continuous_batching_config=ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=32),
            progress_bar=False,
        )
        for ids, packed in zip(PROMPTS, found.values(), strict=True):
            assert packed.generated_tokens == generate(net, ids, torch.ones_like(ids))[0].tolist()


@pytest.mark.parametrize(
    ("how", "dose", "said"),
    [
        ({}, 1.0, "positions='last\\+generated'"),
        ({"positions": torch.tensor([True])}, 1.0, "a mask of positions"),
        ({"positions": "all", "rows": [0]}, 1.0, "where rows of their own"),
        ({"positions": "all"}, PerRow([1.0]), "where rows of their own"),
    ],
)
def test_texts_that_share_a_row_are_not_steered_at_a_guess(how, dose, said):
    net = model()
    packed = {"input_ids": torch.cat(PROMPTS[:2], dim=1), "cu_seq_lens_q": torch.tensor([0, 4, 13])}
    with (
        steering().with_strength(dose).attach(net, **how),
        pytest.raises(ValueError, match=said),
    ):
        net(**packed)


@every_architecture
def test_rows_of_one_batch_have_doses_of_their_own(name):
    net = model(name)
    doses = [0.0, Angle(0.9), Target(0.6, Angle(2.0))]

    def first_logits(dose):
        # Greedy rows go their own ways; the first step is of the prompts, the second of tokens
        # that are the same for every dose.
        with steering().with_strength(dose).attach(net), torch.no_grad():
            read = net(IDS, attention_mask=MASK, use_cache=True)
            ids, whole = IDS[:, -1:], torch.cat([MASK, MASK[:, -1:]], dim=1)
            step = net(ids, attention_mask=whole, past_key_values=read.past_key_values)
        return torch.stack([read.logits[:, -1], step.logits[:, -1]])

    together = first_logits(PerRow(doses))
    for i, dose in enumerate(doses):
        torch.testing.assert_close(together[:, i], first_logits(dose)[:, i], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[:, 1], first_logits(0.0)[:, 1], rtol=1e-3, atol=1e-3)


def test_beams_are_steered_with_the_dose_of_their_prompt():
    net, doses = model(), [0.0, Angle(0.9), Angle(0.3)]
    with steering().with_strength(PerRow(doses)).attach(net):
        together = generate(net, num_beams=2)
    for i, dose in enumerate(doses):
        with steering().with_strength(dose).attach(net):
            assert torch.equal(together[i], generate(net, num_beams=2)[i])
