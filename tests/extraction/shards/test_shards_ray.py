"""Workers of a Ray cluster give the shards of a single process, whoever dies on the way."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.extraction.shards.conftest import LAYERS, ROWS, equal, start
from tests.helpers.ray_cluster import cluster as cluster
from tests.helpers.ray_cluster import joined as joined
from tests.helpers.ray_cluster import needs_ray

import odesteer as ods
from odesteer.common.jobs import Job
from odesteer.common.jobs import cluster as on_cluster
from odesteer.extraction.extract_shards import Extraction
from odesteer.extraction.shards import ShardFolder

pytestmark = [pytest.mark.slow, needs_ray, pytest.mark.usefixtures("joined")]


def extract(
    model: str, contrast: ods.Contrast, folder: Path, engine: str, workers: int | None = None
) -> ods.Shards:
    return ods.extract_shards(
        model, contrast, LAYERS, folder, rows_per_shard=ROWS, engine=engine, workers=workers
    )


def test_two_nodes_give_the_shards_of_one_process_though_a_worker_is_killed(
    model: str, contrast: ods.Contrast, tmp_path: Path
) -> None:
    once = extract(model, contrast, tmp_path / "once", "local")
    mark = tmp_path / "killed"

    class Dies:
        """The task of another, but one of its workers is killed at its first shard."""

        def __init__(self, task: Extraction):
            self.task = task

        def start(self, say: Any = None) -> Any:
            worker = self.task.start(say)

            class Worker:
                def compute(self, number: int) -> None:
                    try:
                        mark.open("x").close()
                    except FileExistsError:
                        worker.compute(number)
                    else:
                        os.kill(os.getpid(), signal.SIGKILL)

                def close(self) -> None:
                    worker.close()

            return Worker()

    folder = ShardFolder(tmp_path / "ray")
    task = Extraction(model, contrast, (1, 2), folder.path, rows_per_shard=ROWS)
    assert on_cluster(Job(task.parts, folder, Dies(task))) == 4
    assert mark.exists()
    assert equal(once.path, folder.path)
    # What is there is not computed again.
    (folder.path / "shards" / "00001.safetensors").unlink()
    assert extract(model, contrast, folder.path, "ray", workers=1).computed == 1
    assert equal(once.path, folder.path)
    assert not list((folder.path / "claims").iterdir())


def test_what_cannot_be_is_said_by_whoever_knows(
    model: str, contrast: ods.Contrast, tmp_path: Path
) -> None:
    once = extract(model, contrast, tmp_path / "once", "local")
    with pytest.raises(ValueError, match=r"differs in tokens \(there 'last', here 'mean'\)"):
        ods.extract_shards(
            model, contrast, LAYERS, once.path, rows_per_shard=ROWS, engine="ray", tokens="mean"
        )
    # Which only a worker can know.
    with pytest.raises(ValueError, match=r"^Layer 9 is out of range"):
        ods.extract_shards(model, contrast, 9, tmp_path / "deep", engine="ray", workers=1)


def test_a_driver_that_is_killed_is_gone_on_from(
    model: str, file: Path, contrast: ods.Contrast, tmp_path: Path
) -> None:
    once, folder = extract(model, contrast, tmp_path / "once", "local"), tmp_path / "ray"
    driver = start(model, file, folder, "ray", kill_at=1, when="driver")
    driver.communicate()
    assert driver.returncode == -signal.SIGKILL
    assert extract(model, contrast, folder, "local").computed < 4
    assert equal(once.path, folder)
