"""Descriptive facts of a method: title, paper, equation, differences."""

from typing import NamedTuple


class MethodInfo(NamedTuple):
    """A method's row in the table of all methods (`odesteer methods`).

    Attributes:
        field: v(a), as a formula.
        barrier: h(a), or "-" where the method has none.
        exact: what the exact flow of the field is.
        strength: what a plain number as strength means.
        source: authors, venue, year and link.
        keeps_norm: ||a|| stays what it was, to rounding, with the method's own solver.
    """

    field: str
    barrier: str
    exact: str
    strength: str
    source: str
    keeps_norm: bool = False
