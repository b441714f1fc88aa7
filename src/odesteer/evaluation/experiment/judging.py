"""Judges of an experiment and their scores."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from odesteer.backends import TransformersBackend
from odesteer.evaluation.benchmarks import Benchmark
from odesteer.evaluation.case import Case
from odesteer.evaluation.experiment.config import UNSTEERED, Named
from odesteer.evaluation.judges import Judge, Perplexity, find_judge


def about(names: Sequence[Named]) -> dict[str, dict[str, str]]:
    """What a report prints beside each judge's numbers."""
    kinds = [find_judge(named.name) for named in names]
    return {
        kind.name: {"unit": kind.unit, "higher_is": kind.higher_is, "agreement": kind.agreement}
        for kind in kinds
    }


def judges(
    names: Sequence[Named], model: Any, tokenizer: Any, benchmark: Benchmark, data: Any
) -> dict[str, Judge]:
    """The judges by name.

    Args:
        names: with their arguments; perplexity's model may be the unsteered one.
        model, tokenizer: what is steered.
        benchmark: whose template makes prompts text.
        data: where labelled answers lie.
    """
    made = {}
    for named in names:
        kind: Any = find_judge(named.name)
        given = dict(named.arguments)
        if kind is Perplexity and given.get("model") == UNSTEERED:
            backend = TransformersBackend(model, tokenizer, template=benchmark.template)
            given = {"backend": backend}
        elif "data" in {each.name for each in fields(kind)}:
            given.setdefault("data", data)
        made[named.name] = kind(**given)
    return made


def scored(
    judge: Judge, cases: Sequence[Case], generations: Sequence[str]
) -> list[tuple[float | None, str]]:
    """(value, reason) of each generation."""
    return [(score.value, score.reason) for score in judge.score(cases, generations)]


def sign(benchmark: Benchmark, judge: Judge) -> float:
    """+1 where more of the judge's value is wanted, -1 where less is.

    Raises:
        ValueError: for a judge whose value is neither good nor bad by itself.
    """
    own = {"better": "higher", "worse": "lower"}.get(judge.higher_is)
    wanted = benchmark.wanted.get(judge.name) or own
    if wanted is None:
        raise ValueError(
            f"More of '{judge.name}' is neither better nor worse, so nothing can be chosen by it; "
            f"name another judge as choose.metric."
        )
    return 1.0 if wanted == "higher" else -1.0
