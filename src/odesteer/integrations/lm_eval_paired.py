"""Paired comparison on lm-evaluation-harness tasks, unsteered against steered.

The same documents are evaluated without and with the steering, and every metric's difference is
taken document by document:

    delta = mean_i (steered_i - unsteered_i),   95 % percentile bootstrap over documents
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from odesteer.evaluation.benchmarks import TRANSFER
from odesteer.evaluation.statistics import Interval, interval
from odesteer.integrations.lm_eval import SteeredLM


class Delta(NamedTuple):
    """Metric of a task: both means, the paired difference, and whether higher is better."""

    task: str
    metric: str
    unsteered: float
    steered: float
    delta: Interval
    better: str

    @property
    def significant(self) -> bool:
        return self.delta.low > 0 or self.delta.high < 0


def paired(
    model: SteeredLM,
    tasks: Sequence[str],
    limit: int | None = None,
    shots: int | None = None,
    folder: str | None = None,
    seed: int = 0,
) -> list[Delta]:
    """Compare every metric of every task that has a value for each document.

    Args:
        model: has the steering.
        tasks: names of the harness, or "transfer" for the three of the paper's table 8.
        limit: the number of documents of each task.
        shots: examples in the prompt, instead of the task's own number.
        folder: with task files of your own.
        seed: of the bootstrap, and of the harness.

    Raises:
        ValueError: for tasks that the harness does not have, or a model without a steering.
    """
    from lm_eval.tasks import TaskManager

    if model.steering is None:
        raise ValueError("Without a steering there is nothing to compare: give steering=DIR.")
    names = [name for task in tasks for name in _task_names(task)]
    manager = TaskManager(include_path=folder)
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise ValueError(
            f"lm-evaluation-harness has no task '{unknown[0]}'; "
            f"`python -m odesteer.integrations.lm_eval ls tasks` lists them."
        )
    steering = model.steering
    try:
        model.steering = None
        before = _evaluate(model, names, manager, limit, shots, seed)
        model.steering = steering
        after = _evaluate(model, names, manager, limit, shots, seed)
    finally:
        model.steering = steering
    return list(_compare(before, after, seed))


def _task_names(task: str) -> list[str]:
    return [name for name, _ in TRANSFER.values()] if task == "transfer" else [task]


def _evaluate(
    model: SteeredLM,
    tasks: list[str],
    manager: Any,
    limit: int | None,
    shots: int | None,
    seed: int,
) -> Mapping[str, Any]:
    from lm_eval import simple_evaluate

    results: Mapping[str, Any] = simple_evaluate(
        model=model,
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        num_fewshot=shots,
        bootstrap_iters=0,  # the intervals are ours
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return results


def _compare(before: Mapping[str, Any], after: Mapping[str, Any], seed: int) -> Iterator[Delta]:
    for task, samples in before["samples"].items():
        pairs = {_key(sample): sample for sample in after["samples"][task]}
        higher = before["higher_is_better"].get(task, {})
        for metric in dict.fromkeys(name for sample in samples for name in sample["metrics"]):
            rows = [
                (sample[metric], pairs[_key(sample)][metric])
                for sample in samples
                if _is_number(sample.get(metric)) and _is_number(pairs[_key(sample)].get(metric))
            ]
            if not rows:
                continue  # a metric of all documents together, such as a corpus BLEU
            values = np.array(rows, dtype=float)
            yield Delta(
                task,
                metric,
                float(values[:, 0].mean()),
                float(values[:, 1].mean()),
                interval(values[:, 1] - values[:, 0], seed),
                "lower" if higher.get(metric) is False else "higher",
            )


def _key(sample: Mapping[str, Any]) -> tuple[Any, Any]:
    return sample["doc_id"], sample.get("filter")


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number)
