"""A model with a vector as a bias is the steered model, or is refused and left as it was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.helpers import models as tiny
from tests.helpers.command_line import run
from torch import nn
from transformers import AutoModelForCausalLM

import odesteer as ods
from odesteer.integrations.control_vectors import (
    Logits,
    Vectors,
    bake,
    bake_gguf,
    flattened,
    save_baked,
)
from odesteer.testing.suite.architectures import ARCHITECTURES, WIDTH

IDS = torch.tensor([[1, 5, 9, 3, 7, 2]])


def vectors(*layers: int) -> Vectors:
    generator = torch.Generator().manual_seed(0)
    return Vectors({layer: 2.0 * torch.randn(WIDTH, generator=generator) for layer in layers})


def logits(net: Any) -> torch.Tensor:
    with torch.no_grad():
        return net(IDS).logits


# With biases and without, Conv1D, attention and MLP side by side, a scaled residual stream, no MLP.
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "granite", "falcon_h1", "mamba"])
@pytest.mark.parametrize("saved", [False, True])
def test_it_says_what_the_steered_model_says(name: str, saved: bool, tmp_path: Path) -> None:
    settings = {"residual_multiplier": 0.3} if name == "granite" else {}
    architecture = ARCHITECTURES[name]
    net = type(architecture)(
        architecture.model_type, {**architecture.settings, **settings}, architecture.blocks
    ).build()
    both = vectors(1, 2)
    with both.steering().attach(net, positions="all"):
        expected = logits(net)
    unsteered = logits(net)
    names = bake(net, both)
    assert len(names) == 2 and all(name.endswith(".bias") for name in names)
    if saved:
        save_baked(net, tiny.tokenizer(), tmp_path / "baked")
        net = AutoModelForCausalLM.from_pretrained(tmp_path / "baked").eval()
    torch.testing.assert_close(logits(net), expected, atol=1e-5, rtol=1e-5)
    assert float((unsteered - expected).abs().max()) > 0.1


@pytest.mark.parametrize(
    "name, reason",
    [
        ("gemma2", "no place for a bias"),  # a norm after the MLP
        ("mixtral", "no place for a bias"),  # a router of experts
        ("mistral", "MistralConfig has no switch for the bias model.layers.2.mlp.down_proj.bias"),
    ],
)
def test_where_there_is_no_place_the_model_is_refused_and_stays(name: str, reason: str) -> None:
    net = ARCHITECTURES[name].build()
    before, config = net.state_dict().keys(), net.config.to_dict()
    unsteered = logits(net)
    with pytest.raises(ValueError, match=reason):
        bake(net, vectors(2))
    assert net.state_dict().keys() == before and net.config.to_dict() == config
    assert torch.equal(logits(net), unsteered) and not tiny.hooked(net)


def test_vectors_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="one of width 32 for block 9; the model has 4 blocks"):
        bake(ARCHITECTURES["llama"].build(), vectors(9))


def test_the_difference_is_that_of_the_baked_model() -> None:
    net, tokenizer = ARCHITECTURES["llama"].build(), tiny.tokenizer()
    one = vectors(2)
    expected = Logits(net, tokenizer, one)
    assert expected.difference(net) > 0.1
    bake(net, one)
    assert expected.difference(net) < 1e-5


@pytest.fixture
def steering(tmp_path: Path) -> Path:
    return tiny.constant(layer=2, strength=3.0).save_pretrained(tmp_path / "vector")


def test_the_command_writes_a_model_that_steers_by_itself(steering: Path, tmp_path: Path) -> None:
    source, target = tiny.saved(tmp_path / "model"), tmp_path / "baked"
    told = run("export", steering, target, "--bake", "--model", source, "--json")
    assert told.exit_code == 0, told.output
    facts = json.loads(told.stdout)
    assert facts["baked"]["biases"] == ["model.layers.2.mlp.down_proj.bias"]
    assert facts["baked"]["difference"] < 1e-5
    net = AutoModelForCausalLM.from_pretrained(source).eval()
    with ods.load(steering).attach(net, positions="all"):
        expected = logits(net)
    baked = AutoModelForCausalLM.from_pretrained(target).eval()
    torch.testing.assert_close(logits(baked), expected, atol=1e-5, rtol=1e-5)
    assert baked.config.odesteer["odesteer.method"] == ods.load(steering).method
    again = run("export", steering, target, "--bake", "--model", source)
    assert again.exit_code == 2 and "is there already" in again.output


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["out", "--bake"], "--bake writes the model itself: name it, with --model."),
        (["out.gguf", "--bake", "--model", "folder"], "'folder' is none"),
        (["out", "--bake", "--model", "x.gguf"], "'x.gguf' is baked into a .gguf file"),
    ],
)
def test_what_cannot_be_baked_is_refused_in_a_line(
    steering: Path, tmp_path: Path, arguments: list[str], line: str
) -> None:
    told = run("export", steering, tmp_path / arguments[0], *arguments[1:])
    assert told.exit_code == 2 and line in " ".join(told.output.split())


def gguf_model(path: Path, architecture: str, *, bias: bool = False) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.name", "tiny")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    for layer in range(3):
        weight = np.arange(WIDTH * 64, dtype=np.float32).reshape(WIDTH, 64)
        kind = gguf.GGMLQuantizationType.Q8_0
        quantised = gguf.quantize(weight, kind)
        writer.add_tensor(f"blk.{layer}.ffn_down.weight", quantised, raw_dtype=kind)
        if bias:
            writer.add_tensor(f"blk.{layer}.ffn_down.bias", np.ones(WIDTH, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("bias", [False, True])
def test_of_a_gguf_file_all_but_the_bias_stays(bias: bool, tmp_path: Path) -> None:
    import gguf

    source = gguf_model(tmp_path / "one.gguf", "llama", bias=bias)
    both = vectors(0, 2)
    bake_gguf(source, both, tmp_path / "two.gguf")
    before, after = gguf.GGUFReader(source), gguf.GGUFReader(tmp_path / "two.gguf")
    read = {tensor.name: tensor for tensor in after.tensors}
    changed = {f"blk.{layer}.ffn_down.bias": d.numpy() for layer, d in both.directions.items()}
    for name, direction in changed.items():
        np.testing.assert_array_equal(read[name].data, direction + float(bias))
    for tensor in before.tensors:
        if tensor.name not in changed:
            assert read[tensor.name].tensor_type == tensor.tensor_type
            np.testing.assert_array_equal(read[tensor.name].data, tensor.data)
    for key in ("general.name", "tokenizer.ggml.tokens"):
        assert after.fields[key].contents() == before.fields[key].contents()


def test_what_llama_cpp_would_not_read_is_not_written(tmp_path: Path) -> None:
    source, target = gguf_model(tmp_path / "one.gguf", "qwen2"), tmp_path / "two.gguf"
    with pytest.raises(ValueError, match=r"llama\.cpp reads no blk"):
        bake_gguf(source, vectors(1), target)
    with pytest.raises(ValueError, match="the vectors are of another model"):
        bake_gguf(source, vectors(7), target)
    assert not target.exists() and len(list(tmp_path.iterdir())) == 1


def test_a_flattened_field_is_baked_as_its_vector() -> None:
    net: nn.Module = ARCHITECTURES["llama"].build()
    rows = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))
    flow = tiny.quadratic(layer=2)
    flat, _ = flattened(flow, {2: rows}, force=True)
    with flat.steering().attach(net, positions="all"):
        expected = logits(net)
    bake(net, flat)
    torch.testing.assert_close(logits(net), expected, atol=1e-5, rtol=1e-5)
