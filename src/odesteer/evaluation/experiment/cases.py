"""Result lines of test cases: answers under a condition, judged, with their damage.

A prompt is plain or, for the prompt-only baseline, has the benchmark's instruction: as the system
message of a chat, or before the text. Prompts are answered in one batch, the samples of a prompt
next to each other, from a seed that all conditions share (common random numbers).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from odesteer.backends import Sampling, TransformersBackend
from odesteer.evaluation.benchmarks import Benchmark
from odesteer.evaluation.case import Case
from odesteer.evaluation.experiment.config import UNSTEERED, Experiment, Named
from odesteer.evaluation.experiment.fits import Make
from odesteer.evaluation.judges import Judge, Perplexity, find_judge
from odesteer.evaluation.judges.base import EMPTY, Score
from odesteer.evaluation.metrics import answers, scores
from odesteer.extraction.packing import PromptWithAnswers
from odesteer.extraction.score_texts import TextScore, compare_prompts, score_texts
from odesteer.models.chat_template import Messages, encode, encode_parts
from odesteer.steering import Steering

Line = dict[str, Any]


class Prompt(NamedTuple):
    """Prompt, and the template that makes it text."""

    prompt: str | Messages
    template: str


class ReadyCondition(NamedTuple):
    """Condition whose layer and dose are known.

    Attributes:
        id: its name in the results.
        steering: at its dose; None for the unsteered model.
        instructed: whether the prompt has the benchmark's instruction.
        seed: of sampling.
    """

    id: str
    steering: Steering | None
    instructed: bool = False
    seed: int = 0


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
    chat: list[Any] = [{"role": "system", "content": words}, *turns]
    try:
        encode(tokenizer, chat[:1], template=template)
    except ValueError:
        # The model's template knows no system message.
        first = {"role": turns[0]["role"], "content": f"{words}\n\n{turns[0]['content']}"}
        chat = [first, *turns[1:]]
    return Prompt(chat, template)


def prompt_of(tokenizer: Any, benchmark: Benchmark, case: Case, words: bool = False) -> Prompt:
    """Return the prompt of a case, with the instruction if `words`."""
    plain = Prompt(case.prompt, benchmark.template)
    return instructed(tokenizer, benchmark, case) if words else plain


def with_answers(
    tokenizer: Any, benchmark: Benchmark, case: Case, texts: Sequence[str], words: bool = False
) -> PromptWithAnswers:
    """Encode a case's prompt and answers to it, as the template writes them."""
    prompt, template = prompt_of(tokenizer, benchmark, case, words)
    parts = [encode_parts(tokenizer, prompt, text, template) for text in texts]
    return PromptWithAnswers(list(parts[0][0]), [list(answer) for _, answer in parts])


def choice_scores(case: Case, rows: Sequence[TextScore]) -> dict[str, float]:
    """Compute MC1, MC2 and MC3 from the scores of `answers(case)`."""
    return scores(case, _logprobs(case, rows))


def _logprobs(case: Case, rows: Sequence[TextScore]) -> dict[str, float]:
    return {text: row.logprob for text, row in zip(answers(case), rows, strict=True)}


def mean_damage(rows: Sequence[TextScore]) -> dict[str, float]:
    """Return the mean KL and displacement over all tokens of the answers."""
    tokens = sum(row.tokens for row in rows)
    return {name: sum(getattr(row, name) for row in rows) / tokens for name in DAMAGE}


DAMAGE = ("kl", "displacement")


def describe_judges(names: Sequence[Named]) -> dict[str, dict[str, str]]:
    """Return what a report prints beside each judge's numbers."""
    kinds = [find_judge(named.name) for named in names]
    return {
        kind.name: {"unit": kind.unit, "higher_is": kind.higher_is, "agreement": kind.agreement}
        for kind in kinds
    }


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


@dataclass(frozen=True)
class CaseScorer:
    """Answers to cases: given or generated, then scored.

    Args:
        model, tokenizer: to steer, in eval mode.
        benchmark, experiment: prompts, sampling, judges.
        packed: whether the model takes several answers in one row, see
            `odesteer.extraction.packing`.
        data: folder of the judges' labelled answers.
    """

    model: Any
    tokenizer: Any
    benchmark: Benchmark
    experiment: Experiment
    packed: Callable[[], bool]
    data: Any = None

    def judges(self) -> dict[str, Judge]:
        """Create the judges, by name; perplexity's model may be the unsteered one."""
        return {named.name: self._judge(named) for named in self.experiment.judges}

    def _judge(self, named: Named) -> Judge:
        kind: Any = find_judge(named.name)
        judge: Judge
        if _by_unsteered(named):
            template = self.benchmark.template
            backend = TransformersBackend(self.model, self.tokenizer, template=template)
            judge = kind(backend=backend)
        elif "data" in {each.name for each in fields(kind)}:
            judge = kind(**{"data": self.data, **named.arguments})
        else:
            judge = kind(**named.arguments)
        return judge

    def with_choices(self, case: Case, words: bool = False) -> PromptWithAnswers:
        """Encode a case's prompt and every answer that its scores need."""
        return with_answers(self.tokenizer, self.benchmark, case, answers(case), words)

    def encoded(self, case: Case) -> list[int]:
        """Encode a case's prompt."""
        prompt, template = prompt_of(self.tokenizer, self.benchmark, case)
        return list(encode(self.tokenizer, prompt, None, template))

    def generate(self, make: Make, cases: Sequence[Case], condition: ReadyCondition) -> list[str]:
        """Generate `samples` answers to each case, in order, trimmed as the benchmark says."""
        experiment = self.experiment
        prompts = [
            prompt_of(self.tokenizer, self.benchmark, case, condition.instructed)
            for case in self.repeated(cases)
        ]
        backend = make(prompts[0].template, experiment.positions, len(prompts))
        sampling = Sampling(**experiment.sampling, seed=seed_of(condition.seed, cases))
        texts = backend.generate([each.prompt for each in prompts], condition.steering, sampling)
        return [self.benchmark.trim(text) for text in texts]

    def repeated(self, cases: Sequence[Case]) -> list[Case]:
        """Return each case as often as it has samples."""
        return [case for case in cases for _ in range(self.experiment.samples)]

    def choice_lines(
        self, cases: Sequence[Case], conditions: Sequence[ReadyCondition]
    ) -> list[Line]:
        """Return one line per condition and case, of given answers, without the fold."""
        damage, packed = self.experiment.damage, self.packed()
        prompts = [self.with_choices(case) for case in cases]
        steered = iter(
            score_texts(
                self.model,
                prompts,
                [condition.steering for condition in conditions if not condition.instructed],
                packed=packed,
                positions=self.experiment.positions,
                compare=damage,
            )
        )
        lines = []
        for condition in conditions:
            measured = damage
            if not condition.instructed:
                rows = next(steered)
            else:
                prompted = [self.with_choices(case, words=True) for case in cases]
                measured &= [a.answers for a in prompts] == [a.answers for a in prompted]
                rows = (
                    compare_prompts(self.model, prompts, prompted, packed=packed)
                    if measured
                    else score_texts(self.model, prompted, [None], packed=packed, compare=False)[0]
                )
            for case, row in zip(cases, rows, strict=True):
                values: dict[str, float | None] = {**choice_scores(case, row)}
                if measured:
                    values |= _damage(row, condition)
                tokens = sum(score.tokens for score in row)
                choices = _logprobs(case, row)
                lines.append(_line(condition, case, values, tokens=tokens, choices=choices))
        return lines

    def generation_lines(
        self,
        make: Make,
        cases: Sequence[Case],
        condition: ReadyCondition,
        judges: dict[str, Judge],
    ) -> list[Line]:
        """Return one line per case and sample, of generations, without the fold."""
        texts = self.generate(make, cases, condition)
        rows, damage = self.repeated(cases), self._damages(cases, texts, condition)
        # Already known where the damage was measured under the same unsteered model.
        known = {named.name for named in self.experiment.judges if _by_unsteered(named)}
        verdicts = {
            name: [
                Score(None, EMPTY) if score is None else Score(-score.unsteered / score.tokens)
                for score in damage
            ]
            if self.experiment.damage and name in known
            else judge.score(rows, texts)
            for name, judge in judges.items()
        }
        lines = []
        for i, (case, text, score) in enumerate(zip(rows, texts, damage, strict=True)):
            scores = {name: verdict[i] for name, verdict in verdicts.items()}
            values = {name: verdict.value for name, verdict in scores.items()}
            if score is not None:
                values |= {"nll": -score.unsteered / score.tokens, **_damage([score], condition)}
            line = _line(
                condition,
                case,
                values,
                sample=i % self.experiment.samples,
                generation=text,
                tokens=None if score is None else score.tokens,
                reasons={name: s.reason for name, s in scores.items() if s.value is None},
            )
            lines.append(line)
        return lines

    def _damages(
        self, cases: Sequence[Case], generations: Sequence[str], condition: ReadyCondition
    ) -> list[TextScore | None]:
        """Score each generation under its own condition; None for an empty one."""
        results: list[TextScore | None] = [None] * len(generations)
        if not self.experiment.damage:
            return results
        samples, words = self.experiment.samples, condition.instructed
        indices, plain, prompted = [], [], []
        for number, case in enumerate(cases):
            indices_of_case = range(number * samples, (number + 1) * samples)
            kept = [i for i in indices_of_case if generations[i].strip()]
            if not kept:
                continue
            texts = [generations[i] for i in kept]
            pair = [
                with_answers(self.tokenizer, self.benchmark, case, texts, instruction)
                for instruction in (False, words)
            ]
            if pair[0].answers == pair[1].answers:  # else they cannot be compared
                indices += kept
                plain.append(pair[0])
                prompted.append(pair[1])
        if words:
            scores = compare_prompts(self.model, plain, prompted, packed=self.packed())
        else:
            [scores] = score_texts(
                self.model,
                plain,
                [condition.steering],
                packed=self.packed(),
                positions=self.experiment.positions,
            )
        for i, score in zip(indices, (each for row in scores for each in row), strict=True):
            results[i] = score
        return results


def _line(condition: ReadyCondition, case: Case, values: dict[str, Any], **rest: Any) -> Line:
    return {
        "kind": "case",
        "condition": condition.id,
        "case": case.id,
        "group": case.group,
        "sample": 0,
        "prompt": case.question,
        "generation": None,
        "choices": None,
        "scores": values,
        "reasons": {},
        **rest,
    }


def _damage(rows: Sequence[TextScore], condition: ReadyCondition) -> dict[str, float | None]:
    # Displacement is undefined for the prompt baseline.
    return {**mean_damage(rows), **({"displacement": None} if condition.instructed else {})}


def _by_unsteered(named: Named) -> bool:
    """Whether a judge is the perplexity under the unsteered model."""
    return find_judge(named.name) is Perplexity and named.arguments.get("model") == UNSTEERED


def seed_of(seed: int, cases: Sequence[Case]) -> int:
    """Return the seed of a batch, the same for every condition."""
    text = json.dumps([seed, [case.id for case in cases]])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
