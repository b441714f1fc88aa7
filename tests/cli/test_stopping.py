"""Stopped with Ctrl-C, a command says what is left and how to go on; its exit code is 130."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import models as tiny
from tests.helpers.command_line import run
from tests.helpers.paths import REPOSITORY

import odesteer as ods
from odesteer.cli import console


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return tiny.saved(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    row = {"positive": "is good", "negative": "was bad on the mat"}
    rows = [{"prompt": f"{a} cat", **row} for a in ("the", "a")]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def stopped(result: Any, *words: str) -> None:
    said = " ".join(result.stderr.split())
    assert result.exit_code == console.STOPPED == 130, said
    assert "Stopped." in said and "Traceback" not in said
    for word in words:
        assert word in said, said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--cache"], ["Nothing was written", "are kept", "goes on from them"]),
        (["--no-cache"], ["Nothing was written", "begins anew"]),
    ],
)
@pytest.mark.parametrize("command", ["fit", "tune", "score", "generate"])
def test_what_reads_texts_says_whether_they_are_kept(
    model: Path,
    pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: list[str],
    words: list[str],
) -> None:
    monkeypatch.setenv("ODESTEER_CACHE", str(tmp_path / "cache"))
    for name in ("fit", "tune", "score"):
        monkeypatch.setattr(ods, name, stop, raising=False)
    out = tmp_path / "out"
    more: dict[str, list[object]] = {
        "fit": [pairs, "--out", out],
        "tune": [pairs, "--out", out],
        "score": [pairs, "-s", tiny.quadratic().save_pretrained(tmp_path / "s")],
        "generate": ["Hi", "-m", "caa", "-c", pairs],
    }
    stopped(run(command, model, *more[command], *options), *words)
    assert not out.exists()


def test_a_run_and_a_report_say_where_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("odesteer.evaluation.experiment.run.run", stop)
    file = REPOSITORY / "experiments" / "smollm2-sentiment.toml"
    stopped(run("run", file, "--out", tmp_path), f"What was done is in {tmp_path}", "goes on")
    for name in ("read_run", "check"):
        monkeypatch.setattr(f"odesteer.evaluation.report.{name}", lambda *_: _Run())
    monkeypatch.setattr("odesteer.evaluation.report.build", stop)
    stopped(run("report", tmp_path), "the runs are as they were", str(tmp_path / "report"))


class _Run:
    name, remarks = "toxicity", ()


def test_an_evaluation_says_that_it_begins_anew(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("odesteer.integrations.lm_eval.paired", stop)
    steering = tiny.quadratic().save_pretrained(tmp_path / "s")
    stopped(run("eval", model, "-s", steering), "Nothing was kept", "--limit")


def test_a_signal_stops_a_process_that_works(model: Path, tmp_path: Path) -> None:
    rows = [{"text": "the cat is good " * 20, "label": i % 2} for i in range(20_000)]
    path, out = tmp_path / "texts.jsonl", tmp_path / "out"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "odesteer", "fit", str(model), str(path), "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "ODESTEER_CACHE": str(tmp_path / "cache")},
        # Whatever started the tests may ignore the signal, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first.startswith("Loading"), first
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    # Shells call both 130. Python dies of the signal itself where it came while code of a text was
    # executed (as imports do), also when it was caught.
    assert process.returncode in (130, -signal.SIGINT), said
    assert "Stopped." in said and "Traceback" not in said
    assert not out.exists()
