"""Result lines of multiple-choice units."""

from collections.abc import Sequence
from typing import Any

from odesteer.evaluation.benchmarks import Benchmark
from odesteer.evaluation.case import Case
from odesteer.evaluation.experiment.units import with_choices
from odesteer.evaluation.metrics import answers, scores
from odesteer.evaluation.scoring.score_texts import TextScore, compare_prompts, score_texts
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
    asked = [with_choices(tokenizer, benchmark, case) for case in cases]
    steerings = [steering for _, steering, words in conditions if not words]
    found = iter(
        score_texts(model, asked, steerings, packed=packed, positions=positions, compare=damage)
    )
    made = []
    for name, _, words in conditions:
        if words:
            prompted = [with_choices(tokenizer, benchmark, case, words=True) for case in cases]
            comparable = damage and [a.answers for a in asked] == [a.answers for a in prompted]
            heard = (
                compare_prompts(model, asked, prompted, packed=packed)
                if comparable
                else score_texts(model, prompted, [None], packed=packed, compare=False)[0]
            )
        else:
            heard = next(found)
        for case, own in zip(cases, heard, strict=True):
            line = _line(name, case, own)
            if damage and (not words or comparable):
                # Displacement is undefined for the prompt baseline.
                line["scores"] |= damage_of(own, displaced=not words)
            made.append(line)
    return made


def damage_of(heard: Sequence[TextScore], displaced: bool = True) -> dict[str, float | None]:
    """Return the mean KL and displacement over all tokens of the answers."""
    tokens = sum(one.tokens for one in heard)
    far = sum(one.displacement for one in heard) / tokens if displaced else None
    return {"kl": sum(one.kl for one in heard) / tokens, "displacement": far}


def scores_of(case: Case, heard: Sequence[TextScore]) -> dict[str, float]:
    """Compute MC1, MC2 and MC3."""
    logprobs = {text: one.logprob for text, one in zip(answers(case), heard, strict=True)}
    return scores(case, logprobs)


def _line(condition: str, case: Case, heard: Sequence[TextScore]) -> dict[str, Any]:
    logprobs = {text: one.logprob for text, one in zip(answers(case), heard, strict=True)}
    return {
        "kind": "case",
        "condition": condition,
        "case": case.id,
        "group": case.group,
        "sample": 0,
        "prompt": case.question,
        "generation": None,
        "choices": logprobs,
        "tokens": sum(one.tokens for one in heard),
        "scores": dict(scores_of(case, heard)),
        "reasons": {},
    }
