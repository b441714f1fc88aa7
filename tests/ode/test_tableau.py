"""A Runge-Kutta method with a wrong digit cannot be made."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from odesteer.ode.solvers import butcher as tableau
from odesteer.ode.solvers.butcher import Tableau, rooted_trees

BUILT_IN = {name: value for name, value in vars(tableau).items() if isinstance(value, Tableau)}
ORDERS = {"EULER": 1, "MIDPOINT": 2, "HEUN": 2, "RK4": 4, "RK4_38": 4, "DOPRI5": 5}


def _changed(row: tuple[float, ...], at: int, by: float) -> tuple[float, ...]:
    return tuple(x + by if i == at else x for i, x in enumerate(row))


def test_the_built_in_methods_have_their_textbook_orders() -> None:
    assert {name: method.order for name, method in BUILT_IN.items()} == ORDERS


@pytest.mark.parametrize("name", list(ORDERS))
def test_every_built_in_method_constructs_again(name: str) -> None:
    assert replace(BUILT_IN[name]) == BUILT_IN[name]


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
def test_a_wrong_digit_anywhere_raises(name: str) -> None:
    method = BUILT_IN[name]
    wrong = list(_with_one_digit_wrong(method))
    entries = sum(map(len, method.a)) + len(method.b) + len(method.b_error or ())
    assert len(wrong) == 2 * entries
    for field in wrong:
        with pytest.raises(ValueError, match="not of order"):
            replace(method, **field)


@pytest.mark.parametrize("name", ["EULER", "MIDPOINT", "HEUN", "RK4", "RK4_38"])
def test_claiming_one_order_more_raises(name: str) -> None:
    with pytest.raises(ValueError, match="not of order"):
        replace(BUILT_IN[name], order=BUILT_IN[name].order + 1)


def test_the_embedded_method_is_not_the_method_itself() -> None:
    # Equal weights would estimate every error as 0.
    assert BUILT_IN["DOPRI5"].b != BUILT_IN["DOPRI5"].b_error
    with pytest.raises(ValueError, match="not of order 5"):
        replace(BUILT_IN["DOPRI5"], b=BUILT_IN["DOPRI5"].b_error)


@pytest.mark.parametrize("a", [((0.0,), (1.0, 0.0)), ((), ()), ((),), ((), (1.0,), (0.5, 0.5))])
def test_rows_that_are_not_explicit_raise(a: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValueError, match="explicit"):
        Tableau(a=a, b=(0.5, 0.5), order=2)
