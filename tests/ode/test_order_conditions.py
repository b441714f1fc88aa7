"""Order conditions of the Runge-Kutta methods, by rooted trees.

A method has order p exactly if  sum_i b_i Phi_i(tree) = 1 / gamma(tree)  for every rooted tree
with at most p nodes.

Source: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 2nd ed., II.2.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest

from odesteer.ode import Tableau, solvers

BUILT_IN = {name: value for name, value in vars(solvers).items() if isinstance(value, Tableau)}
ORDERS = {"EULER": 1, "MIDPOINT": 2, "HEUN": 2, "RK4": 4, "RK4_38": 4, "DOPRI5": 5}

Tree = tuple["Tree", ...]


@lru_cache
def rooted_trees(nodes: int) -> tuple[Tree, ...]:
    """All rooted trees with that many nodes; a tree is the sorted tuple of its branches."""
    return tuple(sorted(set(_forests(nodes - 1))))


def _forests(nodes: int) -> Iterator[Tree]:
    if nodes == 0:
        yield ()
        return
    for size in range(1, nodes + 1):
        for tree in rooted_trees(size):
            for rest in _forests(nodes - size):
                yield tuple(sorted((tree, *rest)))


def _size(tree: Tree) -> int:
    return 1 + sum(_size(branch) for branch in tree)


def _density(tree: Tree) -> int:
    product = _size(tree)
    for branch in tree:
        product *= _density(branch)
    return product


def _weights(tree: Tree, a: tuple[tuple[float, ...], ...]) -> list[float]:
    """Phi_i(tree) for every stage i."""
    phi = [1.0] * len(a)
    for branch in tree:
        inner = _weights(branch, a)
        for i, row in enumerate(a):
            phi[i] *= sum(a_ij * inner[j] for j, a_ij in enumerate(row))
    return phi


def check_order(method: Tableau) -> None:
    """Assert every order condition of the method, and of its embedded one."""
    _check(method.a, method.b, method.order)
    if method.b_error is not None:
        _check(method.a, method.b_error, method.order - 1)


def _check(a: tuple[tuple[float, ...], ...], b: tuple[float, ...], order: int) -> None:
    for nodes in range(1, order + 1):
        for tree in rooted_trees(nodes):
            phi = _weights(tree, a)
            total = sum(b_i * phi_i for b_i, phi_i in zip(b, phi, strict=True))
            assert abs(total * _density(tree) - 1.0) <= 1e-12, f"not of order {order}: {tree}"


def _changed(row: tuple[float, ...], at: int, by: float) -> tuple[float, ...]:
    return tuple(x + by if i == at else x for i, x in enumerate(row))


def test_the_built_in_methods_have_their_textbook_orders() -> None:
    assert {name: method.order for name, method in BUILT_IN.items()} == ORDERS


@pytest.mark.parametrize("name", list(ORDERS))
def test_every_built_in_method_has_the_order_it_claims(name: str) -> None:
    check_order(BUILT_IN[name])


@pytest.mark.parametrize(("nodes", "count"), [(1, 1), (2, 1), (3, 2), (4, 4), (5, 9)])
def test_the_rooted_trees_are_as_many_as_cayley_counted(nodes: int, count: int) -> None:
    assert len(rooted_trees(nodes)) == count
    assert len(set(rooted_trees(nodes))) == count


def _with_one_digit_wrong(method: Tableau) -> Iterator[dict[str, Any]]:
    """The changed field of `method`, for every entry of it and every step."""
    for by in (1e-3, -1e-6):
        for i, row in enumerate(method.a):
            for j in range(len(row)):
                yield {"a": (*method.a[:i], _changed(row, j, by), *method.a[i + 1 :])}
        for name, weights in (("b", method.b), ("b_error", method.b_error)):
            for i in range(len(weights or ())):
                yield {name: _changed(weights, i, by)}


@pytest.mark.parametrize("name", ORDERS)
def test_a_wrong_digit_anywhere_is_found(name: str) -> None:
    method = BUILT_IN[name]
    wrong = list(_with_one_digit_wrong(method))
    entries = sum(map(len, method.a)) + len(method.b) + len(method.b_error or ())
    assert len(wrong) == 2 * entries
    for field in wrong:
        with pytest.raises(AssertionError, match="not of order"):
            check_order(replace(method, **field))


@pytest.mark.parametrize("name", ["EULER", "MIDPOINT", "HEUN", "RK4", "RK4_38"])
def test_claiming_one_order_more_fails(name: str) -> None:
    with pytest.raises(AssertionError, match="not of order"):
        check_order(replace(BUILT_IN[name], order=BUILT_IN[name].order + 1))


def test_the_embedded_method_is_not_the_method_itself() -> None:
    # Equal weights would estimate every error as 0.
    assert BUILT_IN["DOPRI5"].b != BUILT_IN["DOPRI5"].b_error
    with pytest.raises(AssertionError, match="not of order 5"):
        check_order(replace(BUILT_IN["DOPRI5"], b=BUILT_IN["DOPRI5"].b_error))


@pytest.mark.parametrize("a", [((0.0,), (1.0, 0.0)), ((), ()), ((),), ((), (1.0,), (0.5, 0.5))])
def test_rows_that_are_not_explicit_raise(a: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValueError, match="explicit"):
        Tableau(a=a, b=(0.5, 0.5), order=2)
