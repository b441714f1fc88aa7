"""Is the compiled loop the flow it was made from, and does a batch cost what it should?"""

import copy
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from odesteer.ode import SOLVERS, GradientField, QuadraticBarrier, Whitening, solve
from odesteer.ode.reduced import kernels
from odesteer.ode.reduced import solve as reduced_solve
from odesteer.ode.reduced.integrate import Integration
from odesteer.ode.reduced.kernels import numba_kernels

D, K, R = 24, 7, 5
COMPILED = ["euler", "great-circle"]


def barrier(whitened: bool = True, d: int = D, seed: int = 0) -> QuadraticBarrier:
    """A random quadratic barrier in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis, directions = (torch.linalg.qr(normal(d, width)).Q for width in (K, R))
    stretch = normal(R).abs() + 0.5
    whitening = Whitening(normal(d), directions, stretch) if whitened else Whitening(normal(d))
    return QuadraticBarrier(whitening, basis, 3 * normal(K), 3 * normal(K), 0.1)


def rows(n: int = 60, d: int = D, seed: int = 1) -> Tensor:
    return 2 * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["torch", "loop", "compiled"])
def inner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Plain torch, the loop as Python runs it, and the loop as numba compiles it."""
    kind: str = request.param
    if kind == "compiled" and numba_kernels.compiled() is None:
        pytest.skip("numba is not installed")
    if kind == "torch":
        monkeypatch.setattr(numba_kernels, "compiled", lambda: None)
    elif kind == "loop":
        monkeypatch.setattr(numba_kernels, "compiled", lambda: numba_kernels.loop)
    return kind


def relative(moved: Tensor, expected: Tensor, a: Tensor) -> float:
    """The worst row's error over its displacement."""
    error, way = (moved - expected).norm(dim=-1), (expected - a).norm(dim=-1)
    return float((error / way)[way > 0].max())


@pytest.mark.parametrize("whitened", [False, True], ids=["plain", "whitened"])
@pytest.mark.parametrize("name", COMPILED)
def test_single_precision_is_double_precision_to_rounding(
    name: str, whitened: bool, inner: str
) -> None:
    exact, a = barrier(whitened), rows()
    time = torch.linspace(0.5, 4.0, len(a))
    time[::3] *= -1.0
    how: dict[str, Any] = {"solver": SOLVERS[name], "steps": 10}
    expected = solve(GradientField(exact), a.double(), time.double(), **how)
    moved = solve(GradientField(copy.deepcopy(exact).float()), a, time, **how)
    assert relative(moved, expected, a.double()) < 1e-5


@pytest.mark.parametrize("each", [False, True], ids=["one level", "one a row"])
@pytest.mark.parametrize("whitened", [False, True], ids=["plain", "whitened"])
@pytest.mark.parametrize("name", COMPILED)
def test_rows_stop_where_double_precision_stops_them(
    name: str, whitened: bool, each: bool, inner: str
) -> None:
    exact, a = barrier(whitened), rows()
    before = exact.value(a.double())
    how: dict[str, Any] = {"solver": SOLVERS[name], "steps": 8}
    spent = exact.value(solve(GradientField(exact), a.double(), 2.0, **how))
    level: Any = float((before.median() + spent.median()) / 2)
    if each:
        level = level + torch.linspace(-0.5, 0.5, len(a), dtype=torch.float64)
        level[7] = torch.inf
    expected = solve(GradientField(exact), a.double(), 2.0, level=level, **how)
    moved = solve(GradientField(copy.deepcopy(exact).float()), a, 2.0, level=level, **how)
    there, reaches = before >= level, (before < level) & (spent >= level)
    assert int(there.sum()) > 3 and int(reaches.sum()) > 3
    assert torch.equal(moved[there], a[there])
    assert relative(moved, expected, a.double()) < 1e-4
    excess = (exact.value(moved.double()) - level)[reaches]
    assert float(excess.min()) > -2e-6 and float(excess.max()) < 1e-4


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("whitened", [False, True], ids=["plain", "whitened"])
@pytest.mark.parametrize("name", COMPILED)
def test_a_few_rows_go_through_one_piece_of_code_that_does_the_same(
    name: str, whitened: bool, n: int
) -> None:
    if numba_kernels.compiled() is None:
        pytest.skip("numba is not installed")
    exact, a = barrier(whitened, d=700), rows(40, 700)
    one, how = copy.deepcopy(exact).float(), {"solver": SOLVERS[name], "steps": 7}
    time = torch.linspace(0.5, 4.0, len(a))
    time[5], time[7] = 0.0, -1.0
    before = exact.value(a.double())
    spent = exact.value(solve(GradientField(exact), a.double(), time.double(), **how))
    level = (before + spent) / 2
    level[::3], level[5] = torch.inf, torch.inf
    # Not the median itself, which one row has: rounding would decide whether it is there.
    for levels in (None, level, float(before.median()) + 0.05):
        some: Any = {} if levels is None else {"level": levels}
        expected = solve(GradientField(exact), a.double(), time.double(), **some, **how)
        moved = []
        for i in range(0, len(a), n):
            each = {"level": levels[i : i + n].float()} if isinstance(levels, Tensor) else some
            part = Integration(time[i : i + n], how["solver"], how["steps"], *each.values())
            assert kernels.solve(one.reduced_basis, a[i : i + n], part) is not None
            moved.append(solve(GradientField(one), a[i : i + n], time[i : i + n], **each, **how))
        stays = (expected == a.double()).all(dim=-1)
        assert int(stays.sum()) >= 1
        assert torch.equal(torch.cat(moved)[stays], a[stays])
        # A row that barely moves ends a little above its level, which is much of its way.
        close = 1e-5 if levels is None else 1e-3
        assert relative(torch.cat(moved), expected, a.double()) < close


def test_every_row_has_its_own_level_in_double_precision_too() -> None:
    exact, a = barrier(), rows().double()
    level = exact.value(a) + torch.linspace(0.01, 0.3, len(a), dtype=torch.float64)
    field, how = GradientField(exact), {"solver": SOLVERS["rk4"], "steps": 8}
    together = solve(field, a, 2.0, level=level, **how)
    alone = torch.stack(
        [solve(field, a[i], 2.0, level=float(level[i]), **how) for i in range(len(a))]
    )
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


def test_nothing_moves_at_time_zero_at_the_centre_or_where_it_is_not_finite(inner: str) -> None:
    one = barrier().float()
    a = torch.cat([rows(3), one.whitening.centre[None], rows(1)])
    a[4, 2] = torch.nan
    time = torch.tensor([0.0, -0.0, 1.0, 1.0, 1.0])
    moved = solve(GradientField(one), a, time, solver=SOLVERS["great-circle"], steps=4)
    assert torch.equal(moved[[0, 1, 3]], a[[0, 1, 3]])
    assert bool(torch.isfinite(moved[2]).all()) and not torch.equal(moved[2], a[2])
    assert bool(torch.isnan(moved[4]).any())


def test_what_the_span_holds_entirely_has_no_remainder_to_scale(inner: str) -> None:
    exact = barrier(whitened=False)
    inside = exact.whitening.centre + rows(20, K).double() @ exact.basis.mT
    how: dict[str, Any] = {"solver": SOLVERS["great-circle"], "steps": 5}
    expected = solve(GradientField(exact), inside, 1.0, **how)
    one = copy.deepcopy(exact).float()
    moved = solve(GradientField(one), inside.float(), 1.0, **how)
    assert relative(moved, expected, inside) < 1e-4


@pytest.mark.parametrize(
    "n", [1, 3, reduced_solve.WORKSPACE // 4096 - 1, reduced_solve.WORKSPACE // 4096 * 2]
)
def test_a_batch_of_any_size_moves_each_row_as_it_moves_alone(n: int) -> None:
    one, a = barrier(d=4096).float(), rows(n, 4096)
    how: dict[str, Any] = {"solver": SOLVERS["great-circle"], "steps": 4}
    together = solve(GradientField(one), a, 3.0, **how)
    some = range(0, n, max(1, n // 5))
    alone = torch.stack([solve(GradientField(one), a[i], 3.0, **how) for i in some])
    torch.testing.assert_close(together[list(some)], alone, rtol=1e-5, atol=1e-5)


def test_rows_that_are_not_side_by_side_in_memory_are_moved_too() -> None:
    one, a = barrier().float(), rows(40).view(4, 10, D)
    how: dict[str, Any] = {"solver": SOLVERS["great-circle"], "steps": 4}
    moved = solve(GradientField(one), a.transpose(0, 1), 3.0, **how)
    torch.testing.assert_close(moved.transpose(0, 1), solve(GradientField(one), a, 3.0, **how))


def test_a_workspace_of_inference_mode_can_be_used_outside_of_it() -> None:
    one, a = barrier().float(), rows()
    how: dict[str, Any] = {"solver": SOLVERS["great-circle"], "steps": 4}
    results: list[Tensor] = []

    def work() -> None:  # in a thread of its own: the workspace is not there yet
        with torch.inference_mode():
            results.append(solve(GradientField(one), a, 3.0, **how))
        results.append(solve(GradientField(one), a, 3.0, **how))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert torch.equal(*results)


def test_threads_do_not_share_a_workspace() -> None:
    one = barrier().float()
    batches = [rows(200, seed=seed) for seed in range(8)]
    how: dict[str, Any] = {"solver": SOLVERS["great-circle"], "steps": 4}
    expected = [solve(GradientField(one), a, 3.0, **how) for a in batches]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            moved = solve(GradientField(one), batches[i], 3.0, **how)
            wrong.extend([] if torch.equal(moved, expected[i]) else [i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("n", [1, 5])
def test_single_precision_rows_of_a_double_precision_field_are_solved_in_double(n: int) -> None:
    exact, a = barrier(), rows(n)
    how: dict[str, Any] = {"solver": SOLVERS["great-circle"], "steps": 4}
    moved = solve(GradientField(exact), a, 1.0, **how)
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved, solve(GradientField(exact), a.double(), 1.0, **how).float())


def test_gradients_pass_through_the_flow_where_they_are_asked_for() -> None:
    one, a = barrier(), rows(3).double().requires_grad_()
    moved = solve(GradientField(one), a, 1.0, solver=SOLVERS["rk4"], steps=3)
    (gradient,) = torch.autograd.grad(moved.sum(), a)
    assert bool((gradient != 0).any())


class _Count(TorchDispatchMode):
    """Counts operations, and the values of results that are memory of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.fresh: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, Tensor)}
        given |= {
            each.untyped_storage().data_ptr()
            for each in (kwargs or {}).values()
            if isinstance(each, Tensor)
        }
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given:
            self.fresh.append(result.numel())
        return result


@pytest.fixture
def counted() -> Iterator[Callable[..., _Count]]:
    def run(n: int, steps: int, level: float | None = None) -> _Count:
        one, a, time = barrier(d=512).float(), rows(n, 512), torch.full((n,), 3.0)
        how: dict[str, Any] = {"solver": SOLVERS["great-circle"], "steps": steps, "level": level}
        with torch.no_grad():
            solve(GradientField(one), a, time, **how)
            with _Count() as count:
                solve(GradientField(one), a, time, **how)
        return count

    yield run


def test_a_batch_costs_two_thin_products_one_result_and_no_operation_more_for_more_steps(
    counted: Callable[..., _Count],
) -> None:
    if numba_kernels.compiled() is None:
        pytest.skip("numba is not installed")
    one, many = counted(64, 1), counted(64, 100)
    assert one.operations == many.operations <= 25
    assert [size for size in many.fresh if size >= 64 * 512] == [64 * 512]
    # Rows that are at the level already are put back as they were.
    assert counted(64, 10, level=0.5).operations <= one.operations + 2


def test_without_a_compiler_operations_grow_with_steps_and_not_with_rows(
    counted: Callable[..., _Count], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numba_kernels, "compiled", lambda: None)
    few, many = counted(4, 10), counted(256, 10)
    assert few.operations == many.operations
    assert [size for size in many.fresh if size >= 256 * 512] == [256 * 512]
    each = (counted(4, 20).operations - few.operations) / 10
    assert each <= 47


def _nothing(_: float) -> None:
    """A loop that is compiled in no time."""


def test_a_compiler_without_a_folder_to_write_to_compiles_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caching = pytest.importorskip("numba.core.caching")
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    monkeypatch.setattr(numba_kernels, "loop", _nothing)
    monkeypatch.setattr(numba_kernels, "_SIGNATURE", "void(f8)")
    code = numba_kernels.compiled.__wrapped__()
    assert type(code).__name__ == "CPUDispatcher" and len(code.signatures) == 1


def test_a_compiler_that_refuses_the_numpy_that_is_there_is_no_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(numba_kernels, "find_spec", lambda name: name)
    with pytest.warns(UserWarning, match="The loop of the ODE is not compiled"):
        assert numba_kernels.compiled.__wrapped__() is None
