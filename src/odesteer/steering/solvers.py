"""Lookup of solvers by name, ours or those of entry points.

Another package adds one as an object, under the entry-point group "odesteer.solvers":

    [project.entry-points."odesteer.solvers"]
    ralston = "my_package:RALSTON"      # RALSTON = RungeKutta(Tableau(a=..., b=..., order=2))
"""

from functools import lru_cache

from odesteer.common.registry import resolve
from odesteer.ode import SOLVERS, Solver

GROUP = "odesteer.solvers"


def find_solver(name: str) -> Solver:
    """Return a solver by its name.

    Raises:
        ValueError: for an unknown name; says which there are.
    """
    # Asked for at every token: only what is not ours is looked for.
    return SOLVERS[name] if name in SOLVERS else _of_others(name)


@lru_cache
def _of_others(name: str) -> Solver:
    found: Solver = resolve(SOLVERS, name, "solver", GROUP, Solver, instance=True)
    return found
