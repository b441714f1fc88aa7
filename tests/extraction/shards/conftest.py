"""A small extraction: a model of two thousand weights, and a contrast of uneven classes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import models as tiny
from tests.helpers.forked import Forked

from odesteer import Contrast, extract_shards

LAYERS, ROWS = [1, 2], 12  # 4 shards


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny.saved(folder)
    return str(folder)


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 answers that are wanted and 24 that are not; some questions are asked of many."""
    path = tmp_path_factory.mktemp("data") / "answers.csv"
    questions = [
        f"{a} {b} on {c} mat under the tree on the moon is the cat {d}"
        for a in ("the", "a")
        for b in ("cat", "dog", "bird")
        for c, d in (("the", "good"), ("a", "bad"))
    ]
    rows = ["prompt,response,label"]
    for i in range(44):
        label = int(i % 11 < 5)
        answer = " ".join(tiny.WORDS[(i + j) % 17] for j in range(1 + i % 7))
        rows.append(f"{questions[i // 4]},{answer},{label}")
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


@pytest.fixture
def contrast(file: Path) -> Contrast:
    return Contrast.from_file(file)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As many threads here as in the processes of tests."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(
    model: str,
    file: Path,
    folder: Path,
    engine: str = "local",
    kill_at: int = 0,
    when: str = "whole",
) -> Forked:
    """A process of its own that extracts, and kills itself at its `kill_at`th shard.

    It prints each number of texts that are done. It is killed while it writes the shard: before
    its name is the shard's ("cut off"), or right after ("whole"); or once others have written one
    ("driver").
    """
    return Forked(_extract, model, file, folder, engine, kill_at, when)


def _extract(model: str, file: Path, folder: Path, engine: str, kill_at: int, when: str) -> None:
    rename, written = os.replace, 0

    def replace(source: Any, target: Any) -> None:
        nonlocal written
        is_shard = str(target).endswith(".safetensors")
        written += is_shard
        if is_shard and written == kill_at and when == "cut off":
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)
        if is_shard and written == kill_at and when == "whole":
            os.kill(os.getpid(), signal.SIGKILL)

    def progress(done: int, total: int) -> None:
        print(done, flush=True)
        if when == "driver" and done >= kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace
    contrast = Contrast.from_file(file)
    extract_shards(
        model, contrast, LAYERS, folder, rows_per_shard=ROWS, engine=engine, progress=progress
    )


def equal(one: Path, other: Path) -> bool:
    """Whether two directories hold the same files of shards, to the byte."""
    names = [sorted(p.name for p in (path / "shards").iterdir()) for path in (one, other)]
    return names[0] == names[1] and all(
        (one / "shards" / name).read_bytes() == (other / "shards" / name).read_bytes()
        for name in names[0]
    )
