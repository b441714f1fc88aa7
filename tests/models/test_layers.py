"""Decoder blocks are found, and what is no residual stream is refused."""

import gc
import weakref
from collections import namedtuple

import pytest
import torch
import transformers as hf
from tests.helpers.models import WIDTH, constant, hooked, model, prompt
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

import odesteer as ods
from odesteer.extraction.extract import extract
from odesteer.models.layers import (
    attention_output,
    block_output,
    find_decoder,
    find_layers,
    hidden_size,
    input_width,
    layer_index,
    replace_output,
    use_layers,
)

SMALL = {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = SMALL | {"num_hidden_layers": 3, "vocab_size": 64, "pad_token_id": 0}


def path_of(net, module):
    return next(path for path, one in net.named_modules() if one is module)


def paths(net):
    return [path_of(net, block) for block in find_layers(net)]


def test_what_was_found_is_looked_for_again_when_the_model_is_built_otherwise() -> None:
    net = model("llama")
    whole = list(find_layers(net))
    assert list(find_layers(net)) == whole and find_decoder(net) is net.model
    net.model.layers[1] = type(whole[1])(net.config, 1)
    assert find_layers(net)[1] is net.model.layers[1] is not whole[1]
    net.model.layers = net.model.layers[:2]
    net.config.num_hidden_layers = 2
    assert list(find_layers(net)) == list(net.model.layers) and len(net.model.layers) == 2
    net.model.layers.append(whole[3])
    assert list(find_layers(net)) == list(net.model.layers) and len(net.model.layers) == 3
    moved = nn.Module()
    moved.layers = net.model.layers
    net.model.body, net.model.layers = moved, None
    assert paths(net) == ["model.body.layers.0", "model.body.layers.1", "model.body.layers.2"]


def test_attaching_again_looks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net, steering = model("llama"), constant(layer=1)
    with steering.attach(net):
        pass
    monkeypatch.setattr("odesteer.models.layers.stacks", None)
    with steering.attach(net):
        pass
    assert not hooked(net)


# ---- by structure


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(WIDTH, WIDTH)) for _ in range(9)])

    def forward(self, a):
        return a + self.experts[0](self.norm(a))


class Start(nn.Module):
    """A step before the blocks, with a part of its own."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, a):
        return self.norm(a)


class Plain(nn.Module):
    """A decoder that holds its blocks in some other way than a ModuleList, without a config."""

    def __init__(self, holder):
        super().__init__()
        self.embed = nn.Embedding(64, WIDTH)
        blocks = [Block() for _ in range(3)]
        self.adapters = nn.ModuleList([nn.Linear(WIDTH, WIDTH)] * 3)
        if holder == "names":
            for i, block in enumerate(blocks):
                setattr(self, f"block_{i}", block)
            self.run = lambda a: self.block_2(self.block_1(self.block_0(a)))
        elif holder == "sequence":
            self.body = self.run = nn.Sequential(*blocks)
        elif holder == "sequence of all":
            self.run = nn.Sequential(Start(), nn.Sequential(*blocks))
        elif holder == "dictionary":
            self.body = nn.ModuleDict({f"layer{i}": block for i, block in enumerate(blocks)})
            self.run = lambda a: self.body.layer2(self.body.layer1(self.body.layer0(a)))

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        return self.run(self.embed(input_ids))


HOLDERS = ("names", "sequence", "sequence of all", "dictionary")


@pytest.mark.parametrize("holder", HOLDERS)
def test_blocks_need_not_be_in_a_list(holder):
    net = Plain(holder).eval()
    assert [type(block) for block in find_layers(net)] == [Block] * 3
    assert find_decoder(net) is net
    seen = []
    for block in find_layers(net):
        block.register_forward_hook(lambda module, *_: seen.append(module))
    net(prompt(5))
    assert seen == list(find_layers(net))


@pytest.mark.parametrize("holder", HOLDERS)
def test_such_a_model_is_steered(holder):
    net, ids = Plain(holder).eval(), prompt(5)
    (before,) = extract(net, ids.tolist(), [1])
    with constant(1, 2.0).attach(net):
        (after,) = extract(net, ids.tolist(), [1])
    assert torch.allclose(after, constant(1, 2.0)(before), atol=1e-6)


def test_experts_are_no_blocks_though_there_are_more_of_them():
    config = hf.MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=8)
    assert paths(hf.MixtralForCausalLM(config)) == [f"model.layers.{i}" for i in range(3)]


VISION = {"num_hidden_layers": 3, "image_size": 8, "patch_size": 4, "num_attention_heads": 8}


@pytest.mark.parametrize("width", [16, 256], ids=["smaller", "larger"])
def test_the_text_decoder_is_steered_never_a_vision_tower_as_deep(width):
    vision = VISION | {"hidden_size": width, "intermediate_size": 4 * width}
    net = hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**vision),
            text_config=hf.LlamaConfig(**TEXT, num_key_value_heads=2),
        )
    )
    assert paths(net) == [f"model.language_model.layers.{i}" for i in range(3)]
    assert find_decoder(net) is net.model.language_model
    assert hidden_size(net) == WIDTH
    # GIT holds its vision tower inside the decoder.
    net = hf.GitForCausalLM(hf.GitConfig(**TEXT, vision_config=vision))
    assert paths(net) == [f"git.encoder.layer.{i}" for i in range(3)]
    assert find_decoder(net) is net.git


ENCODER_DECODER = {"encoder_layers": 2, "decoder_layers": 3, "d_model": WIDTH, "vocab_size": 64}


def test_encoder_decoders_are_refused_and_their_decoders_alone_are_not():
    config = hf.BartConfig(**ENCODER_DECODER, encoder_ffn_dim=32, decoder_ffn_dim=32)
    with pytest.raises(ValueError, match="BartForConditionalGeneration is an encoder-decoder"):
        find_layers(hf.BartForConditionalGeneration(config))
    net = hf.BartForCausalLM(config)
    assert paths(net) == [f"model.decoder.layers.{i}" for i in range(3)]
    assert hidden_size(net) == WIDTH
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
        config = hf.T5Config(d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, vocab_size=64)
        find_layers(hf.T5ForConditionalGeneration(config))


def test_the_decoder_is_what_is_called_with_tokens_not_what_holds_the_blocks():
    net = hf.BertLMHeadModel(hf.BertConfig(**TEXT, is_decoder=True)).eval()
    assert find_decoder(net) is net.bert
    ids = prompt(6)
    (before,) = extract(net, ids.tolist(), [1])
    with constant(1, 2.0).attach(net, positions="all"):
        (after,) = extract(net, ids.tolist(), [1])
    assert torch.equal(after, constant(1, 2.0)(before))


def test_a_wrapper_of_torch_compile_has_the_blocks_of_the_model_inside():
    net = model()
    assert list(find_layers(torch.compile(net))) == list(net.model.layers)
    assert find_decoder(torch.compile(net)) is net.model


def adapted():
    peft = pytest.importorskip("peft", reason="adapters are wrapped by peft")
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", r=2)
    return peft.get_peft_model(model(), config).eval()


def test_a_wrapper_of_peft_has_the_blocks_of_the_model_inside():
    net = adapted()
    assert list(find_layers(net)) == list(net.get_base_model().model.layers)
    assert hidden_size(net) == WIDTH
    ids = prompt(6)
    with constant(1, 3.0).attach(net, positions="all"), torch.no_grad():
        through_wrapper = net(input_ids=ids).logits
        generated = net.generate(input_ids=ids, max_new_tokens=4, do_sample=False)
    plain = model()
    with constant(1, 3.0).attach(plain, positions="all"), torch.no_grad():
        # A fresh adapter adds nothing.
        assert torch.equal(through_wrapper, plain(input_ids=ids).logits)
        assert torch.equal(generated, plain.generate(ids, max_new_tokens=4, do_sample=False))


def test_a_model_without_blocks_says_what_to_do():
    with pytest.raises(ValueError, match=r"Linear has no list of decoder blocks.*use_layers"):
        find_layers(nn.Linear(2, 2))


# ---- by the user's word


def test_blocks_can_be_named_by_their_path():
    net = model("gpt2")
    use_layers(net, "transformer.h")
    assert list(find_layers(net)) == list(net.transformer.h)


def test_everything_follows_the_modules_the_user_gives_until_taken_back():
    net, ids = model("gpt2"), prompt(6)
    odd = [net.transformer.h[1], net.transformer.h[3]]
    use_layers(net, odd)
    assert list(find_layers(net)) == odd
    assert layer_index(net, -1) == 1
    chosen = extract(net, ids.tolist(), [0, 1])
    with constant(1, 2.0).attach(net, positions="all"):
        (moved,) = extract(net, ids.tolist(), [1])
    use_layers(net, None)
    for a, b in zip(chosen, extract(net, ids.tolist(), [1, 3]), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(moved, constant(1, 2.0)(chosen[1]))
    assert len(find_layers(net)) == 4


def test_a_path_may_name_blocks_without_a_list_or_lead_through_a_wrapper():
    net = Plain("names")
    use_layers(net, "block_")
    assert list(find_layers(net)) == [net.block_0, net.block_1, net.block_2]
    net = adapted()
    use_layers(net, "base_model.model.model.layers")
    assert list(find_layers(net.get_base_model())) == list(net.get_base_model().model.layers)


@pytest.mark.parametrize("wrong", ["transformer.blocks", "transformer.wte", "nowhere.at.all", ""])
def test_a_path_that_is_no_list_is_answered_with_the_lists_there_are(wrong):
    net = model("gpt2")
    with pytest.raises(ValueError, match=rf"'{wrong}' is no list.* it has 'transformer.h' \(4\)"):
        use_layers(net, wrong)
    assert len(find_layers(net)) == 4


def test_modules_of_another_model_and_none_at_all_are_refused():
    net = model("gpt2")
    with pytest.raises(ValueError, match="GPT2Block is no part of it"):
        use_layers(net, list(model("gpt2", seed=1).transformer.h))
    with pytest.raises(ValueError, match="the list is empty"):
        use_layers(net, [])


def test_a_choice_does_not_keep_its_model_alive():
    net = model("gpt2")
    use_layers(net, "transformer.h")
    reference = weakref.ref(net)
    del net
    gc.collect()
    assert reference() is None


def test_use_layers_is_public():
    assert ods.use_layers is use_layers


# ---- what is no residual stream


def xlm():
    return hf.XLMWithLMHeadModel(
        hf.XLMConfig(vocab_size=64, emb_dim=WIDTH, n_layers=3, n_heads=4, causal=True)
    ).eval()


def test_a_model_without_blocks_is_steered_where_the_user_says_its_stream_is():
    net, ids = xlm(), prompt(5)
    with pytest.raises(ValueError, match=r"several stacks .*'transformer.ffns' \(3\).*use_layers"):
        find_layers(net)
    # The last operation of every one of XLM's layers.
    use_layers(net, "transformer.layer_norm2")
    plain = net(input_ids=ids, output_hidden_states=True).hidden_states
    with constant(1, 2.0).attach(net, positions="all"), torch.no_grad():
        moved = net(input_ids=ids, output_hidden_states=True).hidden_states
    assert torch.equal(moved[1], plain[1])
    assert torch.equal(moved[2], constant(1, 2.0)(plain[2]))


def altup():
    return hf.Gemma3nForCausalLM(
        hf.Gemma3nTextConfig(
            **(TEXT | {"intermediate_size": [48] * 3}),
            num_key_value_heads=2,
            head_dim=8,
            vocab_size_per_layer_input=64,
            hidden_size_per_layer_input=4,
            num_kv_shared_layers=0,
            laurel_rank=4,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            activation_sparsity_pattern=[0.0] * 3,
        )
    ).eval()


def xlnet():
    config = hf.XLNetConfig(vocab_size=64, d_model=WIDTH, n_layer=3, n_head=4, d_inner=48)
    return hf.XLNetLMHeadModel(config).eval()


@pytest.mark.parametrize(
    "make, says", [(altup, r"\[4, 1, 5, 32\], not one"), (xlnet, r"\[5, 1, 32\] where .* \[1, 5")]
)
def test_several_streams_or_time_first_are_refused_when_the_model_runs(make, says):
    net, ids = make(), prompt(5)
    with pytest.raises(ValueError, match=says), constant(1).attach(net):
        net(input_ids=ids)
    assert not hooked(net)
    with pytest.raises(ValueError, match=says):
        extract(net, ids.tolist(), [1])
    assert not hooked(net)


class Looped(Plain):
    """A decoder that runs its blocks twice."""

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        return self.run(self.run(self.embed(input_ids)))


def test_a_block_that_runs_twice_in_a_pass_is_refused():
    net = Looped("sequence").eval()
    with pytest.raises(ValueError, match="ran twice in one forward pass"), constant(1).attach(net):
        net(prompt(5))
    assert not hooked(net)
    once = Plain("sequence").eval()
    with constant(1).attach(once) as handle:
        once(prompt(5))
        once(prompt(5))
    assert handle.stats()["tokens"] == 10


Halves = namedtuple("Halves", ["attn_output", "hidden_states"])
STREAM = torch.zeros(2, 7, 4)


@pytest.mark.parametrize(
    "output",
    [
        STREAM,
        (STREAM,),
        (STREAM, None, "cache"),
        [STREAM, torch.ones(2)],
        BaseModelOutput(last_hidden_state=STREAM, attentions=(torch.ones(1),)),
    ],
    ids=lambda output: type(output).__name__,
)
def test_the_stream_is_read_and_replaced_in_whatever_form_a_block_returns_it(output):
    assert block_output(output, (2, 7), 4) is STREAM
    changed = replace_output(output, moved := STREAM + 1)
    assert type(changed) is type(output)
    assert block_output(changed) is moved
    assert block_output(output) is STREAM
    if isinstance(output, tuple | list):
        assert list(changed[1:]) == list(output[1:])


@pytest.mark.parametrize(
    "output, says",
    [
        (torch.zeros(7, 4), r"\[7, 4\], not one residual stream"),
        (torch.zeros(3, 2, 7, 4), r"\[3, 2, 7, 4\], not one residual stream"),
        ((torch.zeros(7, 2, 4), None), r"\[7, 2, 4\] where .* would be \[2, 7, 4\]"),
        (torch.zeros(2, 7, 16), r"\[2, 7, 16\] where .* would be \[2, 7, 4\]"),
        (Halves(STREAM, STREAM + 1), "a Halves and no tensor"),
        ((), "a tuple and no tensor"),
        (None, "a NoneType and no tensor"),
    ],
)
def test_anything_else_is_refused(output, says):
    with pytest.raises(ValueError, match=says):
        block_output(output, (2, 7), 4)


def test_a_block_that_returns_a_list_is_steered():
    config = hf.OpenAIGPTConfig(n_embd=WIDTH, n_layer=3, n_head=4, vocab_size=64)
    net, ids = hf.OpenAIGPTLMHeadModel(config).eval(), prompt(5)
    plain = net(input_ids=ids, output_hidden_states=True).hidden_states
    with constant(1, 2.0).attach(net, positions="all"), torch.no_grad():
        moved = net(input_ids=ids, output_hidden_states=True).hidden_states
    assert torch.equal(moved[1], plain[1])
    assert torch.equal(moved[2], constant(1, 2.0)(plain[2]))


# ---- widths


def test_the_width_of_a_projections_input_is_known_of_both_kinds_of_linear():
    assert input_width(nn.Linear(6, 5)) == 6
    assert input_width(hf.pytorch_utils.Conv1D(5, 6)) == 6
    assert input_width(attention_output(find_layers(model("gpt2"))[0])) == WIDTH
    with pytest.raises(ValueError, match="LayerNorm does not say"):
        input_width(nn.LayerNorm(4))
