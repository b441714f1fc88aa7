"""Gradients through a steered model are exact where they are asked for."""

import pytest
import torch
from tests.helpers.models import WIDTH, model, padded, prompt
from tests.helpers.models import quadratic as quadratic_steering

import odesteer as ods
from odesteer.ode import ConstantField

POSITIONS = ["all", "last+generated", torch.tensor([False, True, True, False, True])]


@pytest.mark.parametrize("positions", POSITIONS, ids=["all", "last", "mask"])
@pytest.mark.parametrize("kind", ["constant", "quadratic"])
def test_of_the_loss_by_the_field_and_the_embedding(kind: str, positions: object) -> None:
    net = model("gpt2").double()
    if kind == "constant":
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
        steering = ods.Steering(ConstantField(direction), strength=ods.Angle(0.1), layer=1)
    else:
        steering = quadratic_steering().with_strength(ods.Angle(0.3))
        steering.field.double()
    tensor = next(steering.field.buffers()) if kind == "constant" else steering.barrier.slope
    ids, mask = padded([prompt(5), prompt(3, seed=1)])
    embedded = net.get_input_embeddings()(ids).detach().requires_grad_(True)
    tensor.requires_grad_(True)

    def loss() -> torch.Tensor:
        with steering.attach(net, positions=positions, differentiable=True):
            logits = net(inputs_embeds=embedded, attention_mask=mask).logits
        return (logits.log_softmax(-1)[..., 3] * mask).sum()

    gradients = torch.autograd.grad(loss(), [tensor, embedded])
    for each, gradient in zip((tensor, embedded), gradients, strict=True):
        along = torch.randn(each.shape, generator=torch.Generator().manual_seed(2)).double()
        ends = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                each.add_(sign * 1e-5 * along)
            ends.append(loss().detach())
            with torch.no_grad():
                each.sub_(sign * 1e-5 * along)
        expected = (ends[0] - ends[1]) / 2e-5
        assert float(expected.abs()) > 1e-6
        torch.testing.assert_close((gradient * along).sum(), expected, atol=1e-6, rtol=1e-4)


def test_it_steers_as_without_gradients() -> None:
    net = model("llama")
    ids = prompt(6)
    steering = quadratic_steering().with_strength(ods.Angle(0.3))
    logits = []
    for differentiable in (False, True):
        with steering.attach(net, differentiable=differentiable):
            logits.append(net(ids).logits.detach())
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-4)
