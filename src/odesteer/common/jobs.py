"""Jobs of many units: their directory, and the engines that compute them.

    DIR/NAME.json     description of the work
    DIR/PARTS/N.*     unit N, written atomically
    DIR/claims/N      claim of the process that computes unit N

There is no other record: a unit is left to do if its file is missing.

    odesteer run FILE.toml --engine ray --workers 8

"local" is one process, which shares the directory with any others. "ray" is a task a worker, each
of which does the same: Ray places them and starts those again that die, and the directory's locks
tell who computes what. It must be on storage that every node sees. Results are those of a single
process, and either engine goes on from what the other has left.

A cluster is joined where RAY_ADDRESS or a running one is found, and started here otherwise.
"""

import copy
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from odesteer.common.files import write_whole
from odesteer.common.limits import read_json

CLAIMS = "claims"


class Claim:
    """Exclusive lock on a unit of work, also a context manager that releases it.

    The lock is the system's (`filelock.FileLock`): it also ends with its process, and a process
    that is paused keeps it. On storage that several hosts share, it holds for all of them.
    """

    def __init__(self, path: Path, lock: FileLock):
        self._path, self._lock = path, lock

    @classmethod
    def take(cls, path: Path) -> "Claim | None":
        """Take a claim; None if a living process holds it."""
        lock = FileLock(path, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return cls(path, lock)

    def release(self) -> None:
        """Remove the file and release the lock."""
        # In this order: whoever locks the removed file finds that it has no name any more.
        with suppress(OSError):  # Windows removes no file that is open
            self._path.unlink()
        self._lock.release()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def remove_abandoned_claims(folder: Path) -> None:
    """Remove the claims of processes that are gone, once all work is done."""
    for path in folder.iterdir():
        claim = Claim.take(path)
        if claim is not None:
            claim.release()


class WorkFolder:
    """A directory of work.

    Args:
        path: the directory, which `begin` makes.
        about: name of the file that describes the work.
        parts: name of the folder of units, and the suffix of their files.
    """

    def __init__(self, path: Path, about: str, parts: tuple[str, str]):
        self.path = path
        self._about, self._parts, self._suffix = about, *parts

    @property
    def about(self) -> Path:
        """Path of the file that describes the work."""
        return self.path / self._about

    def resolved(self) -> "WorkFolder":
        """Return the same directory by its absolute path, for processes elsewhere."""
        other = copy.copy(self)
        other.path = self.path.resolve()
        return other

    def begin(self, about: Mapping[str, Any], keys: Sequence[str]) -> None:
        """Write the description of the work, or check the one that is there.

        Raises:
            ValueError: if the directory is other work's; names which of the `keys` differ.
        """
        for folder in (self.path / self._parts, self.path / CLAIMS):
            folder.mkdir(parents=True, exist_ok=True)
        # Only one process writes it, since entries that are not compared may differ.
        while (claim := Claim.take(self.path / CLAIMS / "begin")) is None:
            time.sleep(0.05)
        with claim:
            if not self.about.is_file():
                write_whole(self.about, line(about))
        refuse_other(self.about, about, keys)

    def part(self, number: int) -> Path:
        """Return the file of a unit."""
        return self.path / self._parts / f"{number:05d}{self._suffix}"

    def done(self, number: int) -> bool:
        return self.part(number).is_file()

    def claim(self, number: int) -> Claim | None:
        """Claim a unit; None if another process holds it or it is done."""
        claim = Claim.take(self.path / CLAIMS / str(number))
        if claim is not None and self.done(number):
            claim.release()
            return None
        if claim is not None:
            for cut_off in (self.path / self._parts).glob(f".{self.part(number).name}.*"):
                cut_off.unlink(missing_ok=True)  # by a writer that was killed: the unit is ours
        return claim


def refuse_other(path: Path, about: Mapping[str, Any], keys: Sequence[str]) -> None:
    """Raise ValueError if a directory holds other work than `about`.

    Args:
        path: the file that describes the work there; nothing is refused without it.
        about: description of the work here, as far as it is known.
        keys: the entries that make it other work; the error names what differs in them.
    """
    if not path.is_file():
        return
    try:
        before = read_json(path)
    except ValueError:
        before = None
    if not isinstance(before, dict):
        raise ValueError(
            f"'{path}' cannot be read: it is damaged. Choose another --out, or remove its "
            f"directory."
        )
    now = json.loads(line(about))
    there, here = (
        _flat({key: tree.get(key) for key in keys if key in now}) for tree in (before, now)
    )
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if names:
        shown = ", ".join(
            f"{name.removeprefix('config.')} (there {there.get(name)!r:.60}, here "
            f"{here.get(name)!r:.60})"
            for name in names[:4]
        )
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        raise ValueError(
            f"'{path.parent}' holds another {path.stem}: it differs in {shown}{more}. Choose "
            f"another --out, or remove that directory."
        )


def line(tree: Mapping[str, Any]) -> bytes:
    """Encode a line of JSON: sorted keys, seven digits, null for NaN and infinity."""
    text = json.dumps(_plain(tree), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {
            name: value
            for key, inner in tree.items()
            for name, value in _flat(inner, f"{path}.{key}" if path else key).items()
        }
    return {path: tree}


WAIT = 0.5  # seconds between looks at units that other processes hold
_CLOSING = 30.0  # seconds for workers to end other processes
_RESTARTS = 10  # of a worker that dies, before it is not the machine's fault


class Unit(Protocol):
    """Unit of work, computed by one process and written atomically.

    Attributes:
        number: index among all units.
        weight: approximate amount of work.
        needs: numbers of the units that must be done first.
        fold: data that it works on; a worker that holds it is preferred.
        keeps: whether the worker holds the fold in memory afterwards.
    """

    @property
    def number(self) -> int: ...
    @property
    def weight(self) -> int: ...
    @property
    def needs(self) -> Sequence[int]: ...
    @property
    def fold(self) -> int: ...
    @property
    def keeps(self) -> bool: ...


class Worker(Protocol):
    """Process with everything in memory that units need."""

    def compute(self, number: int) -> None:
        """Compute and write a unit that the caller has claimed."""

    def close(self) -> None:
        """End what was started for it, such as other processes."""


class Task(Protocol):
    """Picklable description of the work, from which workers start."""

    def start(self, say: Callable[[str], None] | None = None) -> Worker:
        """Load what is needed, and write the description of the work.

        Raises:
            ValueError: if the directory is other work's.
        """


@dataclass(frozen=True)
class Job:
    """Units of work, their directory and their callbacks.

    Attributes:
        units: all units of the work.
        folder: directory of the units.
        task: description from which workers start.
        end: finishes the work after the last unit; False while another process does so.
        say: called with a line before anything slow.
        progress: called with (work done, work in all).
        workers: requested number of workers.
    """

    units: Sequence[Unit]
    folder: WorkFolder
    task: Task
    end: Callable[[], bool] = lambda: True
    say: Callable[[str], None] | None = None
    progress: Callable[[int, int], None] | None = None
    workers: int | None = None

    def left(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the units among `units` that are not done, and report progress."""
        left = [unit for unit in units if not self.folder.done(unit.number)]
        if self.progress is not None:
            total = sum(unit.weight for unit in self.units)
            self.progress(total - sum(unit.weight for unit in left), total)
        return left

    def claim(self, units: Sequence[Unit]) -> tuple[Unit, Claim] | None:
        """Claim the first of the units that can be computed and that nobody holds."""
        for unit in units:
            if all(map(self.folder.done, unit.needs)):
                claim = self.folder.claim(unit.number)
                if claim is not None:
                    return unit, claim
        return None

    def finish(self) -> None:
        """Wait until the work is finished, here or by another process."""
        while not self.end():
            time.sleep(WAIT)
        remove_abandoned_claims(self.folder.path / CLAIMS)


def local(job: Job) -> int:
    """Compute a job in this process, sharing the directory with any others.

    Returns:
        How many units were computed here.

    Raises:
        ValueError: for more than one worker.
    """
    if job.workers not in (None, 1):
        raise ValueError(
            f'The engine "local" is one process; got workers = {job.workers}. Start the command '
            f"several times with the same --out, or use --engine ray."
        )
    worker = job.task.start(job.say)
    computed, left, folds = 0, list(job.units), set[int]()
    with closing(worker):
        while left := job.left(left):
            # First those whose fold is in memory already.
            claimed = job.claim(sorted(left, key=lambda unit: unit.fold not in folds))
            if claimed is None:
                time.sleep(WAIT)
                continue
            unit, claim = claimed
            with claim:
                worker.compute(unit.number)
            computed += 1
            if unit.keeps:
                folds.add(unit.fold)
    job.finish()
    return computed


def ray_worker(job: Job, sign: Path) -> int:
    """Compute a job on a node of a Ray cluster, sharing the directory with other workers.

    Args:
        job: the job.
        sign: a file of the driver's in the directory.

    Raises:
        ValueError: where this node does not see the driver's directory.
    """
    if not sign.is_file():
        raise ValueError(
            f"This node does not see the directory '{sign.parents[1]}' of the driver. Give --out a "
            f"directory on storage that all nodes share (NFS, Lustre)."
        )
    return local(job)


def cluster(job: Job) -> int:
    """Compute a job on a Ray cluster; see `local`.

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
        folder = job.folder.resolved()
        sign = folder.path / CLAIMS / f"ray-{uuid.uuid4().hex}"
        sign.parent.mkdir(parents=True, exist_ok=True)
        claim = Claim.take(sign)  # or a worker that is done would remove it
        assert claim is not None, "the name is new"
        stack.enter_context(claim)
        count, needs = _sized(ray, job.workers)
        if job.say is not None:
            job.say(f"Starting {count} worker{'s' if count > 1 else ''}, each with the model")
        task: Any = ray.remote(ray_worker).options(
            scheduling_strategy="SPREAD", max_retries=_RESTARTS, **needs
        )
        described = ray.put(Job(job.units, folder, job.task))
        running = [task.remote(described, sign) for _ in range(count)]
        stack.callback(_cancel, ray, running)
        computed, left = 0, list(job.units)
        while running:
            done, rest = ray.wait(running, timeout=WAIT)
            try:
                computed += sum(ray.get(done))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            running[:] = rest
            left = job.left(left)
    job.finish()
    return computed


def _cancel(ray: Any, running: Sequence[Any]) -> None:
    """Interrupt the workers, and wait until they have ended what they started."""
    for reference in running:
        ray.cancel(reference)
    if running:
        ray.wait(running, num_returns=len(running), timeout=_CLOSING)


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
    gpus, cpus = ([int(node.get(kind, 0)) for node in nodes] for kind in ("GPU", "CPU"))
    count = workers or sum(gpus) or len(nodes)
    most = sum(gpus) or sum(cpus)
    if count > most:
        kind = "GPUs" if sum(gpus) else "CPUs"
        raise ValueError(f"{count} workers need {count} {kind}; the cluster has {most}.")
    if sum(gpus):
        return count, {"num_gpus": 1}
    # As many processors each as leaves room for all of them, whichever nodes they are on.
    each = next(k for k in range(max(cpus), 0, -1) if sum(cpu // k for cpu in cpus) >= count)
    return count, {"num_cpus": each}


ENGINES: Mapping[str, Callable[[Job], int]] = {"local": local, "ray": cluster}
