"""Barrier given by a multilayer perceptron.

    x_0 = (a - centre) / scale,  x_i = act(W_i x_(i-1) + b_i),  h(a) = W_k x_(k-1) + b_k + offset

The gradient is written by hand: without autograd it works under `torch.inference_mode` and costs
one forward and one backward product per layer.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from odesteer.ode.barriers.base import Barrier


class Activation(NamedTuple):
    """Elementwise nonlinearity, its derivative, and the largest size of that."""

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    steepest: float


def _gelu_derivative(x: Tensor) -> Tensor:
    below = 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))
    return below + x * torch.exp(-0.5 * x.square()) / math.sqrt(2.0 * math.pi)


def _silu_derivative(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return gate * (1.0 + x * (1.0 - gate))


ACTIVATIONS: dict[str, Activation] = {
    "relu": Activation(torch.relu, lambda x: (x > 0).to(x.dtype), 1.0),
    "gelu": Activation(nn.functional.gelu, _gelu_derivative, 1.129),
    "silu": Activation(nn.functional.silu, _silu_derivative, 1.1),
    "tanh": Activation(torch.tanh, lambda x: 1.0 - torch.tanh(x).square(), 1.0),
}


class Dense(nn.Module):
    """Linear layer x -> W x + b: [..., in] -> [..., out].

    Args:
        weight: W, [out, in].
        bias: b, [out].

    Raises:
        ValueError: if the shapes do not fit together.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        if weight.dim() != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(
                f"Dense needs weight [out, in] and bias [out]; got {list(weight.shape)} and "
                f"{list(bias.shape)}."
            )
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.mT + self.bias


class Network(nn.Module):
    """Dense layers with one activation between them, and none after the last.

    Its tensors are buffers, so that it is saved like any barrier. To train it, pass
    `list(network.buffers())` to `odesteer.methods.training.train`.

    Args:
        layers: at least one; the inputs of each are the outputs of the one before.
        activation: "relu", "gelu" (exact), "silu" or "tanh".

    Raises:
        ValueError: for no layers, widths that do not meet, or an unknown activation.
    """

    def __init__(self, layers: Sequence[Dense], activation: str):
        super().__init__()
        widths = [(layer.weight.shape[1], layer.weight.shape[0]) for layer in layers]
        if not widths or any(a[1] != b[0] for a, b in pairwise(widths)):
            raise ValueError(f"A Network needs layers whose widths meet; got (in, out) {widths}.")
        self.layers = nn.ModuleList(layers)
        self.activation = activation
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"Unknown activation '{activation}'. Available: {', '.join(ACTIVATIONS)}."
            )
        self._act = ACTIVATIONS[activation]

    @staticmethod
    def draw(widths: Sequence[int], activation: str, generator: torch.Generator) -> "Network":
        """Draw a float32 network, each entry uniform in +-1/sqrt(in), as in torch.nn.Linear.

        Args:
            widths: of the input, of every hidden layer and of the output: at least two.
            activation: its name.
            generator: on the CPU, so that a seed gives the same network on every device.
        """
        layers = []
        for before, after in pairwise(widths):
            size = (after, before + 1)
            numbers = 2.0 * torch.rand(size, generator=generator, dtype=torch.float32) - 1.0
            numbers = numbers / math.sqrt(before)
            layers.append(Dense(numbers[:, :-1].contiguous(), numbers[:, -1].contiguous()))
        return Network(layers, activation)

    @property
    def dense(self) -> list[Dense]:
        """The layers, typed."""
        return cast("list[Dense]", list(self.layers))

    @property
    def width(self) -> int:
        """Number of inputs."""
        return self.dense[0].weight.shape[1]

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.dense[-1].weight.shape[0]

    def in_units(self, scale: Tensor) -> "Network":
        """Return x -> network(x / scale), by its first weights; scale [] or [in]."""
        first, *others = self.dense
        return Network([Dense(first.weight / scale, first.bias), *others], self.activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        *hidden, last = self.dense
        for layer in hidden:
            x = self._act.function(layer(x))
        return last(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the single output [...] and its gradient with respect to x [..., in].

        Raises:
            ValueError: if there is more than one output.
        """
        *hidden, last = self.dense
        if last.weight.shape[0] != 1:
            raise ValueError(
                f"A gradient needs one output; this network has {last.weight.shape[0]}."
            )
        inputs = []  # of the activations
        for layer in hidden:
            inputs.append(layer(x))
            x = self._act.function(inputs[-1])
        gradient = last.weight[0].expand_as(x)
        for layer, z in zip(reversed(hidden), reversed(inputs), strict=True):
            gradient = (gradient * self._act.derivative(z)) @ layer.weight
        return last(x)[..., 0], gradient

    def lipschitz(self) -> Tensor:
        """Return the product of the spectral norms and of the activations' steepest slopes, []."""
        norms = [torch.linalg.matrix_norm(layer.weight, ord=2) for layer in self.dense]
        return torch.stack(norms).prod() * self._act.steepest ** (len(norms) - 1)


class NetworkBarrier(Barrier):
    """h(a) = network((a - centre) / scale) + offset.

    Its ascent is steepest in the scaled coordinates, the metric scale^2 in a: a coordinate that
    hardly varies has a large derivative, and should not be moved most.

    Args:
        network: with d inputs and one output.
        centre: [d].
        scale: [] or [d], not 0.
        offset: a number, e.g. minus the log prior odds of the rows it was trained on.

    Raises:
        ValueError: if the network does not map [d] to one number.
    """

    def __init__(self, network: Network, centre: Tensor, scale: Tensor | float, offset: float):
        super().__init__()
        outputs = network.dense[-1].weight.shape[0]
        if centre.shape != (network.width,) or outputs != 1:
            raise ValueError(
                f"NetworkBarrier needs a network [d] -> 1 and a centre [d]; got "
                f"[{network.width}] -> {outputs} and {list(centre.shape)}."
            )
        self.network = network
        self.offset = float(offset)
        self.centre: Tensor
        self.scale: Tensor
        self.register_buffer("centre", centre)
        self.register_buffer("scale", torch.as_tensor(scale, dtype=centre.dtype))

    def _scaled(self, a: Tensor) -> Tensor:
        return (a - self.centre) / self.scale

    def value(self, a: Tensor) -> Tensor:
        return self.network(self._scaled(a))[..., 0] + self.offset

    def gradient(self, a: Tensor) -> Tensor:
        return self.network.value_and_gradient(self._scaled(a))[1] / self.scale

    def lipschitz(self) -> Tensor:
        return self.network.in_units(self.scale).lipschitz()

    def metric(self, x: Tensor) -> Tensor:
        return x * self.scale.square()

    def ascent(self, a: Tensor) -> Tensor:
        return self.network.value_and_gradient(self._scaled(a))[1] * self.scale

    @property
    def width(self) -> int:
        return self.network.width
