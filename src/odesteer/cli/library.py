"""Names of the library that commands use, imported at first use.

They are listed in `library.pyi`. Torch and scikit-learn take seconds, and neither help, nor
completion, nor a wrong option waits for them.
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_HOME = {
    alias.name: str(node.module)
    for node in _STUB.body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(_HOME[name])
    # A submodule is an attribute of its package only once it has been imported.
    return getattr(home, name) if hasattr(home, name) else import_module(f"{_HOME[name]}.{name}")
