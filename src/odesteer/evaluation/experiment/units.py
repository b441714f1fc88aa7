"""Result lines of generation units: prompts, generations, judgements.

A prompt is plain or, for the prompt-only baseline, has the benchmark's instruction: as the system
message of a chat, or before the text. Prompts are answered in one batch, the samples of a prompt
next to each other, from a seed that all conditions share (common random numbers).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from odesteer.backends import Sampling, TransformersBackend
from odesteer.evaluation.benchmarks import Benchmark
from odesteer.evaluation.case import Case
from odesteer.evaluation.experiment.config import UNSTEERED, Experiment, Named
from odesteer.evaluation.experiment.generators import Make
from odesteer.evaluation.judges import Judge, Perplexity, find_judge
from odesteer.evaluation.judges.base import EMPTY
from odesteer.evaluation.metrics import answers
from odesteer.extraction.scoring.packing import PromptWithAnswers
from odesteer.extraction.scoring.score_texts import TextScore, compare_prompts, score_texts
from odesteer.models.chat_template import Messages, encode, encode_parts
from odesteer.steering import Steering


def describe_judges(names: Sequence[Named]) -> dict[str, dict[str, str]]:
    """Return what a report prints beside each judge's numbers."""
    kinds = [find_judge(named.name) for named in names]
    return {
        kind.name: {"unit": kind.unit, "higher_is": kind.higher_is, "agreement": kind.agreement}
        for kind in kinds
    }


def judges(
    names: Sequence[Named], model: Any, tokenizer: Any, benchmark: Benchmark, data: Any
) -> dict[str, Judge]:
    """Create the judges, by name.

    Args:
        names: with their arguments; perplexity's model may be the unsteered one.
        model, tokenizer: to steer.
        benchmark: whose template makes prompts text.
        data: folder of labelled answers.
    """
    results = {}
    for named in names:
        kind: Any = find_judge(named.name)
        arguments = dict(named.arguments)
        if kind is Perplexity and arguments.get("model") == UNSTEERED:
            backend = TransformersBackend(model, tokenizer, template=benchmark.template)
            arguments = {"backend": backend}
        elif "data" in {each.name for each in fields(kind)}:
            arguments.setdefault("data", data)
        results[named.name] = kind(**arguments)
    return results


def scored(
    judge: Judge, cases: Sequence[Case], generations: Sequence[str]
) -> list[tuple[float | None, str]]:
    """Judge generations: (value, reason) of each."""
    return [(score.value, score.reason) for score in judge.score(cases, generations)]


def sign(benchmark: Benchmark, judge: Judge) -> float:
    """Return +1 where more of the judge's value is wanted, -1 where less is.

    Raises:
        ValueError: for a judge whose value is neither good nor bad by itself.
    """
    default = {"better": "higher", "worse": "lower"}.get(judge.higher_is)
    wanted = benchmark.wanted.get(judge.name) or default
    if wanted is None:
        raise ValueError(
            f"More of '{judge.name}' is neither better nor worse, so nothing can be chosen by it; "
            f"name another judge as choose.metric."
        )
    return 1.0 if wanted == "higher" else -1.0


class Prompt(NamedTuple):
    """Prompt, and the template that makes it text."""

    prompt: str | Messages
    template: str


def plain(benchmark: Benchmark, case: Case) -> Prompt:
    """Return the prompt of steered and unsteered models."""
    return Prompt(case.prompt, benchmark.template)


def instructed(tokenizer: Any, benchmark: Benchmark, case: Case) -> Prompt:
    """Return the prompt with the benchmark's instruction."""
    prompt, template, words = case.prompt, benchmark.template, benchmark.instruction
    chatted = template in ("auto", "chat") and tokenizer.chat_template is not None
    if isinstance(prompt, str) and not chatted:
        if template in ("auto", "plain"):
            return Prompt(f"{words}\n\n{prompt}", template)
        return Prompt(prompt, f"{words}\n\n{template}")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    if turns[0]["role"] == "system":
        first = {"role": "system", "content": f"{turns[0]['content']} {words}"}
        return Prompt([first, *turns[1:]], template)
    chat = Prompt([{"role": "system", "content": words}, *turns], template)
    try:
        encode(tokenizer, *chat[:1], template=template)
    except ValueError:
        # The model's template knows no system message.
        first = {"role": turns[0]["role"], "content": f"{words}\n\n{turns[0]['content']}"}
        return Prompt([first, *turns[1:]], template)
    return chat


def prompt_of(tokenizer: Any, benchmark: Benchmark, case: Case, words: bool) -> Prompt:
    """Return the prompt, with the instruction if `words`."""
    return instructed(tokenizer, benchmark, case) if words else plain(benchmark, case)


def with_choices(
    tokenizer: Any, benchmark: Benchmark, case: Case, words: bool = False
) -> PromptWithAnswers:
    """Encode a case's prompt and every answer that its scores need."""
    return with_answers(tokenizer, prompt_of(tokenizer, benchmark, case, words), answers(case))


def with_answers(tokenizer: Any, prompt: Prompt, texts: Sequence[str]) -> PromptWithAnswers:
    """Encode a prompt and answers, as the template writes them."""
    parts = [encode_parts(tokenizer, prompt.prompt, text, prompt.template) for text in texts]
    return PromptWithAnswers(list(parts[0][0]), [list(answer) for _, answer in parts])


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
    """Generate `samples` answers to each case, in order, trimmed as the benchmark says.

    Args:
        make: factory of the backend.
        tokenizer: of the steered model.
        benchmark, experiment: templates, samples and sampling.
        cases: the prompts.
        steering: None for the unsteered model.
        words: whether the prompt has the instruction.
        seed: of the condition.
    """
    prompts = [prompt_of(tokenizer, benchmark, case, words) for case in cases]
    rows = [prompt for prompt in prompts for _ in range(experiment.samples)]
    backend = make(rows[0].template, experiment.positions, len(rows))
    sampling = Sampling(**experiment.sampling, seed=seed_of(seed, cases))
    texts = backend.generate([prompt.prompt for prompt in rows], steering, sampling)
    return [benchmark.trim(text) for text in texts]


def seed_of(seed: int, cases: Sequence[Case]) -> int:
    """Return the seed of a batch, the same for every condition."""
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
    """Return one line per case and sample, without the fold; see `generate`.

    `condition` is (id, steering, whether the prompt has the instruction); `packed`: all samples
    of a prompt are read in one row.
    """
    name, steering, words = condition
    texts = generate(make, tokenizer, benchmark, experiment, cases, steering, words, seed)
    rows = [case for case in cases for _ in range(experiment.samples)]
    damage = damages(model, tokenizer, benchmark, experiment, cases, texts, steering, words, packed)
    verdicts = {
        # Already known where the damage was measured under the same unsteered model.
        judge: _likelihoods(damage)
        if judge == "perplexity" and experiment.damage and _own(experiment)
        else scored(judges[judge], rows, texts)
        for judge in judges
    }
    results = []
    for i, (case, text) in enumerate(zip(rows, texts, strict=True)):
        verdict_of = {judge: verdict[i] for judge, verdict in verdicts.items()}
        values: dict[str, float | None] = {judge: value for judge, (value, _) in verdict_of.items()}
        score = damage[i]
        if score is not None:
            values |= _damage(score, displaced=not words)
        results.append(
            {
                "kind": "case",
                "condition": name,
                "case": case.id,
                "group": case.group,
                "sample": i % experiment.samples,
                "prompt": case.question,
                "generation": text,
                "choices": None,
                "tokens": None if score is None else score.tokens,
                "scores": values,
                "reasons": {
                    judge: reason for judge, (value, reason) in verdict_of.items() if value is None
                },
            }
        )
    return results


def damages(
    model: Any,
    tokenizer: Any,
    benchmark: Benchmark,
    experiment: Experiment,
    cases: Sequence[Case],
    generations: Sequence[str],
    steering: Steering | None,
    words: bool,
    packed: bool,
) -> list[TextScore | None]:
    """Score each generation under its own condition; None for an empty one."""
    results: list[TextScore | None] = [None] * len(generations)
    if not experiment.damage:
        return results
    indices: list[list[int]] = []
    plain_prompts, instructed_prompts = [], []
    for number, case in enumerate(cases):
        first = number * experiment.samples
        rows = [i for i in range(first, first + experiment.samples) if generations[i].strip()]
        if rows:
            indices.append(rows)
            texts = [generations[i] for i in rows]
            plain_prompts.append(with_answers(tokenizer, plain(benchmark, case), texts))
            instructed_prompt = prompt_of(tokenizer, benchmark, case, words)
            instructed_prompts.append(with_answers(tokenizer, instructed_prompt, texts))
    if words:
        same = [
            i
            for i, prompt in enumerate(plain_prompts)
            if prompt.answers == instructed_prompts[i].answers
        ]
        scores = compare_prompts(
            model,
            [plain_prompts[i] for i in same],
            [instructed_prompts[i] for i in same],
            packed=packed,
        )
        indices = [indices[i] for i in same]
    else:
        scores = score_texts(
            model, plain_prompts, [steering], packed=packed, positions=experiment.positions
        )[0]
    for rows, row in zip(indices, scores, strict=True):
        for i, score in zip(rows, row, strict=True):
            results[i] = score
    return results


def _damage(score: TextScore, displaced: bool) -> dict[str, float | None]:
    return {
        "kl": score.kl / score.tokens,
        "nll": -score.unsteered / score.tokens,
        "displacement": score.displacement / score.tokens if displaced else None,
    }


def _likelihoods(damage: Sequence[TextScore | None]) -> list[tuple[float | None, str]]:
    return [
        (None, EMPTY) if score is None else (-score.unsteered / score.tokens, "")
        for score in damage
    ]


def _own(experiment: Experiment) -> bool:
    return any(
        named.name == "perplexity" and named.arguments.get("model") == "unsteered"
        for named in experiment.judges
    )
