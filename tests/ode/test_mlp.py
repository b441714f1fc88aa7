"""A network's hand-written gradient is autograd's, in every mode, at every kink."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from odesteer.ode import Dense, GradientField, Network, NetworkBarrier
from odesteer.ode.barriers.mlp import ACTIVATIONS
from odesteer.steering.serialization import describe, rebuild

Make = Callable[..., Tensor]
MODULES = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)


def _draw(widths: list[int], activation: str = "silu", seed: int = 0) -> Network:
    return Network.draw(widths, activation, torch.Generator().manual_seed(seed)).double()


@every_activation
def test_a_network_is_torchs_own_stack_of_layers(activation: str, normal: Make) -> None:
    network = _draw([7, 5, 4, 3], activation)
    stack: list[nn.Module] = []
    for dense in network.dense:
        linear = nn.Linear(dense.weight.shape[1], dense.weight.shape[0]).double()
        linear.load_state_dict({"weight": dense.weight, "bias": dense.bias})
        stack += [linear, MODULES[activation]()]
    a = 3 * normal(2, 6, 7)
    torch.testing.assert_close(network(a), nn.Sequential(*stack[:-1])(a))


@every_activation
@pytest.mark.parametrize("hidden", [[], [5], [8, 6, 4]], ids=str)
def test_the_gradient_is_autograds(activation: str, hidden: list[int], activations: Tensor) -> None:
    network = _draw([7, *hidden, 1], activation)
    point = activations.clone().requires_grad_(True)
    output = network(point)
    (expected,) = torch.autograd.grad(output.sum(), point)
    value, gradient = network.value_and_gradient(activations)
    torch.testing.assert_close(value, output[..., 0].detach(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


@every_activation
def test_large_inputs_overflow_nothing(activation: str, normal: Make) -> None:
    value, gradient = (
        _draw([7, 8, 1], activation).float().value_and_gradient(1e6 * normal(5, 7).float())
    )
    assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(gradient).all())


def test_relu_is_flat_at_its_kink() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    network = Network([Dense(one, 0 * one[0]), Dense(one, 0 * one[0])], "relu")
    value, gradient = network.value_and_gradient(0 * one)
    assert float(value) == 0.0 and float(gradient) == 0.0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_needs_no_autograd_and_leaves_none(mode, make_network, normal: Make) -> None:
    barrier = make_network()
    expected = barrier.gradient(normal(3, 7))
    with mode():
        gradient = barrier.gradient(normal(3, 7))
    assert torch.equal(gradient, expected) and not gradient.requires_grad


def test_one_seed_is_one_network_and_leaves_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = _draw([7, 5, 1]), _draw([7, 5, 1]), _draw([7, 5, 1], seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(first.buffers(), again.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_entries_are_uniform_within_one_over_the_root_of_the_inputs() -> None:
    bound = 1 / math.sqrt(100)
    first = _draw([100, 400, 1]).dense[0]
    for entries in (first.weight, first.bias):
        assert float(entries.abs().max()) <= bound
        assert math.isclose(float(entries.std()), bound / math.sqrt(3), rel_tol=0.1)


def test_the_barrier_is_the_network_of_the_standardised_row(normal: Make) -> None:
    network, centre, scale = _draw([7, 5, 1]), normal(7, seed=1), normal(7, seed=2).abs() + 0.1
    a = normal(4, 7, seed=3)
    expected = network((a - centre) / scale)[..., 0] + 0.7
    torch.testing.assert_close(NetworkBarrier(network, centre, scale, 0.7).value(a), expected)


def test_one_scale_for_all_coordinates_will_do(normal: Make) -> None:
    network, a = _draw([7, 5, 1]), normal(4, 7)
    one = NetworkBarrier(network, normal(7, seed=1), 2.0, 0.0)
    each = NetworkBarrier(network, normal(7, seed=1), torch.full((7,), 2.0).double(), 0.0)
    assert torch.equal(one.gradient(a), each.gradient(a))
    assert one.scale.shape == ()


def test_the_ascent_is_steepest_in_standardised_coordinates(make_network, normal: Make) -> None:
    barrier, a = make_network(), normal(5, 7, seed=3)
    ascent = barrier.ascent(a)
    torch.testing.assert_close(ascent, barrier.scale**2 * barrier.gradient(a))
    # Of all steps of one length in those coordinates, none raises h by more.
    other = normal(200, 5, 7, seed=4)
    length = (ascent / barrier.scale).norm(dim=-1)
    other = other * (length / (other / barrier.scale).norm(dim=-1)).unsqueeze(-1)
    best = (barrier.gradient(a) * ascent).sum(dim=-1)
    assert bool(((barrier.gradient(a) * other).sum(dim=-1) < best).all())


@every_activation
def test_it_comes_back_bit_for_bit(activation: str, make_network, normal: Make) -> None:
    field, a = GradientField(make_network(activation)), normal(5, 7)
    again = rebuild(*describe(field))
    assert isinstance(again, GradientField)
    assert torch.equal(again(a), field(a)) and torch.equal(again.value(a), field.value(a))


def test_scaled_networks_are_one_affine(make_network) -> None:
    assert isinstance(make_network().affine(2.0).affine(3.0).barrier, NetworkBarrier)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Dense(torch.ones(3, 2), torch.ones(2)), ["[3, 2]", "[2]"]),
        (lambda: Network([], "relu"), ["widths meet"]),
        (
            lambda: Network([*_draw([4, 3]).dense, *_draw([2, 1]).dense], "relu"),
            ["(4, 3)", "(2, 1)"],
        ),
        (lambda: Network(_draw([4, 1]).dense, "swish"), ["swish", "silu"]),
        (lambda: _draw([4, 2]).value_and_gradient(torch.ones(4).double()), ["2"]),
        (lambda: NetworkBarrier(_draw([4, 2]), torch.ones(4), 1.0, 0.0), ["[4] -> 2"]),
        (lambda: NetworkBarrier(_draw([4, 1]), torch.ones(5), 1.0, 0.0), ["[5]"]),
    ],
)
def test_what_does_not_fit_is_named(make: Callable[[], object], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert all(word in str(error.value) for word in words), str(error.value)
