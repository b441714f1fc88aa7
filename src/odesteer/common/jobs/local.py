"""Local execution of jobs in processes."""

import time
from collections.abc import Callable, Mapping
from contextlib import closing

from odesteer.common.jobs.directory import CLAIMS, WAIT, remove_abandoned_claims
from odesteer.common.jobs.job import Computes, Job
from odesteer.common.jobs.ray import cluster


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
    with closing(worker):
        computed = _all_of(job, worker)
    while not job.end():
        time.sleep(WAIT)
    remove_abandoned_claims(job.folder.path / CLAIMS)
    return computed


def _all_of(job: Job, worker: Computes) -> int:
    """Compute until nothing is left; return how many units were computed here."""
    computed = 0
    left = list(job.units)
    while left:
        left = job.left(left)
        waiting = True
        for unit in filter(job.ready, left):
            claim = job.folder.claim(unit.number)
            if claim is None:
                continue
            with claim:
                worker.compute(unit.number)
            computed += 1
            waiting = False
            break
        if left and waiting:
            time.sleep(WAIT)
    return computed


ENGINES: Mapping[str, Callable[[Job], int]] = {"local": local, "ray": cluster}
