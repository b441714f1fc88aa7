"""Execution of jobs on a Ray cluster.

    odesteer run FILE.toml --engine ray --workers 8

The driver keeps the list of units left, and every worker is an actor with the model in memory. An
idle worker gets a unit and writes it atomically into the directory. The directory must be on
storage that every node sees; a worker that does not see it raises an error. A worker that dies is
replaced and its unit assigned again; after the death of a driver, any engine can continue from
the directory. Results are those of a single process.

A cluster is joined where RAY_ADDRESS or a running one is found, and started here otherwise.
"""

import os
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from odesteer.common.jobs.directory import CLAIMS, WAIT, Claim
from odesteer.common.jobs.job import Job, Task, Unit

_CLOSING = 30.0  # seconds for workers to end other processes
_TRIES = 3  # workers that may die at one unit, before it is not the machine's fault


class _Computes:
    """Ray actor that holds one model and computes one unit at a time.

    Args:
        task: description of the work.
        path: the directory.
        sign: name of a file of its claims/ that the driver holds.

    Raises:
        ValueError: where this node does not see the driver's directory, or it is other work's.
    """

    def __init__(self, task: Task, path: Path, sign: str):
        if not (path / CLAIMS / sign).is_file():
            raise ValueError(
                f"This node does not see the directory '{path}' of the driver. Give --out a "
                f"directory on storage that all nodes share (NFS, Lustre)."
            )
        self._worker = task.start()

    def compute(self, number: int) -> None:
        """Compute and write a unit whose claim the driver holds."""
        self._worker.compute(number)

    def close(self) -> None:
        """End what the worker has started, which it could not do when killed."""
        self._worker.close()


class _Pool:
    """Pool of actors: which are idle, and which have read which fold.

    Args:
        ray: the module.
        hire: makes a worker.
        many: how many.
    """

    def __init__(self, ray: Any, hire: Callable[[], Any], many: int):
        self._ray, self._hire = ray, hire
        self._folds: dict[Any, set[int]] = {hire(): set() for _ in range(many)}
        self.idle = list(self._folds)
        self._busy: dict[Any, tuple[Any, Unit, Claim]] = {}
        self._tries: dict[int, int] = {}

    @property
    def busy(self) -> set[int]:
        return {unit.number for _, unit, _ in self._busy.values()}

    def begin(self) -> None:
        """Wait until all workers have started.

        Raises:
            ValueError: where a node does not see the directory, or it is other work's.
        """
        try:
            self._ray.get([actor.__ray_ready__.remote() for actor in self.idle])
        except self._ray.exceptions.ActorDiedError as error:
            raise ValueError(_last_words(error)) from None

    def give(self, unit: Unit, claim: Claim) -> None:
        """Assign a unit to an idle worker, preferably one that holds its fold."""
        actor = next((idle for idle in self.idle if unit.fold in self._folds[idle]), self.idle[0])
        self.idle.remove(actor)
        if unit.keeps:
            self._folds[actor].add(unit.fold)
        self._busy[actor.compute.remote(unit.number)] = (actor, unit, claim)

    def wait(self, seconds: float) -> int:
        """Return how many units were done; those of dead workers become free again.

        Raises:
            Exception: what a unit raised.
        """
        if not self._busy:
            time.sleep(seconds)  # what is left, other processes have
            return 0
        ready, _ = self._ray.wait(list(self._busy), timeout=seconds)
        done = 0
        for reference in ready:
            actor, unit, claim = self._busy.pop(reference)
            with claim:
                try:
                    self._ray.get(reference)
                except self._ray.exceptions.RayTaskError as error:
                    raise error.as_instanceof_cause() from None
                except self._ray.exceptions.RayActorError:
                    tries = self._tries[unit.number] = self._tries.get(unit.number, 0) + 1
                    if tries == _TRIES:
                        raise
                    del self._folds[actor]
                    actor = self._hire()
                    self._folds[actor] = set()
                else:
                    done += 1
            self.idle.append(actor)
        return done

    def dismiss(self) -> None:
        """End all workers and release the claims of unfinished units."""
        self._ray.wait(
            [actor.close.remote() for actor in self.idle],
            num_returns=len(self.idle),
            timeout=_CLOSING,
        )
        for actor in self._folds:
            self._ray.kill(actor)
        for _, _, claim in self._busy.values():
            claim.release()


def cluster(job: Job) -> int:
    """Compute a job on a Ray cluster; see `odesteer.common.jobs.local.local`.

    Raises:
        ImportError: without Ray.
        ValueError: where a node does not see the directory, or has no room for a worker.
    """
    try:
        import ray
    except ImportError:
        raise ImportError('The engine "ray" needs Ray: pip install "odesteer[ray]".') from None
    with ExitStack() as stack:
        if not ray.is_initialized():
            _join(ray)
            stack.callback(ray.shutdown)
        sign = f"ray-{uuid.uuid4().hex}"
        stack.enter_context(job.folder.sign(sign))
        arguments = [ray.put(each) for each in (job.task, job.folder.path.resolve(), sign)]
        many, needs = _sized(ray, job.workers)
        if job.say is not None:
            job.say(f"Starting {many} worker{'s' if many > 1 else ''}, each with the model")
        kind = ray.remote(_Computes).options(scheduling_strategy="SPREAD", **needs)
        pool = _Pool(ray, lambda: kind.remote(*arguments), many)
        stack.callback(pool.dismiss)
        pool.begin()
        return _drive(job, pool)


def _drive(job: Job, pool: _Pool) -> int:
    """Assign units until all are done; return how many were done here."""
    left, computed = list(job.units), 0
    # A unit is on disk a moment before its worker says so.
    while left or pool.busy:
        left = job.left(left)
        for unit in filter(job.ready, left):
            if not pool.idle:
                break
            claim = None if unit.number in pool.busy else job.folder.claim(unit.number)
            if claim is not None:
                pool.give(unit, claim)
        if left or pool.busy:
            computed += pool.wait(WAIT)
    while not job.end():
        pool.wait(WAIT)
    return computed


def _join(ray: Any) -> None:
    """Join the running cluster, or start one on this machine."""
    quiet = {"log_to_driver": False, "logging_level": "error"}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(address="auto", **quiet)
    except ConnectionError:
        ray.init(include_dashboard=False, **quiet)


def _sized(ray: Any, workers: int | None) -> tuple[int, dict[str, int]]:
    """Return the number of workers and the resources of each.

    One a GPU, or one a node where there is none, or as many as are asked for.

    Raises:
        ValueError: if the cluster has no room for so many.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus, cpus = ([int(node.get(what, 0)) for node in nodes] for what in ("GPU", "CPU"))
    many = workers or sum(gpus) or len(nodes)
    most = sum(gpus) or sum(cpus)
    if many > most:
        what = "GPUs" if sum(gpus) else "CPUs"
        raise ValueError(f"{many} workers need {many} {what}; the cluster has {most}.")
    if sum(gpus):
        return many, {"num_gpus": 1}
    # As many processors each as leaves room for all of them, whichever nodes they are on.
    each = next(k for k in range(max(cpus), 0, -1) if sum(cpu // k for cpu in cpus) >= many)
    return many, {"num_cpus": each}


def _last_words(error: Exception) -> str:
    """Extract the error of a worker that could not start from its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "Error: " in line), lines[-1])
    return last.partition("Error: ")[2] or last
