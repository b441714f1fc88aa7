"""Base of a conformance check."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from odesteer.testing.suite.testbed import Testbed

CHECKS: "dict[str, Check]" = {}
"""By name, in the order of the table."""


@dataclass(frozen=True)
class Check:
    """A question, and the function that finds the answer.

    Attributes:
        name: short, for the table and for `pytest -k`.
        question: what is asked.
        run: raises AssertionError where the answer is no.
        only: architectures it runs on; empty is all.
    """

    name: str
    question: str
    run: Callable[[Testbed], None]
    only: tuple[str, ...] = ()


def check(name: str, only: tuple[str, ...] = ()) -> Callable[[Callable[[Testbed], None]], Check]:
    """Register a function as a check; its docstring is the question."""

    def register(run: Callable[[Testbed], None]) -> Check:
        CHECKS[name] = Check(name, (run.__doc__ or "").strip(), run, only)
        return CHECKS[name]

    return register


def same(one: Tensor, other: Tensor, what: str) -> None:
    """Bit for bit."""
    assert torch.equal(one, other), f"{what}: not equal"


def close(one: Tensor, other: Tensor, what: str, tolerance: float = 2e-4) -> None:
    """Equal but for the rounding of another order of the same sums, relative to the largest."""
    scale = float(other.abs().max().clamp_min(1.0))
    gap = float((one - other).abs().max())
    assert gap <= tolerance * scale, f"{what}: off by {gap:.2g} where {scale:.2g} is the largest"
