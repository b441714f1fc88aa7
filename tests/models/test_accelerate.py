"""Models with offloaded weights or a device map are steered the same."""

import pytest
import torch
from tests.helpers.models import WIDTH, constant, model, prompt, quadratic, tokenizer

import odesteer as ods
from odesteer.extraction.extract import extract
from odesteer.models.layers import input_device

accelerate = pytest.importorskip("accelerate", reason="offloading is done by accelerate")
CPU = torch.device("cpu")
ROWS = [[5, 6, 7, 8, 9], [7, 8, 9]]
DEVICE_MAP = {
    "model.embed_tokens": "disk",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.layers.3": "cpu",
    "model.norm": "cpu",
    "lm_head": "disk",
}


def _in_memory(net, folder):
    return accelerate.cpu_offload(net, execution_device=CPU)


def _on_disk(net, folder):
    return accelerate.disk_offload(net, folder, execution_device=CPU)


def _device_map(net, folder):
    return accelerate.dispatch_model(net, DEVICE_MAP, main_device="cpu", offload_dir=folder)


@pytest.fixture(params=[_in_memory, _on_disk, _device_map])
def offloaded(request, tmp_path):
    net = request.param(model(), str(tmp_path))
    assert any(parameter.is_meta for parameter in net.parameters())
    return net


def test_inputs_go_where_the_embedding_computes_not_where_its_weight_lies(offloaded):
    assert offloaded.get_input_embeddings().weight.is_meta
    assert input_device(offloaded) == CPU


def test_a_hook_that_moves_the_embeddings_inputs_says_where_they_belong():
    net = model()
    assert input_device(net) == CPU
    hook = accelerate.hooks.AlignDevicesHook(execution_device="meta")
    accelerate.hooks.add_hook_to_module(net.get_input_embeddings(), hook)
    assert input_device(net) == torch.device("meta")


@pytest.mark.parametrize("steering", [constant(1, 3.0), quadratic(2)], ids=["field", "flow"])
def test_it_is_steered_to_the_bit_as_the_plain_model_and_left_as_it_was(offloaded, steering):
    ids, results = prompt(7), []
    forwards = [vars(module).get("forward") for module in offloaded.modules()]
    for net in (model(), offloaded):
        with steering.attach(net, measure=True) as handle, torch.no_grad():
            logits = net(input_ids=ids).logits
            cached = net.generate(ids, max_new_tokens=5, do_sample=False)
            whole = net.generate(ids, max_new_tokens=5, do_sample=False, use_cache=False)
        results.append((logits, cached, whole, handle.stats()))
    for a, b in zip(*results, strict=True):
        assert a == b if isinstance(a, dict) else torch.equal(a, b)
    with torch.no_grad():
        assert torch.equal(offloaded(input_ids=ids).logits, model()(input_ids=ids).logits)
        assert not torch.equal(offloaded(input_ids=ids).logits, results[0][0])
    assert forwards == [vars(module).get("forward") for module in offloaded.modules()]


@pytest.mark.parametrize("site", ["residual", "heads"])
def test_its_activations_are_those_of_the_plain_model(offloaded, site):
    wanted = extract(model(), ROWS, [1, 3], site=site)
    for a, b in zip(wanted, extract(offloaded, ROWS, [1, 3], site=site), strict=True):
        assert torch.equal(a, b)


def test_texts_go_all_the_way_fitted_on_it_and_generated_with_it(offloaded):
    contrast = ods.Contrast.from_pairs(
        ["the cat is good", "a dog is good", "the bird is good", "the moon is good"],
        ["the cat is bad", "a dog is bad", "the bird is bad", "the moon is bad"],
    )
    texts, logprobs = [], []
    for net in (model(), offloaded):
        steering = ods.fit(net, tokenizer(), contrast, method="caa", layer=1, strength=2.0)
        backend = ods.TransformersBackend(net, tokenizer())
        sampling = ods.Sampling(max_new_tokens=4, temperature=0.0)
        texts.append(backend.generate(["the cat", "a dog is"], steering, sampling))
        logprobs.append(backend.logprobs(["the cat"], ["is good"], steering)[0])
    assert texts[0] == texts[1]
    assert torch.equal(logprobs[0], logprobs[1])


def test_the_steering_goes_to_the_device_of_each_activation_it_is_given():
    steering = constant(strength=2.0)
    there = steering(torch.empty(2, 3, WIDTH, device="meta"))
    assert there.is_meta
    assert there.shape == (2, 3, WIDTH)
    here = torch.zeros(2, 3, WIDTH)
    assert torch.equal(steering(here)[1, 2], 2.0 * steering.field.direction)
