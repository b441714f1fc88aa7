"""Which part may know which: the table of the architecture, enforced."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import odesteer

ROOT = Path(odesteer.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NOTHING: set[str] = set()
BELOW_FITTING = {
    "ode",
    "lookup",
    "solvers",
    "layers",
    "templates",
    "calibration",
    "artifact",
    "steering",
    "layered",
    "methods",
    "contrast",
    "texts",
    "capture",
    "cache",
    "prefixes",
    "batches",
    "continuing",
    "reading",
    "extraction",
    "attach",
    "positions",
    "calls",
    "tracker",
    "backends",
}
MAY_IMPORT = {
    "ode": NOTHING,
    "lookup": NOTHING,
    "solvers": {"ode", "lookup"},
    "structure": NOTHING,
    "layers": {"structure"},
    "templates": NOTHING,
    "calibration": NOTHING,
    "bootstrap": NOTHING,
    "planar": NOTHING,
    "artifact": {"ode", "lookup", "layers", "structure"},
    "steering": {"ode", "lookup", "artifact", "solvers"},
    "methods": {"ode", "steering", "lookup", "calibration"},
    "composition": {"ode", "steering"},
    "expression": {"lookup"},
    "layered": {"ode", "artifact", "exposition", "steering"},
    "contrast": {"artifact", "lookup", "templates"},
    "texts": {"contrast", "layers", "templates"},
    "capture": {"layers"},
    "cache": {"artifact"},
    "prefixes": NOTHING,
    "batches": {"prefixes"},
    "continuing": {"cache", "layers", "structure"},
    "reading": {"batches", "capture"},
    "extraction": {"batches", "cache", "capture", "contrast", "layers", "reading", "texts"},
    "compiled": NOTHING,
    "calls": NOTHING,
    "gallery_result": {"artifact", "bootstrap", "planar"},
    "hooks": NOTHING,
    "tracker": {"calls", "compiled", "hooks", "layers"},
    "positions": {"calls", "lookup", "tracker"},
    "record": {"steering"},
    "exposition": NOTHING,
    "handle": {
        "calls",
        "compiled",
        "exposition",
        "hooks",
        "layers",
        "ode",
        "positions",
        "record",
        "steering",
        "tracker",
    },
    "attach": {"artifact", "handle", "layers", "positions", "steering", "tracker"},
    # Also the package itself, for its version: machines that serve together have to agree.
    "backends": {
        "",
        "artifact",
        "attach",
        "contrast",
        "expression",
        "extraction",
        "layered",
        "layers",
        "lookup",
        "ode",
        "steering",
        "templates",
    },
    "matching": {"ode", "steering"},
    "case": {"templates"},
    "benchmarks": {"case", "contrast", "lookup"},
    "gallery": {
        "gallery_result",
        "ode",
        "lookup",
        "artifact",
        "steering",
        "methods",
        "bootstrap",
        "planar",
        "matching",
    },
    "models": {"cache"},
    "judges": {
        "backends",
        "benchmarks",
        "cache",
        "case",
        "contrast",
        "layers",
        "lookup",
        "models",
        "templates",
    },
    "metrics": NOTHING,
    "detection": {"bootstrap", "calibration"},
    "monitoring": {
        "attach",
        "cache",
        "contrast",
        "detection",
        "extraction",
        "layered",
        "steering",
        "texts",
    },
    "report": {"artifact", "bootstrap", "calibration", "methods", "metrics", "plots"},
    "work": {"artifact"},
    "shards": {
        # The package itself for its version.
        "",
        "artifact",
        "cache",
        "capture",
        "contrast",
        "extraction",
        "layers",
        "lookup",
        "models",
        "texts",
        "work",
    },
    "fitting": BELOW_FITTING,
    "tuning": BELOW_FITTING | {"fitting", "bootstrap", "case"},
    "experiment": BELOW_FITTING
    # The package itself for its version.
    | {"", "fitting", "tuning", "matching", "case", "benchmarks", "judges", "models", "work"},
}
# When used, or for types: a steering is attached by the engine without needing it, and what imports
# transformers takes seconds.
MAY_IMPORT_LATE = {
    "artifact": {"steering"},
    "steering": {"attach", "handle", "positions", "composition"},
    "reading": {"continuing"},
    "extraction": {"continuing"},
    "layered": {"handle", "positions", "record"},
    "tuning": {"judges"},
    # What a steering changes in a text is measured there, for tuning and for judging.
    "judges": {"tuning"},
}


def part_of(names):
    """The first name below `odesteer` that is a file or folder; "" for the package itself."""
    name = names[1] if len(names) > 1 else ""
    return name if (ROOT / f"{name}.py").is_file() or ((ROOT / name).is_dir() and name) else ""


def imports(file):
    """(part, late) of every import of ours in a file; late: not run when the file is."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    late = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        for inner in ast.walk(node)
    }
    package = ("odesteer", *file.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree):
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            targets = [[*base, alias.name] for alias in node.names]
        for names in targets:
            if names[0] == "odesteer":
                yield part_of(names), id(node) in late


def home(file):
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_part_of_the_table_exists():
    assert {home(file) for file in FILES} >= set(MAY_IMPORT)


@pytest.mark.parametrize("part", MAY_IMPORT)
def test_a_part_knows_only_what_the_table_allows(part):
    for file in FILES:
        if home(file) != part:
            continue
        for imported, late in imports(file):
            later = MAY_IMPORT_LATE.get(part, NOTHING) if late else NOTHING
            allowed = MAY_IMPORT[part] | {part} | later
            assert imported in allowed, f"{file.relative_to(ROOT)} imports {imported or 'all'}"


@pytest.mark.parametrize("top", ["cli", "testing", "integrations", "interop", "playground"])
def test_nothing_below_knows_what_stands_on_top(top):
    for file in FILES:
        if home(file) not in (top, "cli", "__main__"):
            assert top not in {part for part, _ in imports(file)}, file


def test_the_mathematics_imports_torch_alone():
    alone = {"torch", "odesteer", *sys.stdlib_module_names}
    # The folder of compiled loops also names their compilers, and the arrays one of them reads.
    compilers = {"numba", "numpy", "triton"}
    for file in (ROOT / "ode").rglob("*.py"):
        allowed = alone | compilers if file.parent.name == "kernels" else alone
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").split(".")[0] in allowed


@pytest.mark.parametrize("module", ["odesteer.ode", "odesteer"])
def test_importing_the_library_does_not_import_transformers(module):
    code = f"import sys, {module}; sys.exit('transformers' in sys.modules)"
    environment = {"PYTHONPATH": str(ROOT.parent), "PATH": ""}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
