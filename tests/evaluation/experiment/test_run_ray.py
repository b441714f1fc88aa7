"""A Ray cluster of two nodes gives the file of a single process, whoever dies on the way."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.evaluation.experiment.conftest import start, units
from tests.helpers.ray_cluster import cluster as cluster
from tests.helpers.ray_cluster import joined as joined
from tests.helpers.ray_cluster import needs_ray, workers

from odesteer.common.jobs import _sized, ray_worker
from odesteer.evaluation.experiment.config import read
from odesteer.evaluation.experiment.run import run

# A cluster takes most of a minute to start.
pytestmark = [pytest.mark.slow, needs_ray]


@pytest.mark.usefixtures("joined")
def test_two_nodes_give_the_file_of_one_process_though_a_worker_and_the_driver_are_killed(
    file: Path, tmp_path: Path
) -> None:
    once, folder = run(read(file), tmp_path / "once"), tmp_path / "ray"
    driver = start(file, folder, "ray")
    while driver.poll() is None and units(folder) < 3:
        time.sleep(0.01)
    before = workers()
    assert len(before) == 2  # one a node
    os.kill(min(before), signal.SIGKILL)
    os.kill(max(before), signal.SIGSTOP)  # or it would be done with all before another is there
    while driver.poll() is None and not workers() - before:
        time.sleep(0.01)
    assert driver.poll() is None
    os.kill(max(before), signal.SIGCONT)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    done = units(folder)
    assert done < units(tmp_path / "once")
    outcome = run(read(file), folder, engine="ray")
    assert outcome.results.read_bytes() == once.results.read_bytes()
    assert 0 < outcome.computed <= units(folder) - done  # workers of the old driver may finish
    assert run(read(file), folder).computed == 0  # whatever the engine
    assert not list((folder / "claims").iterdir())


@pytest.mark.usefixtures("joined")
def test_what_cannot_be_is_said(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="9 workers need 9 CPUs; the cluster has 2"):
        run(read(file), tmp_path / "many", engine="ray", workers=9)
    with pytest.raises(ValueError, match='"local" is one process; got workers = 2'):
        run(read(file), tmp_path / "local", workers=2)


def test_a_node_that_does_not_see_the_directory_says_so(tmp_path: Path) -> None:
    sign = tmp_path / "hidden" / "claims" / "ray-1"
    with pytest.raises(ValueError, match=r"does not see the directory '.*hidden' of the driver"):
        ray_worker(None, sign)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cpus", "workers", "expected"),
    [((8, 8), None, (2, 8)), ((8, 8), 3, (3, 4)), ((8, 2), None, (2, 4)), ((1, 1), 2, (2, 1))],
)
def test_workers_fit_on_the_nodes_that_there_are(
    cpus: tuple[int, ...], workers: int | None, expected: tuple[int, int]
) -> None:
    nodes = [{"Alive": True, "Resources": {"CPU": float(cpu)}} for cpu in cpus]
    many, needs = _sized(SimpleNamespace(nodes=lambda: nodes), workers)
    assert (many, needs["num_cpus"]) == expected
