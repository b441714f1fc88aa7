"""`odesteer doctor` says what is here, and how to get what is not."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.paths import REPOSITORY
from typer.testing import CliRunner

import odesteer as ods
from odesteer.cli import doctor
from odesteer.cli.app import app

REQUIREMENTS = [
    "torch>=2.6",
    'numpy; extra == "fast"',
    "surely-not-installed>=1; (python_version >= '3.11') and extra == 'ray'",
    "numpy>=1; extra == 'ray'",
    "pytest>=8; extra == 'dev'",
]


def run(home: Path, *arguments: str) -> Any:
    folders = {"ODESTEER_CACHE": str(home), "HF_HUB_CACHE": str(home / "hub")}
    folders |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "80"}
    done = CliRunner().invoke(app, ["doctor", *arguments], env=folders)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_it_reports_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hub" / "models--me--llama").mkdir(parents=True)
    monkeypatch.setattr(doctor, "requires", lambda _: REQUIREMENTS)
    facts = json.loads(run(tmp_path, "--json"))
    assert facts["odesteer"] == ods.__version__
    assert facts["packages"]["torch"] == version("torch")
    assert facts["threads"]["used"] == torch.get_num_threads()
    assert (facts["devices"] == ["cpu"]) == (not torch.accelerator.is_available())
    assert (facts["models"]["names"], facts["models"]["offline"]) == (["me/llama"], True)
    assert facts["models"]["folder"] == str(tmp_path / "hub")
    assert facts["activations"]["size"] == 0
    assert facts["extras"] == {
        "fast": {
            "for": doctor.EXTRAS["fast"],
            "missing": [],
            "install": "pip install 'odesteer[fast]'",
        },
        "ray": {
            "for": doctor.EXTRAS["ray"],
            "missing": ["surely-not-installed"],
            "install": "pip install 'odesteer[ray]'",
        },
    }


def test_a_reader_is_told_how_to_get_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "requires", lambda _: REQUIREMENTS)
    shown = run(tmp_path)
    assert all(len(line) <= 80 for line in shown.splitlines())
    words = " ".join(shown.split())
    assert "missing surely-not-installed: pip install 'odesteer[ray]'" in words
    assert f"torch {version('torch')}" in words and "none; in" in words and "offline" in words


def test_smollm2_is_ready_once_it_was_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ODESTEER_CACHE", str(tmp_path))
    monkeypatch.setattr("odesteer.models.loading.wheel_folder", lambda: None)
    assert doctor.smollm2().startswith("from the Hub")
    monkeypatch.setattr("odesteer.models.loading.wheel_folder", lambda: tmp_path)
    assert doctor.smollm2().startswith("installed, converted at its first use")
    monkeypatch.setattr("odesteer.models.loading._CONVERSION", "copy")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "config.json").write_text("{}")
    assert doctor.smollm2() == f"ready, in {tmp_path / 'copy'}"
    monkeypatch.setattr("odesteer.models.loading.version", lambda _: "4.57.1")
    assert doctor.smollm2().startswith("installed, converted at its first use")  # a copy of its own


def test_every_extra_that_is_listed_exists() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{name} = [" in text for name in doctor.EXTRAS)
