"""Shared data, the golden reference beside it, and the order of slow tests."""

import gc
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

# Commands keep activations on disk; those of tests do not belong in the user's cache.
os.environ["ODESTEER_CACHE_ACTIVATIONS"] = "0"

_REPOSITORY = Path(__file__).resolve().parent.parent


# Of the slow tests, those that take most of a minute, and the many that take less than a second.
_LONG = {
    "test_tune_real.py",
    "test_tutorials.py",
    "test_real_model.py",
    "test_docs.py",
    "test_docs_quickstart.py",
    "test_shards_ray.py",
    "test_run_ray.py",
}
_SHORT = {"test_conformance.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long tests and end with the short ones: no process ends alone."""

    def rank(item: pytest.Item) -> int:
        slow = item.get_closest_marker("slow") is not None
        return slow * ((item.path.name in _SHORT) - (item.path.name in _LONG))

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what stays: modules and tests, a million objects.

    Tests of lifetimes collect by hand, half a second each time otherwise.
    """
    gc.collect()
    gc.freeze()


def _data_path() -> Path:
    return Path(os.environ.get("ODESTEER_DATA", _REPOSITORY.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of data sets: $ODESTEER_DATA, or ../shared/data beside the repository."""
    path = _data_path()
    if not path.is_dir():
        pytest.skip(f"No data at {path}; set ODESTEER_DATA to the folder of data sets.")
    return path


@pytest.fixture(scope="session")
def golden() -> dict[str, Tensor]:
    """Outputs of the paper's reference implementation on real activations."""
    path = _data_path().parent / "golden" / "reference.safetensors"
    if not path.is_file():
        pytest.skip(f"No golden outputs at {path}; set ODESTEER_DATA to the folder beside it.")
    return load_file(path)
