"""Activations are what the model computes, whatever the batch, the padding and the mode."""

import warnings

import pytest
import torch
from tests.helpers.models import (
    ARCHITECTURES,
    DEPTH,
    VOCABULARY,
    WIDTH,
    WORDS,
    block_outputs,
    hooked,
    model,
    tokenizer,
)

import odesteer as ods
from odesteer.extraction.extract import extract
from odesteer.models.chat_template import encode

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def texts(n, seed=0):
    """n texts of 1 to 14 words: longer than the tiny Gemma's window."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 15, (n,), generator=generator).tolist()
    picks = [torch.randint(len(WORDS), (t,), generator=generator).tolist() for t in lengths]
    return [" ".join(WORDS[i] for i in row) for row in picks]


POSITIVE, NEGATIVE = texts(5), texts(4, seed=1)
CONTRAST = ods.Contrast.from_pairs(POSITIVE, NEGATIVE)


def outputs(net, text, layer):
    """[t, d] of one text by itself.

    They are `hidden_states[layer + 1]`; only the last of those is taken after the final norm.
    """
    ids = torch.tensor([tokenizer()(text).input_ids])
    rows = block_outputs(net, ids)[0][layer][0]
    if layer < DEPTH - 1:
        with torch.no_grad():
            states = net(input_ids=ids, output_hidden_states=True).hidden_states
        assert torch.equal(states[layer + 1][0], rows)
    return rows


@every_architecture
@pytest.mark.parametrize("layer", [0, 1, DEPTH - 1])
def test_they_are_the_blocks_output_at_the_last_token(name, layer):
    net = model(name)
    both = ods.activations(net, tokenizer(), CONTRAST, layer)
    for rows, some in zip(both, (POSITIVE, NEGATIVE), strict=True):
        assert rows.shape == (len(some), WIDTH)
        assert rows.dtype == torch.float32
        expected = torch.stack([outputs(net, text, layer)[-1] for text in some])
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=1e-4)


@every_architecture
def test_their_mean_is_over_the_real_tokens(name):
    net = model(name)
    positive, _ = ods.activations(net, tokenizer(), CONTRAST, 2, tokens="mean")
    expected = torch.stack([outputs(net, text, 2).mean(dim=0) for text in POSITIVE])
    torch.testing.assert_close(positive, expected, atol=1e-5, rtol=1e-4)


@every_architecture
@pytest.mark.parametrize("tokens", ["last", "mean"])
def test_neither_the_padding_side_nor_the_batch_matters(name, tokens):
    net, left, right = model(name), tokenizer(), tokenizer()
    left.padding_side, right.padding_side = "left", "right"
    reference = ods.activations(net, right, CONTRAST, 1, tokens=tokens, batch_tokens=1)
    for tok, size in ((left, 1), (left, 10**6), (right, 40), (right, 10**6)):
        some = ods.activations(net, tok, CONTRAST, 1, tokens=tokens, batch_tokens=size)
        torch.testing.assert_close(some, reference, atol=1e-5, rtol=1e-4)


def test_a_tokenizer_without_a_padding_token_will_do():
    tok = tokenizer()
    tok.pad_token = None
    one = ods.activations(model(), tok, CONTRAST, 1)
    torch.testing.assert_close(one, ods.activations(model(), tokenizer(), CONTRAST, 1))


def test_negative_layers_count_from_the_end():
    net = model()
    for layer in range(DEPTH):
        one = ods.activations(net, tokenizer(), CONTRAST, layer)
        two = ods.activations(net, tokenizer(), CONTRAST, layer - DEPTH)
        assert torch.equal(one[0], two[0])
        assert torch.equal(one[1], two[1])


def test_several_layers_in_one_pass_are_the_same_as_one_by_one():
    net = model()
    together = ods.activations(net, tokenizer(), CONTRAST, [2, 0, -1])
    assert set(together) == {2, 0, DEPTH - 1}
    for layer, (positive, negative) in together.items():
        one = ods.activations(net, tokenizer(), CONTRAST, layer)
        assert torch.equal(positive, one[0])
        assert torch.equal(negative, one[1])


def test_a_layer_asked_for_twice_is_given_once():
    together = ods.activations(model(), tokenizer(), CONTRAST, [1, 1 - DEPTH])
    assert set(together) == {1}


@every_architecture
def test_nothing_above_the_deepest_layer_runs(name):
    net = model(name)
    blocks = next(m for m in net.modules() if isinstance(m, torch.nn.ModuleList))

    def fail(module, *_):
        raise AssertionError(f"{type(module).__name__} ran")

    above = [blocks[2], blocks[3], net.get_output_embeddings()]
    registered = [module.register_forward_pre_hook(fail) for module in above]
    ods.activations(net, tokenizer(), CONTRAST, [1, 0])
    with pytest.raises(AssertionError, match="ran"):
        ods.activations(net, tokenizer(), CONTRAST, [2, 0])
    for hook in registered:
        hook.remove()
    assert not hooked(net)


def test_no_logits_are_computed_for_the_last_layer_either():
    net = model()

    def fail(*_):
        raise AssertionError("logits")

    net.get_output_embeddings().register_forward_pre_hook(fail)
    ods.activations(net, tokenizer(), CONTRAST, -1)


@every_architecture
def test_the_model_is_left_as_it_was(name):
    net = model(name)
    net.train()
    next(iter(net.children())).eval()
    flags = [m.training for m in net.modules()]
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    ods.activations(net, tokenizer(), CONTRAST, [0, 2])
    assert flags == [m.training for m in net.modules()]
    assert not hooked(net)
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_the_model_is_left_as_it_was_when_the_middle_fails():
    net = model()
    net.train()
    with pytest.raises(IndexError):
        extract(net, [[1, 2], [VOCABULARY + 7]], [1])
    assert not hooked(net)
    assert all(m.training for m in net.modules())


def test_dropout_does_not_reach_the_activations():
    net = model("gpt2")
    net.train()
    assert any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in net.modules())
    one, two = (ods.activations(net, tokenizer(), CONTRAST, 2)[0] for _ in range(2))
    assert torch.equal(one, two)


def test_a_bfloat16_model_gives_float32_rows():
    net = model()
    expected, _ = ods.activations(net, tokenizer(), CONTRAST, 1)
    rows, _ = ods.activations(net.bfloat16(), tokenizer(), CONTRAST, 1)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, expected, atol=0.3, rtol=0.1)


def test_progress_counts_up_to_all_rows():
    calls = []
    ods.activations(
        model(), tokenizer(), CONTRAST, 0, batch_tokens=30, progress=lambda *c: calls.append(c)
    )
    done = [rows for rows, _ in calls]
    assert len(calls) > 1
    assert done == sorted(set(done))
    assert calls[-1] == (9, 9)


@pytest.mark.parametrize("layer", [DEPTH, -DEPTH - 1, 99])
def test_a_layer_out_of_range_is_answered_with_the_range(layer):
    with pytest.raises(ValueError, match=rf"Layer {layer} is out of range.*4 decoder blocks"):
        ods.activations(model(), tokenizer(), CONTRAST, layer)


def test_an_empty_text_has_no_activation():
    contrast = ods.Contrast.from_pairs(["the cat", ""], ["a dog", "a"])
    with pytest.raises(ValueError, match="empty"):
        ods.activations(model(), tokenizer(bos=False), contrast, 0)


def test_an_unknown_choice_of_tokens_is_refused():
    with pytest.raises(ValueError, match="'last', 'mean', 'response' or 'prompt'; got 'first'"):
        ods.activations(model(), tokenizer(), CONTRAST, 0, tokens="first")


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="no list of decoder blocks"):
        ods.activations(torch.nn.Linear(2, 2), tokenizer(), CONTRAST, 0)


# ---- which tokens


ROWS = ods.Contrast.from_pairs(
    [("the cat", "sat on mat"), ("a dog is", "good")], [("the bird", "ran"), ("a tree", "bad mat")]
)


def spans(net, row, layer):
    """[t, d] of one (prompt, response) row by itself, and where its response starts."""
    prompt = encode(tokenizer(), row.prompt)
    ids = encode(tokenizer(), row.prompt, row.response)
    return block_outputs(net, torch.tensor([ids]))[0][layer][0], len(prompt)


@every_architecture
@pytest.mark.parametrize("size", [1, 10**6])
def test_each_choice_of_tokens_reads_those_tokens(name, size):
    net = model(name)
    expected = {
        "last": lambda rows, start: rows[-1],
        "mean": lambda rows, start: rows.mean(dim=0),
        "response": lambda rows, start: rows[start:].mean(dim=0),
        "prompt": lambda rows, start: rows[start - 1],
    }
    for tokens, pick in expected.items():
        both = ods.activations(net, tokenizer(), ROWS, 2, tokens=tokens, batch_tokens=size)
        for rows, some in zip(both, (ROWS.positive, ROWS.negative), strict=True):
            one_by_one = torch.stack([pick(*spans(net, row, 2)) for row in some])
            torch.testing.assert_close(rows, one_by_one, atol=1e-5, rtol=1e-4)


def test_bare_texts_have_no_prompt_to_read():
    with pytest.raises(ValueError, match=r'reads the end of each prompt.*read tokens="last"'):
        ods.activations(model(), tokenizer(), CONTRAST, 0, tokens="prompt")


def test_fit_reads_the_tokens_asked_for_and_records_them():
    class Responses(ods.CAA):
        tokens = "response"

    net, many = (
        model(),
        ods.Contrast.from_pairs(
            [("the cat", text) for text in texts(8, 1)], [("a dog", text) for text in texts(8, 2)]
        ),
    )
    for tokens, recorded in ((None, "response"), ("mean", "mean"), ("prompt", "prompt")):
        steering = ods.fit(net, tokenizer(), many, method=Responses(), layer=1, tokens=tokens)
        rows = ods.activations(net, tokenizer(), many, 1, tokens=recorded)
        alone = Responses().fit(*rows, layer=1, groups=many.groups)
        assert torch.equal(steering(rows[1]), alone(rows[1]))
        assert steering.receipts["tokens"] == recorded
        assert steering.receipts["truncated"] == 0
    auto = ods.fit(net, tokenizer(), many, method=ods.CAA(), tokens="mean")
    rows = ods.activations(net, tokenizer(), many, auto.layer, tokens="mean")
    assert torch.equal(auto(rows[1]), ods.CAA().fit(*rows)(rows[1]))
    assert auto.receipts["tokens"] == "mean"


def test_prompts_that_are_the_same_in_both_classes_are_nothing_to_learn_from():
    same = ods.Contrast.from_pairs([("the cat", "sat")] * 2, [("the cat", "ran")] * 2)
    with pytest.raises(ValueError, match=r"both classes have the same prompts.*Give prompts that"):
        ods.fit(model(), tokenizer(), same, method="caa", layer=1, tokens="prompt")


# ---- texts that are too long


def test_a_text_longer_than_max_tokens_loses_its_beginning_and_this_is_said():
    net = model()
    with pytest.warns(UserWarning, match=r"3 of 4 texts are longer than 4 tokens \(max_tokens\)"):
        cut, _ = ods.activations(net, tokenizer(), ROWS, 1, max_tokens=4)
    # <s> the cat | sat on mat, and <s> a dog is | good: the first token and the last three.
    kept = [[1, *encode(tokenizer(), None, text)[1:]] for text in ("sat on mat", "dog is good")]
    expected = [block_outputs(net, torch.tensor([ids]))[0][1][0, -1] for ids in kept]
    torch.testing.assert_close(cut, torch.stack(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("tokens", "limit"), [("response", 5), ("response", 3), ("prompt", 3)])
def test_what_is_read_of_a_cut_text_is_still_of_its_response_or_prompt(tokens, limit):
    net = model()
    with pytest.warns(UserWarning, match=f"longer than {limit} tokens"):
        rows, _ = ods.activations(net, tokenizer(), ROWS, 1, tokens=tokens, max_tokens=limit)
    words = {5: "cat sat on mat", 3: "on mat"}[limit] if tokens == "response" else "dog is"
    ids = encode(tokenizer(), None, words)
    assert len(ids) == limit
    outputs_ = block_outputs(net, torch.tensor([ids]))[0][1][0]
    own = {"response": min(3, limit - 1), "prompt": 1}[tokens]
    row = rows[1] if tokens == "prompt" else rows[0]
    torch.testing.assert_close(row, outputs_[-own:].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_the_models_context_bounds_every_text():
    net, long = model("gpt2"), " ".join(WORDS * 8)
    assert net.config.max_position_embeddings == 128 < len(tokenizer()(long).input_ids)
    contrast = ods.Contrast.from_pairs([long, "a cat"], ["a dog", "a bird"])
    with pytest.warns(UserWarning, match=r"1 of 4 .* 128 tokens \(the context of this model\)"):
        steering = ods.fit(net, tokenizer(), contrast, method="caa", layer=1)
    assert steering.receipts["truncated"] == 1
    with pytest.warns(UserWarning, match=r"longer than 128 tokens \(the context"):
        ods.activations(net, tokenizer(), contrast, 1, max_tokens=140)


def test_texts_that_fit_are_not_cut():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = ods.activations(model(), tokenizer(), ROWS, 1, max_tokens=6)
    assert torch.equal(whole[0], ods.activations(model(), tokenizer(), ROWS, 1)[0])
    with pytest.raises(ValueError, match="max_tokens must be at least 2; got 1"):
        ods.activations(model(), tokenizer(), ROWS, 1, max_tokens=1)
