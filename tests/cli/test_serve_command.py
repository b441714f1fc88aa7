"""`odesteer serve` starts vLLM's server, and refuses before anything is loaded."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from typer.testing import CliRunner

from odesteer import Angle, Steering
from odesteer.cli import library
from odesteer.cli.app import app
from odesteer.cli.serve import WATCHED, allowed_plugins, guarded
from odesteer.ode import GradientField, LinearBarrier


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    field = GradientField(LinearBarrier(torch.ones(8), 0.0))
    return Steering(field, strength=Angle(0.2), layer=1).save_pretrained(tmp_path / "kind")


def command(*arguments: str) -> tuple[dict[str, str], list[str]]:
    result = CliRunner().invoke(app, ["serve", *arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    words = shlex.split(result.stdout)
    start = words.index(sys.executable)
    return dict(word.split("=", 1) for word in words[:start]), words[start:]


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_it_is_vllms_own_server_on_this_machine_alone(folder: Path) -> None:
    environment, words = command("some/model", "-s", f"kind={folder}")
    assert words[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert option(words, "--model") == "some/model"
    assert (option(words, "--host"), option(words, "--port")) == ("127.0.0.1", "8000")
    assert "odesteer" in environment["VLLM_PLUGINS"].split(",")
    config = json.loads(option(words, "--additional-config"))["odesteer"]
    assert config["steerings"][0]["name"] == "kind"
    assert Path(config["steerings"][0]["path"]) == folder.resolve()


def test_clients_may_pick_a_steering_as_a_model(folder: Path) -> None:
    _, words = command(
        "some/model", "-s", f"kind={folder}", "-s", f"calm={folder}", "--compose",
        "both=kind & ~calm", "--name", "m",
    )  # fmt: skip
    at = words.index("--served-model-name")
    assert words[at + 1 : at + 5] == ["m", "m:kind", "m:calm", "m:both"]


def test_what_follows_is_vllms(folder: Path) -> None:
    result = CliRunner().invoke(
        app,
        ["serve", "m", "-s", f"kind={folder}", "--dry-run", "--", "--tensor-parallel-size", "2"],
    )
    assert shlex.split(result.stdout)[-2:] == ["--tensor-parallel-size", "2"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["-s", "FOLDER"], "NAME=VALUE"),
        (["-s", "a=FOLDER", "-s", "a=FOLDER"], "twice"),
        (["-s", "a=nowhere"], "nowhere"),
        (["-s", "a b=FOLDER"], "no name"),
        (["-s", "a=FOLDER", "--compose", "b=a & nobody"], "Unknown steering 'nobody'"),
        (["-s", "a=FOLDER", "--check", "hardly"], "hardly"),
    ],
)
def test_wrong_input_is_refused_in_one_line_before_torch_reads_anything(
    arguments: list[str], word: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "configuration", lambda *_: pytest.fail("too late"), raising=False)
    given = [one.replace("FOLDER", str(folder)) for one in arguments]
    result = CliRunner().invoke(app, ["serve", "m", *given, "--dry-run"])
    assert result.exit_code == 2 and word in " ".join(result.output.split())


def test_without_vllm_it_says_so_before_it_reads_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    result = CliRunner().invoke(app, ["serve", "m", "-s", "a=nowhere"])
    assert result.exit_code == 2 and "Serving needs vLLM" in result.output


def test_plugins_that_vllm_would_have_loaded_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "one,another")
    assert allowed_plugins() == "one,another,odesteer"
    monkeypatch.setenv("VLLM_PLUGINS", "")
    assert allowed_plugins() == "odesteer"
    monkeypatch.delenv("VLLM_PLUGINS")
    assert "odesteer" in allowed_plugins().split(",")


def test_on_a_cpu_memory_is_kept_flat_unless_the_operator_says_how(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, mapped = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "MALLOC_MMAP_THRESHOLD_"
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    monkeypatch.delenv(cache, raising=False)
    monkeypatch.setenv(mapped, "65536")
    environment, _ = command("some/model", "-s", f"kind={folder}")
    assert (environment[cache], environment[mapped]) == ("160", "65536")
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    assert list(command("some/model", "-s", f"kind={folder}")[0]) == ["VLLM_PLUGINS"]


def test_finding_7_it_says_what_a_key_guards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    assert guarded(["--dtype", "float32"]).startswith("No --api-key")
    for arguments in (["--api-key", "x"], ["--api-key=x"]):
        assert "/metrics" in guarded(arguments) and "every route but" in guarded(arguments)
    monkeypatch.setenv("VLLM_API_KEY", "x")
    assert "every route but" in guarded([])


def test_what_a_killed_server_leaves_behind_ends() -> None:
    """An engine would wait for its server for ever, with its memory. Others are not ours to end."""
    program = f"""
import os, subprocess, sys, time
from odesteer.cli.serve import watch
watch("mine")
for token in ("mine", "another"):
    sleeper = [sys.executable, "-c", "import time; time.sleep(100)"]
    child = subprocess.Popen(sleeper, env={{**os.environ, "{WATCHED}": token}})
    os.write(1, f"{{child.pid}}\\n".encode())
time.sleep(100)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        engine, other = (psutil.Process(int(server.stdout.readline())) for _ in range(2))
        server.kill()
        checks = (psutil.wait_procs([engine], timeout=0.5) for _ in range(60))
        ended = any(gone or is_zombie(engine) for gone, _ in checks)
        kept = other.is_running() and not is_zombie(other)
        other.kill()
    assert ended and kept


def is_zombie(process: psutil.Process) -> bool:
    """Whether it has ended, and nobody has asked how: a container's first process may not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
