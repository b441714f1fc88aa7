"""Is a steering library right? A conformance suite for anybody's.

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
`odesteer.testing.promises`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odesteer.testing.adapter import POSITIONS, Adapter, NotOffered, Steered
    from odesteer.testing.architectures import ARCHITECTURES, Architecture
    from odesteer.testing.check import CHECKS, Check
    from odesteer.testing.ours import OdesteerFlow, OdesteerVector
    from odesteer.testing.plugin import conformance
    from odesteer.testing.promises import PROMISES, Trial, check_method
    from odesteer.testing.report import table
    from odesteer.testing.runner import Case, Result, cases, load_adapter, run

# Imported at first use: pytest loads this package in every session where odesteer is installed.
_HOMES = {
    "odesteer.testing.adapter": ("POSITIONS", "Adapter", "NotOffered", "Steered"),
    "odesteer.testing.architectures": ("ARCHITECTURES", "Architecture"),
    "odesteer.testing.check": ("Check",),
    "odesteer.testing.ours": ("OdesteerFlow", "OdesteerVector"),
    "odesteer.testing.plugin": ("conformance",),
    "odesteer.testing.runner": ("CHECKS", "Case", "Result", "cases", "load_adapter", "run"),
    "odesteer.testing.promises": ("PROMISES", "Trial", "check_method"),
    "odesteer.testing.report": ("table",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ARCHITECTURES",
    "CHECKS",
    "POSITIONS",
    "PROMISES",
    "Adapter",
    "Architecture",
    "Case",
    "Check",
    "NotOffered",
    "OdesteerFlow",
    "OdesteerVector",
    "Result",
    "Steered",
    "Trial",
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
