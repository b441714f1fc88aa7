"""Operations that a steering adds to a decoding step, and no wait of a GPU.

Counts, within one run: seconds belong to `perf/`, where machines can be compared with themselves.
"""

import copy
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import torch
from tests.helpers.models import WIDTH, constant, model, padded, prompt, quadratic
from torch.utils._python_dispatch import TorchDispatchMode

from odesteer import Angle, PathLength, PerRow, Steering, Target, Time
from odesteer.models.hooks.token_tracker import ForwardCall
from odesteer.ode import (
    SOLVERS,
    ConstantField,
    GradientField,
    LinearBarrier,
    QuadraticBarrier,
    VectorField,
    Whitening,
)
from odesteer.ode.reduced.kernels import numba_kernels
from odesteer.steering import LayerSteering

DOSES = [
    Time(0.5),
    Angle(-0.2),
    PathLength(0.3),
    Target(0.9, Angle(0.4)),
    PerRow([Time(0.1), Angle(0.2), Target(0.8, 2.0), 0.0]),
]


class _Operations(TorchDispatchMode):
    """Counts what torch is asked for, by name; views cost nothing and are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def _decoding_step(net: Any) -> Counter[str]:
    """The operations of one forward pass of one new token on a cache."""
    with torch.no_grad():
        cache = net(prompt(5), use_cache=True).past_key_values
        net(prompt(1), past_key_values=cache)  # workspaces are made the first time
        with _Operations() as operations:
            net(prompt(1), past_key_values=cache)
    return operations.names


def _added(steering: Steering) -> int:
    net = model()
    plain = _decoding_step(net)
    with steering.attach(net):
        steered = _decoding_step(net)
    return (steered - plain).total()


def test_a_vector_adds_a_handful_of_operations_to_a_token():
    assert 1 <= _added(constant()) <= 8


def test_an_ode_adds_as_many_operations_to_a_token_whatever_its_steps():
    if numba_kernels.compiled() is None:
        pytest.skip("numba is not installed")
    few, many = (_added(quadratic().replace(steps=steps)) for steps in (1, 50))
    assert few == many <= 20


def _reads(net: Any, new: int) -> int:
    """How often generating `new` tokens after a padded prompt reads a value back."""
    ids, mask = padded([prompt(4), prompt(9)])
    with torch.no_grad(), _Operations() as operations:
        net.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False)
    return operations.names["_local_scalar_dense"]


def test_generating_one_more_token_reads_no_value_back() -> None:
    net = model()
    plain = _reads(net, 6) - _reads(net, 3)
    with constant().attach(net):
        assert _reads(net, 6) - _reads(net, 3) == plain


def _field(name: str) -> VectorField:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if name == "constant":
        return ConstantField(normal(WIDTH), LinearBarrier(normal(WIDTH)))
    if name == "linear":
        return GradientField(LinearBarrier(normal(WIDTH)))
    directions = torch.linalg.qr(normal(WIDTH, 3)).Q if name == "whitened" else None
    stretch = None if directions is None else normal(3).abs() + 0.5
    whitening = Whitening(normal(WIDTH), directions, stretch)
    basis = torch.linalg.qr(normal(WIDTH, 4)).Q
    return GradientField(QuadraticBarrier(whitening, basis, normal(4), normal(4), 0.1))


def _without_values(steering: LayerSteering) -> torch.Tensor:
    """Activations [4, 1, d] of shapes alone, for a steering that is now there too.

    The "meta" device has no memory: like a GPU it is not the CPU, and where a GPU would have to
    be waited for, for a value, it raises.
    """
    a = torch.empty(4, 1, WIDTH, dtype=torch.bfloat16, device="meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool((a > 0).any())
    nowhere = copy.deepcopy(steering.field)._apply(lambda t: torch.empty_like(t, device="meta"))
    steering._on_device[(a.device, torch.float32)] = (nowhere, WIDTH)
    return a


@pytest.mark.parametrize("dose", DOSES, ids=str)
@pytest.mark.parametrize("solver", [name for name in SOLVERS if name != "dopri5"])
@pytest.mark.parametrize("name", ["constant", "linear", "plain", "whitened"])
def test_no_value_is_read_back_from_the_device(name: str, solver: str, dose: Any) -> None:
    if solver == "great-circle" and name in ("constant", "linear"):
        pytest.skip("there is no sphere to stay on")
    steering = LayerSteering(_field(name), dose, solver=solver, steps=3, layer=0)
    a = _without_values(steering)
    moved = steering(a)
    assert moved.shape == a.shape and moved.dtype == a.dtype and moved.is_meta


@pytest.mark.parametrize("dose", DOSES, ids=str)
def test_nor_is_any_by_the_hook_of_a_decoding_step(dose: Any) -> None:
    net, steering = model(), quadratic().with_strength(dose)
    with steering.attach(net) as handle:
        [part] = handle.parts
        assert isinstance(part.steering, LayerSteering)
        a = _without_values(part.steering)
        state = part._tracker._local
        state.call, state.tokens = ForwardCall(9, 5, None, None), (4, 1)
        try:
            assert part._apply(a, WIDTH).shape == a.shape
        finally:
            state.call = state.tokens = None


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import odesteer", {"torch", "sklearn", "transformers"}),
        ("from typer.main import get_command; from odesteer.cli.app import app; get_command(app)",
         {"torch", "sklearn", "transformers", "matplotlib"}),
        ("import odesteer; odesteer.Steering", {"sklearn", "transformers", "matplotlib", "numba"}),
    ],
    ids=["import", "help", "steering"],
)  # fmt: skip
def test_what_is_not_needed_is_not_imported(code: str, absent: set[str]) -> None:
    script = f"import sys; {code}; print(*sorted(set(sys.modules) & {absent!r}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not run.stdout.split()
