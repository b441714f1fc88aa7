"""Imports that the contract in pyproject.toml (`make lint`) does not speak of."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import odesteer

ROOT = Path(odesteer.__file__).parent
TREES = {
    file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8"))
    for file in sorted(ROOT.rglob("*.py"))
}
MODULES = {
    ".".join(("odesteer", *Path(name).with_suffix("").parts)).removesuffix(".__init__"): name
    for name in TREES
}

# Files that may import odesteer inside a function. Take a file off when it does so no longer; a new
# one needs a reason as good as these. Commands are free to: `odesteer --help` needs no torch.
LATE = {
    # pytest loads its plugins in every session, Inspect its providers in every evaluation.
    "integrations/inspect_ai.py",
    "testing/suite/pytest_plugin.py",
    # triton is optional.
    "ode/reduced/kernels/triton_launch.py",
    # matplotlib takes a second, and few draw.
    "evaluation/selection/result.py",
    # transformers takes seconds, and whoever has a model has imported it.
    "extraction/extract.py",
}


def imported(node: ast.AST) -> list[str]:
    """The names that one statement imports; `from a import b` gives a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when a module is imported."""
    for node in ast.iter_child_nodes(tree):
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not typing and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
            yield from at_import(node)


def late(tree: ast.AST) -> set[str]:
    """The names of ours that functions import."""
    return {
        name
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        for name in imported(node)
        if name.split(".")[0] == "odesteer"
    }


def test_only_files_on_the_list_import_odesteer_inside_a_function() -> None:
    files = {name for name, tree in TREES.items() if not name.startswith("cli/") and late(tree)}
    assert files <= LATE, "import at the top of the file"
    assert files >= LATE, "take these off the list"


def test_no_import_is_relative() -> None:
    nodes = ((name, node) for name, tree in TREES.items() for node in ast.walk(tree))
    assert not [name for name, node in nodes if isinstance(node, ast.ImportFrom) and node.level]


def test_no_modules_import_each_other_in_a_circle() -> None:
    """graphlib names the circle."""
    graph = {
        module: {
            target if target in MODULES else target.rpartition(".")[0]
            for node in at_import(TREES[name])
            for target in imported(node)
        }
        & MODULES.keys()
        for module, name in MODULES.items()
    }
    TopologicalSorter(graph).prepare()


def test_the_mathematics_imports_torch_alone() -> None:
    # Kernels also import their compilers, and the arrays that one of them reads.
    compilers = {"numba", "numpy", "triton"}
    for name, tree in TREES.items():
        if name.startswith("ode/"):
            allowed = {"torch", "odesteer", *sys.stdlib_module_names}
            allowed |= compilers if name.startswith("ode/reduced/kernels/") else set()
            targets = {target for node in ast.walk(tree) for target in imported(node)}
            assert {target.split(".")[0] for target in targets} <= allowed, name


@pytest.mark.parametrize(
    ("module", "slow"),
    [("odesteer.steering", ("transformers", "torch._dynamo")), ("odesteer.cli", ("torch",))],
)
def test_importing_does_not_import_what_takes_seconds(module: str, slow: tuple[str, ...]) -> None:
    code = f"import sys, {module}; sys.exit(not sys.modules.keys().isdisjoint({slow}))"
    environment = {"PYTHONPATH": str(ROOT.parent), "PATH": ""}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
