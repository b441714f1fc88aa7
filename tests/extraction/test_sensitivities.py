"""Sensitivities predict what a shift of the activations does to what the model says."""

import pytest
import torch
from tests.helpers.models import ARCHITECTURES, VOCABULARY, model, tokenizer
from torch import Tensor, nn

import odesteer as ods
from odesteer.extraction.sensitivities import SINK
from odesteer.models.layers import block_output, find_layers, replace_output
from odesteer.testing.suite.architectures import ARCHITECTURES as ALL_ARCHITECTURES

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
PAIRS = (
    [("the cat", "sat on the mat"), ("a dog", "ran"), ("the moon is", "good good")],
    [("the cat", "flew under a tree was bad"), ("a dog", "is"), ("the moon is", "bad")],
)
CONTRAST = ods.Contrast.from_pairs(*PAIRS, template="plain")
LAYERS = [0, 2]
ROUTED = ("moe", "mixtral", "deepseek", "gpt_oss", "llama4", "jamba")


def log_likelihoods(net: nn.Module, layer: int, u: Tensor, angle: float, positions: str) -> Tensor:
    """Of every text, nats a token, with its steered tokens at a_t + angle u ||a_t||."""
    tok = tokenizer()
    results = []
    for prompt, response in PAIRS[0] + PAIRS[1]:
        start = len(tok(prompt).input_ids)
        ids = torch.tensor([tok(prompt + " " + response).input_ids])

        def shift(_module, _args, output, start=start):
            hidden = block_output(output)
            norms = hidden.norm(dim=-1, keepdim=True)
            moved = hidden + angle * u * norms
            whole = norms[0] <= SINK * norms[0].median()
            column = torch.arange(hidden.shape[1])[:, None]
            first = {"last+generated": start - 1, "generated": start, "all": 0}[positions]
            return replace_output(output, torch.where(whole & (column >= first), moved, hidden))

        handle = find_layers(net)[layer].register_forward_hook(shift)
        with torch.no_grad():
            log_p = net(ids).logits[0].log_softmax(-1)
        handle.remove()
        results.append(log_p[torch.arange(start - 1, ids.shape[1] - 1), ids[0, start:]].mean())
    return torch.stack(results)


@every_architecture
@pytest.mark.parametrize("positions", ["last+generated", "generated", "all"])
def test_the_margin_gradient_is_the_derivative_of_log_likelihoods(
    name: str, positions: str
) -> None:
    net = model(name).double()
    both = ods.sensitivities(net, tokenizer(), CONTRAST, LAYERS, positions=positions)
    for layer in LAYERS:
        margins = torch.cat([each.margins for each in both[layer]]).double()
        u = torch.randn(margins.shape[1], generator=torch.Generator().manual_seed(layer)).double()
        u = u / u.norm()
        up, down = (log_likelihoods(net, layer, u, e, positions) for e in (3e-3, -3e-3))
        # Some architectures compute norms in float32, whatever the weights are.
        torch.testing.assert_close(margins @ u, (up - down) / 6e-3, atol=3e-4, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_ARCHITECTURES)
def test_both_methods_have_their_budget_on_every_architecture(name: str) -> None:
    net = ALL_ARCHITECTURES[name].build(0)
    both = ods.sensitivities(net, tokenizer(), CONTRAST, [1])[1]
    alone = ods.sensitivities(net, tokenizer(), CONTRAST, [1], batch_tokens=1)[1]
    for a, b in zip(both, alone, strict=True):
        assert float(a.margins.abs().max()) > 0
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=1e-5 * float(y.abs().max()), rtol=1e-3)
    methods = ods.NaturalGradient(shrinkage=0.5), ods.TrainedODESteer(rank=2, epochs=1, batch=2)
    for method in methods:
        receipts = ods.fit(net, tokenizer(), CONTRAST, method, 1, ods.KL(0.01)).receipts
        # Where a router switches experts, KL jumps over so small a budget.
        if not any(word in name for word in ROUTED):
            assert receipts["kl"]["measured"] == pytest.approx(0.01, rel=0.05)


@every_architecture
def test_neither_the_batch_nor_its_padding_matters(name: str) -> None:
    net = model(name)
    whole = ods.sensitivities(net, tokenizer(), CONTRAST, LAYERS, draws=2)
    alone = ods.sensitivities(net, tokenizer(), CONTRAST, LAYERS, draws=2, batch_tokens=1)
    for layer in LAYERS:
        for a, b in zip(whole[layer], alone[layer], strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


def test_the_scores_of_many_draws_are_the_fisher_information_that_kl_grows_with() -> None:
    net = model("llama").double()
    draws = 400
    both = ods.sensitivities(net, tokenizer(), CONTRAST, [1], draws=draws)[1]
    scores = torch.cat([each.scores for each in both]).double().flatten(0, 1)
    tokens = sum(float(each.tokens.sum()) for each in both) * draws
    fisher = scores.mT @ scores / tokens
    u = torch.randn(fisher.shape[0], generator=torch.Generator().manual_seed(0)).double()
    u = u / u.norm()
    angle = 0.02
    tok, total, count = tokenizer(), 0.0, 0
    steering = ods.Steering(
        ods.ode.ConstantField(u.float()), strength=ods.Angle(angle), layer=1, method="custom"
    )
    for prompt, response in PAIRS[0] + PAIRS[1]:
        start = len(tok(prompt).input_ids)
        ids = torch.tensor([tok(prompt + " " + response).input_ids])
        with torch.no_grad():
            p = net(ids).logits[0].log_softmax(-1)[start - 1 : -1]
            mask = torch.arange(ids.shape[1]) >= start - 1
            with steering.attach(net, positions=mask):
                q = net(ids).logits[0].log_softmax(-1)[start - 1 : -1]
        total += float((p.exp() * (p - q)).sum())
        count += len(p)
    predicted = float(0.5 * angle**2 * (u @ fisher @ u))
    # Of 400 draws the standard error is about 3 %.
    assert total / count == pytest.approx(predicted, rel=0.1)


def test_bare_texts_are_predicted_after_their_second_token() -> None:
    net = model()
    both = ods.sensitivities(
        net, tokenizer(bos=False), ods.Contrast.from_pairs(["the cat sat on"], ["a dog"]), [1]
    )
    assert [each.tokens.tolist() for each in both[1]] == [[2.0], [1.0]]


def test_sums_are_means_times_tokens() -> None:
    net = model()
    mean, total = (
        ods.sensitivities(net, tokenizer(), CONTRAST, [1], mean=m)[1] for m in (True, False)
    )
    for a, b in zip(mean, total, strict=True):
        torch.testing.assert_close(a.margins * a.tokens[:, None], b.margins)


def test_they_are_cached_and_an_interrupted_reading_goes_on(tmp_path) -> None:
    net = model()
    seen: list[int] = []

    def stop(done: int, _total: int) -> None:
        seen.append(done)
        if len(seen) == 2:
            raise KeyboardInterrupt

    arguments = (net, tokenizer(), CONTRAST, LAYERS)
    with pytest.raises(KeyboardInterrupt):
        ods.sensitivities(*arguments, batch_tokens=1, cache=tmp_path, progress=stop)
    again = ods.sensitivities(*arguments, batch_tokens=1, cache=tmp_path)
    files = {path: path.stat().st_ino for path in tmp_path.rglob("*.safetensors")}
    assert len(files) == 6
    twice = ods.sensitivities(*arguments, batch_tokens=1, cache=tmp_path)
    assert files == {path: path.stat().st_ino for path in tmp_path.rglob("*.safetensors")}
    for layer in LAYERS:
        for a, b in zip(again[layer], twice[layer], strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_weights_and_modes_are_as_before() -> None:
    net = model().train()
    flags = [p.requires_grad for p in net.parameters()]
    ods.sensitivities(net, tokenizer(), CONTRAST, [1])
    assert net.training and [p.requires_grad for p in net.parameters()] == flags
    assert all(p.grad is None for p in net.parameters())
    assert not any(block._forward_hooks for block in find_layers(net))


def test_models_with_an_encoder_and_single_tokens_are_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, vocab_size=VOCABULARY)
    with pytest.raises(ValueError, match="has an encoder"):
        ods.sensitivities(T5ForConditionalGeneration(config), tokenizer(), CONTRAST, [1])
    single = ods.Contrast.from_pairs(["cat"], ["dog"])
    with pytest.raises(ValueError, match="a single token predicts nothing"):
        ods.sensitivities(model(), tokenizer(bos=False), single, [1])
