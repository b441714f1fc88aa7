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
from odesteer.evaluation.scoring.packing import PromptWithAnswers
from odesteer.evaluation.scoring.score_texts import TextScore, compare_prompts, score_texts
from odesteer.models.chat_template import Messages, encode, encode_parts
from odesteer.steering import Steering


def about(names: Sequence[Named]) -> dict[str, dict[str, str]]:
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
    """Judge generations: (value, reason) of each."""
    return [(score.value, score.reason) for score in judge.score(cases, generations)]


def sign(benchmark: Benchmark, judge: Judge) -> float:
    """Return +1 where more of the judge's value is wanted, -1 where less is.

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
    asked = Prompt([{"role": "system", "content": words}, *turns], template)
    try:
        encode(tokenizer, *asked[:1], template=template)
    except ValueError:
        # The model's template knows no system message.
        first = {"role": turns[0]["role"], "content": f"{words}\n\n{turns[0]['content']}"}
        return Prompt([first, *turns[1:]], template)
    return asked


def prompt_of(tokenizer: Any, benchmark: Benchmark, case: Case, words: bool) -> Prompt:
    """Return the prompt, with the instruction if `words`."""
    return instructed(tokenizer, benchmark, case) if words else plain(benchmark, case)


def with_choices(
    tokenizer: Any, benchmark: Benchmark, case: Case, words: bool = False
) -> PromptWithAnswers:
    """Encode a case's prompt and every answer that its scores need."""
    return with_answers(tokenizer, prompt_of(tokenizer, benchmark, case, words), answers(case))


def with_answers(tokenizer: Any, asked: Prompt, said: Sequence[str]) -> PromptWithAnswers:
    """Encode a prompt and answers, as the template writes them."""
    parts = [encode_parts(tokenizer, asked.prompt, text, asked.template) for text in said]
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
    asked = [prompt_of(tokenizer, benchmark, case, words) for case in cases]
    rows = [prompt for prompt in asked for _ in range(experiment.samples)]
    backend = make(rows[0].template, experiment.positions, len(rows))
    sampling = Sampling(**experiment.sampling, seed=seed_of(seed, cases))
    said = backend.generate([prompt.prompt for prompt in rows], steering, sampling)
    return [benchmark.trim(text) for text in said]


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
    said = generate(make, tokenizer, benchmark, experiment, cases, steering, words, seed)
    rows = [case for case in cases for _ in range(experiment.samples)]
    damage = damages(model, tokenizer, benchmark, experiment, cases, said, steering, words, packed)
    verdicts = {
        # Already known where the damage was measured under the same unsteered model.
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
    """Score each generation under its own condition; None for an empty one."""
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
        heard = compare_prompts(
            model, [asked[i] for i in same], [prompted[i] for i in same], packed=packed
        )
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
