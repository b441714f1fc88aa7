"""Result lines of generation units.

Prompts are answered in one batch, several samples of a prompt beside each other, from a seed
that is the same for all conditions: what is drawn is compared with the same luck.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from odesteer.backends import Sampling
from odesteer.evaluation.benchmarks import Benchmark
from odesteer.evaluation.case import Case
from odesteer.evaluation.experiment.config import Experiment
from odesteer.evaluation.experiment.generators import Make
from odesteer.evaluation.experiment.judging import scored
from odesteer.evaluation.experiment.prompts import Prompt, plain, prompt_of, with_answers
from odesteer.evaluation.judges import Judge
from odesteer.evaluation.judges.base import EMPTY
from odesteer.evaluation.scoring.score_texts import TextScore, score_texts, shifted
from odesteer.steering import Steering


def generate(
    make: Make,
    tokenizer: Any,
    benchmark: Benchmark,
    experiment: Experiment,
    cases: Sequence[Case],
    steering: Steering | None,
    words: bool,
    seed: int,
) -> list[str]:
    """`samples` generations of each case, in order, cut off where a text of its own begins.

    Args:
        make: who generates.
        tokenizer: of what is steered.
        benchmark, experiment: how it is asked.
        cases: what is asked.
        steering: None for the unsteered model.
        words: whether the prompt asks for the behaviour in words.
        seed: of the condition.
    """
    asked = [prompt_of(tokenizer, benchmark, case, words) for case in cases]
    rows = [prompt for prompt in asked for _ in range(experiment.samples)]
    backend = make(rows[0].template, experiment.positions, len(rows))
    sampling = Sampling(**experiment.sampling, seed=seed_of(seed, cases))
    said = backend.generate([prompt.prompt for prompt in rows], steering, sampling)
    return [benchmark.trim(text) for text in said]


def seed_of(seed: int, cases: Sequence[Case]) -> int:
    """A seed for a batch, whatever the condition."""
    text = json.dumps([seed, [case.id for case in cases]])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def lines(
    make: Make,
    model: Any,
    tokenizer: Any,
    benchmark: Benchmark,
    experiment: Experiment,
    cases: Sequence[Case],
    condition: tuple[str, Steering | None, bool],
    seed: int,
    judges: Mapping[str, Judge],
    packed: bool,
) -> list[dict[str, Any]]:
    """A line a case and sample, without the fold; arguments as of `generate`, and the model.

    `condition` is (id, steering, whether the prompt asks in words); `packed`: all samples of a
    prompt are read in one row.
    """
    name, steering, words = condition
    said = generate(make, tokenizer, benchmark, experiment, cases, steering, words, seed)
    rows = [case for case in cases for _ in range(experiment.samples)]
    damage = damages(model, tokenizer, benchmark, experiment, cases, said, steering, words, packed)
    verdicts = {
        # Read already, where the damage was measured under the same unsteered model.
        judge: _likelihoods(damage)
        if judge == "perplexity" and experiment.damage and _own(experiment)
        else scored(one, rows, said)
        for judge, one in judges.items()
    }
    made = []
    for i, (case, text) in enumerate(zip(rows, said, strict=True)):
        found = {judge: verdict[i] for judge, verdict in verdicts.items()}
        values: dict[str, float | None] = {judge: value for judge, (value, _) in found.items()}
        one = damage[i]
        if one is not None:
            values |= _damage(one, displaced=not words)
        made.append(
            {
                "kind": "case",
                "condition": name,
                "case": case.id,
                "group": case.group,
                "sample": i % experiment.samples,
                "prompt": case.question,
                "generation": text,
                "choices": None,
                "tokens": None if one is None else one.tokens,
                "scores": values,
                "reasons": {
                    judge: reason for judge, (value, reason) in found.items() if value is None
                },
            }
        )
    return made


def damages(
    model: Any,
    tokenizer: Any,
    benchmark: Benchmark,
    experiment: Experiment,
    cases: Sequence[Case],
    said: Sequence[str],
    steering: Steering | None,
    words: bool,
    packed: bool,
) -> list[TextScore | None]:
    """What the condition changes along each of its own generations; None for an empty one."""
    found: list[TextScore | None] = [None] * len(said)
    if not experiment.damage:
        return found
    places: list[list[int]] = []
    asked, prompted = [], []
    for number, case in enumerate(cases):
        first = number * experiment.samples
        own = [i for i in range(first, first + experiment.samples) if said[i].strip()]
        if own:
            places.append(own)
            texts = [said[i] for i in own]
            asked.append(with_answers(tokenizer, plain(benchmark, case), texts))
            prompt: Prompt = prompt_of(tokenizer, benchmark, case, words)
            prompted.append(with_answers(tokenizer, prompt, texts))
    if words:
        same = [i for i, one in enumerate(asked) if one.answers == prompted[i].answers]
        heard = shifted(model, [asked[i] for i in same], [prompted[i] for i in same], packed=packed)
        places = [places[i] for i in same]
    else:
        heard = score_texts(
            model, asked, [steering], packed=packed, positions=experiment.positions
        )[0]
    for own, ones in zip(places, heard, strict=True):
        for i, one in zip(own, ones, strict=True):
            found[i] = one
    return found


def _damage(heard: TextScore, displaced: bool) -> dict[str, float | None]:
    return {
        "kl": heard.kl / heard.tokens,
        "nll": -heard.unsteered / heard.tokens,
        "displacement": heard.displacement / heard.tokens if displaced else None,
    }


def _likelihoods(damage: Sequence[TextScore | None]) -> list[tuple[float | None, str]]:
    return [(None, EMPTY) if one is None else (-one.unsteered / one.tokens, "") for one in damage]


def _own(experiment: Experiment) -> bool:
    return any(
        named.name == "perplexity" and named.arguments.get("model") == "unsteered"
        for named in experiment.judges
    )
