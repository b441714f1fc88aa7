"""Result lines of multiple-choice units."""

from collections.abc import Sequence
from typing import Any

from odesteer.evaluation.benchmarks import Benchmark
from odesteer.evaluation.case import Case
from odesteer.evaluation.experiment.units import with_choices
from odesteer.evaluation.metrics import answers, scores
from odesteer.extraction.scoring.score_texts import TextScore, compare_prompts, score_texts
from odesteer.steering import Steering


def lines(
    model: Any,
    tokenizer: Any,
    benchmark: Benchmark,
    cases: Sequence[Case],
    conditions: Sequence[tuple[str, Steering | None, bool]],
    *,
    packed: bool,
    positions: str,
    damage: bool,
) -> list[dict[str, Any]]:
    """Return one line per condition and case, without the fold.

    Args:
        model, tokenizer: to steer.
        benchmark, cases: the questions.
        conditions: (id, steering, whether the prompt has the instruction).
        packed: all answers to a question in one row.
        positions: which tokens are steered.
        damage: also KL and displacement.
    """
    prompts = [with_choices(tokenizer, benchmark, case) for case in cases]
    steerings = [steering for _, steering, words in conditions if not words]
    scores = iter(
        score_texts(model, prompts, steerings, packed=packed, positions=positions, compare=damage)
    )
    results = []
    for name, _, words in conditions:
        if words:
            prompted = [with_choices(tokenizer, benchmark, case, words=True) for case in cases]
            comparable = damage and [a.answers for a in prompts] == [a.answers for a in prompted]
            rows = (
                compare_prompts(model, prompts, prompted, packed=packed)
                if comparable
                else score_texts(model, prompted, [None], packed=packed, compare=False)[0]
            )
        else:
            rows = next(scores)
        for case, row in zip(cases, rows, strict=True):
            line = _line(name, case, row)
            if damage and (not words or comparable):
                # Displacement is undefined for the prompt baseline.
                line["scores"] |= damage_of(row, displaced=not words)
            results.append(line)
    return results


def damage_of(scores: Sequence[TextScore], displaced: bool = True) -> dict[str, float | None]:
    """Return the mean KL and displacement over all tokens of the answers."""
    tokens = sum(score.tokens for score in scores)
    displacement = sum(score.displacement for score in scores) / tokens if displaced else None
    return {"kl": sum(score.kl for score in scores) / tokens, "displacement": displacement}


def scores_of(case: Case, rows: Sequence[TextScore]) -> dict[str, float]:
    """Compute MC1, MC2 and MC3."""
    logprobs = {text: row.logprob for text, row in zip(answers(case), rows, strict=True)}
    return scores(case, logprobs)


def _line(condition: str, case: Case, rows: Sequence[TextScore]) -> dict[str, Any]:
    logprobs = {text: row.logprob for text, row in zip(answers(case), rows, strict=True)}
    return {
        "kind": "case",
        "condition": condition,
        "case": case.id,
        "group": case.group,
        "sample": 0,
        "prompt": case.question,
        "generation": None,
        "choices": logprobs,
        "tokens": sum(row.tokens for row in rows),
        "scores": dict(scores_of(case, rows)),
        "reasons": {},
    }
