"""Butcher tableaux of explicit Runge-Kutta methods.

    k_i = v(a + dt sum_j A_ij k_j),   a(t + dt) = a + dt sum_i b_i k_i

A method has order p exactly if  sum_i b_i Phi_i(tree) = 1 / gamma(tree)  for every rooted
tree with at most p nodes; a `Tableau` checks that of itself when it is made, so a wrong
digit cannot be constructed.

Source: Hairer, Norsett, Wanner, "Solving Ordinary Differential Equations I", 2nd ed.,
chapter II.2 (order conditions) and II.5 (Dormand-Prince); Butcher (2016).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

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


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method that checks itself.

    Args:
        a: row i holds the i coefficients of stage i (the first row is empty).
        b: weights of the stages.
        order: the order it claims, 1 to 5.
        b_error: weights of an embedded method of order - 1, for step size control.

    Raises:
        ValueError: if it is not explicit or an order condition fails.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    b_error: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.a) != len(self.b) or any(len(row) != i for i, row in enumerate(self.a)):
            raise ValueError(
                f"An explicit tableau has {len(self.b)} rows of 0, 1, 2, ... coefficients; got "
                f"rows of {[len(row) for row in self.a]}."
            )
        self._check(self.b, self.order)
        if self.b_error is not None:
            self._check(self.b_error, self.order - 1)

    def _check(self, b: tuple[float, ...], order: int) -> None:
        for nodes in range(1, order + 1):
            for tree in rooted_trees(nodes):
                phi = _weights(tree, self.a)
                total = sum(b_i * phi_i for b_i, phi_i in zip(b, phi, strict=True))
                if abs(total * _density(tree) - 1.0) > 1e-12:
                    raise ValueError(
                        f"This tableau is not of order {order}: the condition of the tree "
                        f"{tree} asks for {1 / _density(tree):.6g} and it gives {total:.6g}."
                    )


EULER = Tableau(a=((),), b=(1.0,), order=1)
MIDPOINT = Tableau(a=((), (0.5,)), b=(0.0, 1.0), order=2)
HEUN = Tableau(a=((), (1.0,)), b=(0.5, 0.5), order=2)
RK4 = Tableau(a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4)
RK4_38 = Tableau(
    a=((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), b=(1 / 8, 3 / 8, 3 / 8, 1 / 8), order=4
)
DOPRI5 = Tableau(
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    order=5,
    b_error=(
        5179 / 57600,
        0.0,
        7571 / 16695,
        393 / 640,
        -92097 / 339200,
        187 / 2100,
        1 / 40,
    ),
)
