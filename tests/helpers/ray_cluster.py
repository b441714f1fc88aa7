"""Ray cluster of two nodes on this machine, for tests of engines."""

import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from filelock import FileLock

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="Ray is not installed: pip install 'odesteer[ray]'",
)

TRIALS = 3


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of two nodes with a CPU each, every one with processes of its own."""
    from ray.cluster_utils import Cluster

    # One at a time: `workers` finds those of every cluster on this machine.
    with FileLock(tmp_path_factory.getbasetemp().parent / "ray-cluster.lock"):
        # Ray gives a node 30 seconds to start, which is short where all cores are busy.
        for trial in range(TRIALS):
            made = Cluster()
            try:
                made.add_node(num_cpus=1, include_dashboard=False)
                made.add_node(num_cpus=1)
                break
            except Exception as error:
                made.shutdown()
                if trial + 1 == TRIALS or "timed out during startup" not in str(error):
                    raise
        yield made.address
        made.shutdown()


@pytest.fixture
def joined(cluster: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Found by its address; with as many threads here as a worker with one CPU has."""
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are rounded in another order with more
    yield
    torch.set_num_threads(threads)


def workers() -> set[int]:
    """The processes of tasks that hold a model."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            if path.read_bytes().startswith(b"ray::ray_worker"):
                found.add(int(path.parent.name))
    return found
