"""Are the kernels for GPUs the flow that they were made from, and do they keep out of the way?

Without a GPU they are interpreted on a CPU, which triton decides when it is imported: so
`test_the_kernels_do_the_same_where_a_cpu_interprets_them` runs this file in a process of its own.
With one (`-m gpu`) the same tests run there, and those of graphs and synchronisation too.
"""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.paths import REPOSITORY
from torch import Tensor

from odesteer import Angle, Steering, Target
from odesteer.ode import SOLVERS, GradientField, QuadraticBarrier, Whitening, solve
from odesteer.ode.reduced.kernels import triton_launch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# Half a digit of the type is lost in writing; triton 3.9's interpreter cuts bfloat16 off.
ROUNDING = 1.0 if INTERPRETED else 0.5
COMPILED = ["euler", "great-circle"]
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETED, reason="not interpreted here")),
    pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu]),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A CPU that interprets the kernels, and a GPU."""
    name: str = request.param
    if name == "cpu":
        monkeypatch.setattr(triton_launch, "runs_on", lambda device: True)
    return name


@pytest.fixture
def move(device: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """`solve` on the device with the barrier in single precision; the kernels must have run."""
    seen: list[torch.dtype] = []
    run = triton_launch._launch

    def noted(basis: Any, a: Tensor, *rest: Any) -> Tensor:
        seen.append(a.dtype)
        return run(basis, a, *rest)

    monkeypatch.setattr(triton_launch, "_launch", noted)

    def moved(barrier: QuadraticBarrier, a: Tensor, time: Any, **how: Any) -> Tensor:
        seen.clear()
        one = copy.deepcopy(barrier).to(device, torch.float32)
        result = solve(GradientField(one), a.to(device), time, **how)
        assert seen == [a.dtype] and result.dtype == a.dtype
        return result.cpu()

    return moved


def barrier(d: int, k: int, r: int, seed: int = 0) -> QuadraticBarrier:
    """A random quadratic barrier in float64, whitened in r directions."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis, directions = (torch.linalg.qr(normal(d, width)).Q for width in (k, r))
    whitening = Whitening(normal(d), directions, normal(r).abs() + 0.5)
    return QuadraticBarrier(whitening, basis, 3 * normal(k), 3 * normal(k), 0.1)


def rows(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return 2 * torch.randn(n, d, generator=torch.Generator().manual_seed(1)).to(dtype)


def times(n: int) -> Tensor:
    time = torch.linspace(0.5, 4.0, n)
    time[1::3] *= -1.0
    return time


def level_of(kind: str, exact: QuadraticBarrier, a: Tensor, time: Any, how: Any) -> Any:
    """None, or a level that some rows are at, some reach and some do not."""
    if kind == "no level":
        return None
    after = solve(GradientField(exact), a.double(), time.double(), **how)
    before, spent = exact.value(a.double()), exact.value(after)
    level: Any = float((before.median() + spent.median()) / 2)
    if kind == "one a row":
        level = level + torch.linspace(-0.5, 0.5, len(a), dtype=torch.float64)
        level[-1] = torch.inf
    return level


def check(
    move: Callable[..., Tensor], exact: QuadraticBarrier, a: Tensor, name: str, kind: str
) -> None:
    """The kernels against the float64 flow, by rows: what stays, where others go."""
    time = times(len(a))
    if kind != "no level":
        time = time.abs()
    how: dict[str, Any] = {"solver": SOLVERS[name], "steps": 3}
    level = level_of(kind, exact, a, time, how)
    expected = solve(GradientField(exact), a.double(), time.double(), level=level, **how)
    moved = move(exact, a, time, level=level, **how)
    stays = (expected == a.double()).all(dim=1)
    assert torch.equal(moved[stays], a[stays])
    error = (moved.double() - expected).norm(dim=1)
    # What single precision does on the way, what lies between a row and just above its level,
    # and what rounding to its own type does.
    allowed = 1e-5 * (expected - a.double()).norm(dim=1) + 2e-5 * a.double().norm(dim=1)
    if a.dtype != torch.float32:
        allowed += ROUNDING * torch.finfo(a.dtype).eps * expected.norm(dim=1)
    assert bool((error <= allowed).all())
    if level is None or a.dtype != torch.float32:
        return
    full = exact.value(solve(GradientField(exact), a.double(), time.double(), **how))
    reaches = (exact.value(a.double()) < level) & (full >= level)
    excess = (exact.value(moved.double()) - level)[reaches]
    assert bool((excess > -2e-6).all()) and bool((excess < 1e-4).all())


@pytest.mark.skipif(INTERPRETED, reason="this is that process")
def test_the_kernels_do_the_same_where_a_cpu_interprets_them() -> None:
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    command = [sys.executable, "-m", "pytest", "-x", "-m", "not gpu", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]


@pytest.mark.parametrize("kind", ["no level", "one level", "one a row"])
@pytest.mark.parametrize("r", [0, 5], ids=["plain", "whitened"])
@pytest.mark.parametrize("name", COMPILED)
def test_the_kernels_are_the_flow_in_double_precision(
    name: str, r: int, kind: str, move: Callable[..., Tensor]
) -> None:
    check(move, barrier(24, 7, r), rows(20, 24), name, kind)


@pytest.mark.parametrize("kind", ["no level", "one a row"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_are_read_and_written_in_their_own_type(
    dtype: torch.dtype, kind: str, move: Callable[..., Tensor]
) -> None:
    check(move, barrier(24, 7, 5), rows(6, 24, dtype), "great-circle", kind)


@pytest.mark.parametrize("kind", ["no level", "one a row"])
@pytest.mark.parametrize(
    ("n", "d", "k", "r"),
    [(1, 24, 7, 5), (3, 24, 20, 10), (33, 100, 20, 13), (2, 576, 130, 20), (3, 576, 64, 0)],
)
def test_sizes_need_not_be_round(
    n: int, d: int, k: int, r: int, kind: str, move: Callable[..., Tensor]
) -> None:
    check(move, barrier(d, k, r), rows(n, d), "great-circle", kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("r", [0, 3], ids=["plain", "whitened"])
@pytest.mark.parametrize("name", COMPILED)
def test_rows_that_stay_keep_every_bit(
    name: str, r: int, dtype: torch.dtype, move: Callable[..., Tensor]
) -> None:
    d, k = 24, 3
    eye = torch.eye(d, dtype=torch.float64)
    whitening = Whitening(torch.zeros(d).double(), eye[:, :r], torch.full((r,), 2.0).double())
    exact = QuadraticBarrier(whitening, eye[:, :k], torch.tensor([2.0, 1.0, -1.0]).double(),
                             torch.zeros(k).double(), 0.0)  # fmt: skip
    a = rows(9, d, dtype)
    a[2] = 0.0  # at the centre
    a[3, 5], a[4, 1], a[5, 0] = torch.nan, torch.inf, -torch.inf
    a[6] = 3.0 * eye[0].to(dtype)  # at the top of h
    a[6, 7], a[7, 8] = -0.0, -0.0
    time = torch.tensor([0.0, -0.0, *[1.5] * 7])
    level = torch.full((9,), torch.inf)
    level[7] = -torch.inf
    moved = move(exact, a, time, solver=SOLVERS[name], steps=3, level=level)
    bits = {2: torch.int16, 4: torch.int32}[a.element_size()]
    assert torch.equal(moved[:8].view(bits), a[:8].view(bits))
    assert bool((moved[8] != a[8]).any()) and bool(torch.isfinite(moved[8]).all())


def test_a_barrier_that_is_the_same_everywhere_moves_nothing(move: Callable[..., Tensor]) -> None:
    flat = QuadraticBarrier(
        Whitening(torch.zeros(24).double()), torch.zeros(24, 0).double(), *torch.zeros(2, 0), 0.1
    )
    a = rows(3, 24)
    assert torch.equal(move(flat, a, 1.0, solver=SOLVERS["euler"], steps=2), a)


def test_what_torch_makes_by_default_does_not_matter(move: Callable[..., Tensor]) -> None:
    exact, a = barrier(24, 7, 5), rows(3, 24)
    how: dict[str, Any] = {"solver": SOLVERS["euler"], "steps": 2}
    expected = move(exact, a, 1.0, **how)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(move(exact, a, 1.0, **how), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_the_span_holds_entirely_has_no_remainder_to_scale(
    move: Callable[..., Tensor],
) -> None:
    exact = barrier(24, 7, 0)
    inside = exact.whitening.centre + rows(5, 7).double() @ exact.basis.mT
    check(move, exact, inside.float(), "great-circle", "no level")


def test_no_rows_and_rows_apart_in_memory_are_fine(move: Callable[..., Tensor]) -> None:
    exact = barrier(24, 7, 5)
    how: dict[str, Any] = {"solver": SOLVERS["euler"], "steps": 1}
    assert move(exact, rows(0, 24), 1.0, **how).shape == (0, 24)
    block = rows(4, 48).view(2, 2, 48)
    for apart in (block[:, :, :24].transpose(0, 1), block[..., ::2]):
        torch.testing.assert_close(
            move(exact, apart, 1.0, **how), move(exact, apart.contiguous(), 1.0, **how)
        )


@pytest.mark.parametrize("strength", [2.0, Angle(0.1), Target(0.9, 3.0)], ids=str)
def test_a_steering_hands_activations_on_as_they_are(strength: Any, device: str) -> None:
    field = GradientField(barrier(24, 7, 5).float())
    steering = Steering(field=field, strength=strength, solver="great-circle", steps=3)
    a = rows(4, 24, torch.bfloat16).view(2, 2, 24).to(device)
    seen: list[torch.dtype] = []
    with pytest.MonkeyPatch.context() as patch:
        run = triton_launch._launch
        patch.setattr(
            triton_launch, "_launch", lambda f, x, *rest: seen.append(x.dtype) or run(f, x, *rest)
        )
        moved = steering(a)
    assert seen == [torch.bfloat16] and moved.dtype == a.dtype and moved.shape == a.shape
    torch.testing.assert_close(moved.float(), steering(a.float()), rtol=ROUNDING * 2**-7, atol=1e-4)


@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled here")
@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_the_kernels_compile_for_a_gpu_that_is_not_here(
    capability: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    triton = pytest.importorskip("triton", minversion="3.3")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from odesteer.ode.reduced.kernels import triton_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    integers = {"n", "d", "m", "k", "r", "splits", "steps", "stride", "stretch"}
    integers |= {"time_stride", "level_stride"}
    types = {"a": "*bf16", "result": "*bf16", "stays": "*i1", "level": "fp32"}

    def compile_(kernel: Any, **constants: Any) -> None:
        signature = {
            each.name: "constexpr"
            if each.name in constants
            else types.get(each.name, "i32" if each.name in integers else "*fp32")
            for each in kernel.params
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        # What every card of compute capability 8 and above has.
        assert made.metadata.shared <= 99 * 1024

    for many in (1, 64):
        compile_(kernels.project, ROWS=many, COLUMNS=64, DEPTH=32)
        compile_(kernels.lift, ROWS=many, COLUMNS=64, DEPTH=32)
    sizes: dict[str, Any] = {"K": 64, "CHUNK": 64, "COLUMNS": 32, "SPLITS": 2}
    nothing: dict[str, Any] = {"mix": None, "factor": None, "levels": None}
    for straight in (True, False):
        full = {"WHITENED": True, "STRAIGHT": straight, "STOPS": True}
        plain = {"WHITENED": False, "STRAIGHT": straight, "STOPS": False}
        compile_(kernels.flow, ROWS=16, **sizes, **full)
        compile_(kernels.flow, ROWS=1, **sizes, **plain, **nothing)


# ---- on a GPU alone


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["no level", "one a row"])
@pytest.mark.parametrize("n", [1, 64, 256, 3000])
@pytest.mark.parametrize("d", [576, 4096])
@pytest.mark.parametrize("r", [0, 128], ids=["plain", "whitened"])
def test_real_sizes(
    r: int, d: int, n: int, kind: str, dtype: torch.dtype, move: Callable[..., Tensor]
) -> None:
    check(move, barrier(d, 64, r), rows(n, d, dtype), "great-circle", kind)


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("r", [0, 128], ids=["plain", "whitened"])
def test_a_graph_replays_the_passage_with_new_rows_times_and_levels(r: int) -> None:
    one = copy.deepcopy(barrier(576, 64, r)).to("cuda", torch.float32)
    a, time = rows(64, 576).cuda(), times(64).abs().cuda()
    level = one.value(a) + 0.1
    how: dict[str, Any] = {"solver": SOLVERS["great-circle"], "steps": 10}

    def run() -> Tensor:
        return solve(GradientField(one), a, time, level=level, **how)

    with torch.no_grad():
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = run()
        for seed in range(3):
            torch.manual_seed(seed)
            a.normal_(std=2.0)
            time.uniform_(0.0, 4.0)
            level.copy_(one.value(a) + torch.rand_like(level) - 0.2)
            graph.replay()
            assert torch.equal(result, run())


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("strength", [2.0, Angle(0.1), Target(0.9, 3.0)], ids=str)
def test_nothing_waits_for_the_device(strength: Any) -> None:
    field = GradientField(barrier(576, 64, 128).float())
    steering = Steering(field=field, strength=strength, solver="great-circle", steps=10)
    a = rows(16, 576, torch.bfloat16).cuda()
    steering(a)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steering(a)
    finally:
        torch.cuda.set_sync_debug_mode("default")
