"""A small experiment: a model of two thousand weights, and a few questions of each benchmark."""

from pathlib import Path

import pytest
from tests.evaluation.benchmarks.conftest import local as local
from tests.helpers import models as tiny
from tests.helpers.forked import Forked

CHOICES = """
task = "choices"
model = "{model}"
layers = [1, 2]
doses = [0.2]
methods = ["none", "prompt", "random", "caa", "repe"]
batch = 1
barrier = true
benchmark = "truthfulqa"
[matched]
kl = [0.05]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return tiny.saved(folder)


@pytest.fixture
def file(tmp_path: Path, model: Path, local: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An experiment's file; its data are a few questions, whose checksums nobody knows."""
    monkeypatch.setattr("odesteer.evaluation.benchmarks.base.SHA256", {})
    monkeypatch.setenv("ODESTEER_DATA", str(local))
    path = tmp_path / "small.toml"
    path.write_text(CHOICES.format(model=model), encoding="utf-8")
    return path


def start(file: Path, folder: Path, engine: str = "local") -> Forked:
    """A process of its own that runs the experiment."""
    return Forked(_run, file, folder, engine)


def _run(file: Path, folder: Path, engine: str) -> None:
    from odesteer.evaluation.benchmarks import base as data
    from odesteer.evaluation.experiment.parse_toml import read
    from odesteer.evaluation.experiment.run import run

    data.SHA256 = {}
    run(read(file), folder, engine=engine)


def units(folder: Path) -> int:
    """How many are done."""
    return len(list((folder / "units").glob("*.jsonl"))) if (folder / "units").is_dir() else 0
