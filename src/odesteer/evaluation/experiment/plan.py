"""Plan: the units of an experiment in a fixed order.

    check                       does the model take packed answers? (where any are read)
    for each fold:
        read                    activations, of everything that is learnt from
        fit                     one a method, layer and seed
        choice                  layer and dose, one a condition that leaves them open
        barrier                 log-odds of the test part's texts
        cases                   a batch of test cases: of all conditions (choices), or of one

A unit is computed whole by one process and then written whole, so that it does not matter who
computes what, or when somebody is stopped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from odesteer.evaluation.benchmarks import Benchmark, Fold
from odesteer.evaluation.case import Case
from odesteer.evaluation.experiment.conditions import Condition, FitSpec, conditions
from odesteer.evaluation.experiment.config import Experiment, Limits

KINDS = ("check", "read", "fit", "choice", "barrier", "cases")
_KEEP = ("read", "fit", "choice", "barrier")  # those that a fold's activations are good for


@dataclass(frozen=True)
class Unit:
    """A piece of work.

    Attributes:
        number: its place in the results.
        kind: one of `KINDS`.
        fold: its number.
        conditions: their places in the plan.
        cases: ids.
        needs: numbers of units that have to be done before.
        fitting: of a "fit".
        weight: about how much work, in forward passes of a case.
    """

    number: int
    kind: str
    fold: int
    conditions: tuple[int, ...] = ()
    cases: tuple[str, ...] = ()
    needs: tuple[int, ...] = ()
    fitting: FitSpec | None = None
    weight: int = 1

    @property
    def keeps(self) -> bool:
        """Whether who does it has its fold's activations in memory then."""
        return self.kind in _KEEP


@dataclass(frozen=True)
class Plan:
    """Everything that follows from an experiment and its benchmark."""

    experiment: Experiment
    folds: tuple[Fold, ...]
    conditions: tuple[Condition, ...]
    units: tuple[Unit, ...]


def plan(experiment: Experiment, benchmark: Benchmark) -> Plan:
    """The plan.

    Raises:
        ValueError: if the benchmark cannot be asked that way.
    """
    folds = tuple(
        limited(benchmark, fold, experiment.limits, experiment.split_seed)
        for fold in benchmark.folds(experiment.split_seed)[: experiment.folds]
    )
    made = tuple(conditions(experiment))
    for fold in folds:
        cases = benchmark.examples(fold)
        if experiment.task == "choices" and not all(case.choices for case in cases):
            raise ValueError(
                f"{benchmark.name} has no multiple-choice answers: use "
                f'task = "generations", or truthfulqa or persona.'
            )
    return Plan(experiment, folds, made, tuple(_units(experiment, benchmark, folds, made)))


def limited(benchmark: Benchmark, fold: Fold, limits: Limits, seed: int) -> Fold:
    """The fold with at most so many groups in each part, drawn by the seed."""

    def asked(part: str, size: int | None) -> tuple[str, ...]:
        groups = dict.fromkeys(case.group for case in benchmark.examples(fold, part))  # type: ignore[arg-type]
        kept = set(_drawn(tuple(groups), size, seed))
        return tuple(one for one in getattr(fold, part) if one in kept or one not in groups)

    return Fold(
        _drawn(fold.fit, limits.fit, seed),
        asked("validation", limits.validation),
        asked("test", limits.test),
    )


def _drawn(ids: tuple[str, ...], size: int | None, seed: int) -> tuple[str, ...]:
    if size is None or size >= len(ids):
        return ids
    places = np.random.default_rng(seed).permutation(len(ids))[:size]
    return tuple(ids[i] for i in sorted(places.tolist()))


def _units(
    experiment: Experiment,
    benchmark: Benchmark,
    folds: Sequence[Fold],
    made: Sequence[Condition],
) -> Iterator[Unit]:
    number = 0

    def unit(kind: str, fold: int, **rest: object) -> Unit:
        nonlocal number
        number += 1
        return Unit(number - 1, kind, fold, **rest)  # type: ignore[arg-type]

    every = tuple(range(len(made)))
    check: list[int] = []
    if experiment.task != "barrier":
        one = unit("check", 0)
        check = [one.number]
        yield one
    fittings = list(dict.fromkeys(each for one in made for each in one.fittings))
    for place, fold in enumerate(folds):
        before = list(check)
        learnt = len(fold.fit)
        if fittings:
            reading = unit("read", place, weight=max(1, learnt // 2))
            yield reading
            fits = []
            for each in fittings:
                own = [i for i in every if each in made[i].fittings and not made[i].open]
                fits.append(
                    unit(
                        "fit",
                        place,
                        conditions=tuple(own),
                        fitting=each,
                        needs=(reading.number,),
                        weight=max(1, learnt // 8),
                    )
                )
            yield from fits
            before += [one.number for one in fits]
        ready = tuple(before)
        validation = len(benchmark.examples(fold, "validation"))
        for i in every:
            if made[i].open:
                trials = len(made[i].layers) * (len(made[i].doses) or 8)
                one = unit(
                    "choice", place, conditions=(i,), needs=ready, weight=trials * validation
                )
                before.append(one.number)
                yield one
        if experiment.barrier or experiment.task == "barrier":
            yield unit("barrier", place, conditions=every, needs=tuple(before), weight=learnt // 2)
        if experiment.task == "barrier":
            continue
        cases = sorted(benchmark.examples(fold), key=lambda case: (-_size(case), case.id))
        batches = [cases[i : i + experiment.batch] for i in range(0, len(cases), experiment.batch)]
        groups = [every] if experiment.task == "choices" else [(i,) for i in every]
        for some in groups:
            for batch in batches:
                yield unit(
                    "cases",
                    place,
                    conditions=some,
                    cases=tuple(case.id for case in batch),
                    needs=tuple(before),
                    weight=len(batch) * len(some) * _weight(experiment),
                )


def _weight(experiment: Experiment) -> int:
    """Generating a token takes about as long as reading a few."""
    tokens = int(experiment.sampling.get("max_new_tokens", 64))
    return experiment.samples * tokens // 8 + 1 if experiment.task == "generations" else 1


def _size(case: Case) -> int:
    """Characters, so that batches are of similar length before there is a tokenizer."""
    answers = {text for task in case.choices.values() for text, _ in task}
    said = (
        case.prompt if isinstance(case.prompt, str) else "".join(m["content"] for m in case.prompt)
    )
    return len(said) + sum(map(len, answers))
