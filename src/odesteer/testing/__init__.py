"""Checks for steering libraries (conformance suite) and for steering methods.

    from odesteer.testing import Adapter, Steered, conformance

    class Mine(Adapter):
        name = "mine"

        def attach(self, model, layer, vector, positions):
            ...                                     # steer as your users do
            return Steered(model, remove)

    @conformance(Mine())
    def test_conformance(case):
        case.check()

Or without a file: `odesteer conformance --adapter mine.testing:Mine`, or
`pytest --pyargs odesteer.testing.suite --steering-adapter mine.testing:Mine`.

And is a method right, as one file of odesteer or of another package? `check_method(Mine())`, see
`odesteer.testing.method_checks`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odesteer.testing.method_checks import METHOD_CHECKS, FittedMethod, check_method
    from odesteer.testing.suite.adapter import (
        POSITIONS,
        Adapter,
        NotOffered,
        OdesteerFlow,
        OdesteerVector,
        Steered,
    )
    from odesteer.testing.suite.architectures import ARCHITECTURES, Architecture
    from odesteer.testing.suite.checks import CHECKS, Check
    from odesteer.testing.suite.pytest_plugin import conformance
    from odesteer.testing.suite.runner import Case, Result, cases, load_adapter, run, table

# Imported at first use: pytest loads this package in every session where odesteer is installed.
_HOMES = {
    "odesteer.testing.suite.adapter": (
        "POSITIONS",
        "Adapter",
        "NotOffered",
        "OdesteerFlow",
        "OdesteerVector",
        "Steered",
    ),
    "odesteer.testing.suite.architectures": ("ARCHITECTURES", "Architecture"),
    "odesteer.testing.suite.checks": ("CHECKS", "Check"),
    "odesteer.testing.suite.pytest_plugin": ("conformance",),
    "odesteer.testing.suite.runner": (
        "Case",
        "Result",
        "cases",
        "load_adapter",
        "run",
        "table",
    ),
    "odesteer.testing.method_checks": ("METHOD_CHECKS", "FittedMethod", "check_method"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ARCHITECTURES",
    "CHECKS",
    "METHOD_CHECKS",
    "POSITIONS",
    "Adapter",
    "Architecture",
    "Case",
    "Check",
    "FittedMethod",
    "NotOffered",
    "OdesteerFlow",
    "OdesteerVector",
    "Result",
    "Steered",
    "cases",
    "check_method",
    "conformance",
    "load_adapter",
    "run",
    "table",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'odesteer.testing' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
