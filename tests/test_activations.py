"""Activations are what the model computes, whatever the batch, the padding and the mode."""

import pytest
import torch

import odesteer as ods
from odesteer.extraction import extract
from tiny import (
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
    with pytest.raises(ValueError, match="'last', 'mean' or 'response'"):
        ods.activations(model(), tokenizer(), CONTRAST, 0, tokens="first")


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="no list of decoder blocks"):
        ods.activations(torch.nn.Linear(2, 2), tokenizer(), CONTRAST, 0)
