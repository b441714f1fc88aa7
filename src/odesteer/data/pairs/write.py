"""Pairs that a language model writes from a description.

Question by question, a model answers under an instruction and under its opposite. The pairs that
can be learnt from (written, in words of their own, comparable in length) are kept, in the order of
the questions, until there are enough of them:

    (question, + instruction) -> positive      (question, - instruction) -> negative

The instructions are in no pair's prompt, so a steering that is fitted on the pairs does what the
instruction did. Whether the model followed it nobody checks here: read some of the pairs.

Source: the idea is that of Chen et al., "Persona Vectors", 2025, https://arxiv.org/abs/2507.21509,
section 2; there a judge sorts out answers without the trait.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from odesteer.common.chat_completions import KEY_VARIABLE, ResponseCache
from odesteer.common.files import write_whole
from odesteer.data import Contrast
from odesteer.data.pairs.traits import Trait
from odesteer.data.pairs.writers import Request, Writer, as_writer
from odesteer.data.read_files import rows as file_rows
from odesteer.models.generation import Progress, Sampling

ENOUGH = 20  # pairs, for a classifier to say something
ALIKE = 0.65  # AUC

THOUGHTS = re.compile(r"^.*</think>|<think>.*", re.S)
# The number of a list's item ends none.
SENTENCE_END = re.compile(r"(?:(?<!\d)[.!?…]|[.!?…](?=\Z))[\"'”’)*]*(?=\s|\Z)")
REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence)\b|\bas a (?:large )?language model\b"
    r"|\b(?:cannot|can['’]?t|can not|unable to|not able to|won['’]?t|will not) "
    r"(?:help|assist|fulfil|fulfill|comply|engage|answer|provide|do that|support|participate)\b"
    r"|\bi(?:['’]m| am) (?:sorry|afraid),? (?:but )?i (?:cannot|can['’]?t|can not)\b",
    re.I,
)
BEGINNING = 160  # characters in which a refusal says that it is one
SHARED = 4  # words in a row from the instruction


def clean(text: str) -> str:
    """Return an answer without thoughts, and without a last sentence that was cut short."""
    answer = THOUGHTS.sub("", text).strip()
    ends = list(SENTENCE_END.finditer(answer))
    return answer[: ends[-1].end()] if ends else answer


def flaw(
    positive: str,
    negative: str,
    question: str,
    instructions: tuple[str, str],
    length_ratio: float,
) -> str | None:
    """Say in a word or two why a pair of answers cannot be used; None if it can.

    Args:
        positive, negative: the answers, as `clean` returns them.
        question: what was answered.
        instructions: under which.
        length_ratio: how many times as many words one answer may have as the other.
    """
    both = words(positive), words(negative)
    if not all(both):
        return "empty"
    if any(REFUSAL.search(text[:BEGINNING]) for text in (positive, negative)):
        return "a refusal"
    if both[0] == both[1]:
        return "identical"
    told = {run for text in instructions for run in _runs(words(text))} - _runs(words(question))
    if any(told & _runs(each) for each in both):
        return "repeats the instruction"
    short, long = sorted(map(len, both))
    if long > length_ratio * short:
        return "lengths apart"
    return None


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text in lower case, without punctuation."""
    return tuple(re.findall(r"[\w']+", text.lower()))


def _runs(text: tuple[str, ...]) -> set[tuple[str, ...]]:
    return {text[i : i + SHARED] for i in range(len(text) - SHARED + 1)}


def alike(contrast: Contrast) -> str | None:
    """Say that words do not tell the sides of a contrast apart; None if they do, or for few pairs.

    The AUC of a logistic regression on words that did not see the question it is judged on. A
    model that follows its instruction uses other words, mostly.
    """
    if len(set(contrast.groups[0])) < ENOUGH:
        return None
    texts = [example.response for example in contrast.positive + contrast.negative]
    labels = np.repeat([1, 0], [len(contrast.positive), len(contrast.negative)])
    groups = contrast.groups[0] + contrast.groups[1]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10.0))
    folds = GroupKFold(5)
    scores = cross_val_predict(
        model, texts, labels, groups=groups, cv=folds, method="decision_function"
    )
    auc = float(roc_auc_score(labels, scores))
    if auc >= ALIKE:
        return None
    return (
        f"Words tell the sides apart with an AUC of {auc:.2f} (0.5 is chance): the model may not "
        f"have followed its instruction. Read some pairs; a larger model writes better ones."
    )


UNIT = 8  # questions asked together
ATTEMPTS = 4  # questions for each pair that is wanted, at most
FORM = "Use one or two sentences."


@dataclass(frozen=True)
class WrittenPairs:
    """Result of `write_pairs`.

    Attributes:
        path: the file: `prompt`, `positive`, `negative` a line, and their `source`: the model, its
            instructions and the sampling.
        contrast: the pairs, as `Contrast.from_file(path)` reads them.
        questions: how many were asked.
        rejected: how many pairs were left out, by the reason.
        model: who wrote them.
    """

    path: Path
    contrast: Contrast
    questions: int
    rejected: Mapping[str, int]
    model: str


def answers_path(path: str | os.PathLike[str]) -> Path:
    """Return the file beside a file of pairs that keeps all answers, so none is asked for twice."""
    return Path(f"{os.fspath(path)}.answers")


def write_pairs(
    description: str | Trait,
    writer: Any,
    path: str | os.PathLike[str],
    n: int = 60,
    *,
    opposite: str | None = None,
    form: str = FORM,
    temperature: float = 0.7,
    max_new_tokens: int = 96,
    length_ratio: float = 3.0,
    seed: int = 0,
    model: str | None = None,
    template: str = "auto",
    key_variable: str = KEY_VARIABLE,
    progress: Progress | None = None,
    **options: Any,
) -> WrittenPairs:
    """Let a language model write pairs of answers that differ in a behaviour.

    Every answer is kept in `answers_path(path)` as soon as it is there, and read from it by the
    same call: a run that was killed, or one for more pairs, asks for nothing twice. The file of
    pairs is written at the end. A local model's texts depend on the seed alone.

    Args:
        description: such as "speaks like a sea captain"; or a `Trait`, with instructions and
            questions of its own.
        writer: a model's name or directory; a server's address up to the version, such as
            "http://localhost:8000/v1"; or (model, tokenizer).
        path: the file to write, JSONL.
        n: pairs. More than there are questions: each is asked again, with another sample.
        opposite: what negative answers do; None: they are plain answers.
        form: what both instructions end with, so that both sides are of one length; "" for
            behaviours that are about length.
        temperature: above 0, or a question asked again gets the same answer.
        max_new_tokens: of an answer.
        length_ratio: how many times as many words one side of a pair may have as the other.
        seed: of the order of the questions, and of the samples.
        model: of several that a server has; its first by default.
        template: of a local model, see `odesteer.models.chat_template`.
        key_variable: the environment variable with the server's key.
        progress: called with (pairs, n).
        options: `timeout`, `tries` and `per_second` of the requests to a server; `say`, called with
            a line before anything slow.

    Returns:
        What was written. There are fewer pairs than `n` if too few of 4 n questions gave any.

    Raises:
        ConnectionError: if a server cannot be reached, or is no longer there.
        ValueError: for arguments that are none, a model that follows no instructions, a server
            that refuses, a file that holds something else, or if no pair could be used.

    Example:
        >>> written = write_pairs("speaks like a captain", "smollm2", "sea.jsonl")  # doctest: +SKIP
        >>> odesteer.fit(model, tokenizer, written.contrast)  # doctest: +SKIP
    """
    if n < 1 or max_new_tokens < 1 or not temperature >= 0 or not length_ratio >= 1 or seed < 0:
        raise ValueError(
            f"Pairs need n >= 1, max_new_tokens >= 1, temperature >= 0, length_ratio >= 1 and "
            f"seed >= 0; got n={n}, max_new_tokens={max_new_tokens}, temperature={temperature}, "
            f"length_ratio={length_ratio}, seed={seed}."
        )
    if isinstance(description, Trait) and opposite is not None:
        raise ValueError("A trait has its opposite instructions; opposite= is for a description.")
    trait = description if isinstance(description, Trait) else Trait.of(description, opposite)
    file = Path(path)
    if file.suffix != ".jsonl":
        raise ValueError(f"Pairs are written to a .jsonl file; got '{file}'.")
    _check_replaceable(file, trait, form)
    author = as_writer(writer, model, template, key_variable, **options)
    file.parent.mkdir(parents=True, exist_ok=True)
    cache = ResponseCache(answers_path(file))
    rows: list[dict[str, Any]] = []
    rejected: Counter[str] = Counter()
    seen: set[tuple[str, tuple[str, ...]]] = set()
    questions = 0
    for number, unit in enumerate(_units(trait, form, seed)):
        if len(rows) >= n or questions >= ATTEMPTS * max(n, UNIT):
            break
        sampling = Sampling(max_new_tokens, temperature, seed=_seed(seed, number))
        for question, instructions, (positive, negative) in _answered(
            author, unit, trait.system, sampling, cache
        ):
            if len(rows) == n:
                break
            questions += 1
            reason = flaw(positive, negative, question, instructions, length_ratio)
            sides = {("positive", words(positive)), ("negative", words(negative))}
            if reason is None and sides & seen:
                reason = "written before"
            if reason is not None:
                rejected[reason] += 1
                continue
            seen |= sides
            record = {
                "model": author.name,
                "positive": instructions[0],
                "negative": instructions[1],
                "temperature": temperature,
                "max_new_tokens": max_new_tokens,
                "seed": seed,
            }
            pair = {"prompt": question, "positive": positive, "negative": negative}
            rows.append({**pair, "source": record})
        if progress is not None:
            progress(len(rows), n)
    if not rows:
        reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.most_common())
        raise ValueError(
            f"None of {questions} pairs by '{author.name}' can be used: {reasons}. Give a larger "
            f"model, or other words; the answers are in '{cache.path}'."
        )
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # Half a surrogate pair is no text: JSON of a server may hold one.
    write_whole(file, lines.encode("utf-8", errors="replace"))
    return WrittenPairs(file, Contrast.from_jsonl(file), questions, dict(rejected), author.name)


Unit = list[tuple[str, tuple[str, str]]]


def _units(trait: Trait, form: str, seed: int) -> Iterator[Unit]:
    """Yield questions with their instructions, round after round, which take these in turns."""
    order = np.random.default_rng(seed).permutation(len(trait.questions))
    number, unit = 0, []
    while True:
        turn, index = divmod(number, len(order))
        pair = trait.instructions[(index + turn) % len(trait.instructions)]
        unit.append((trait.questions[order[index]], _with_form(pair, form)))
        number += 1
        if len(unit) == UNIT:
            yield unit
            unit = []


def _with_form(pair: tuple[str, str], form: str) -> tuple[str, str]:
    positive, negative = (f"{text.strip()} {form}".strip() for text in pair)
    return positive, negative


def _seed(seed: int, number: int) -> int:
    """Return the seed of a unit of questions."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) >> 1


def _answered(
    author: Writer, unit: Unit, system: bool, sampling: Sampling, cache: ResponseCache
) -> Iterator[tuple[str, tuple[str, str], tuple[str, str]]]:
    """Yield (question, instructions, answers); an answer that was unreadable is empty."""
    requests = [Request(text, question, system) for question, pair in unit for text in pair]
    answers = [clean(answer or "") for answer in author.answers(requests, sampling, cache)]
    for (question, pair), i in zip(unit, range(0, len(answers), 2), strict=True):
        yield question, pair, (answers[i], answers[i + 1])


def _check_replaceable(file: Path, trait: Trait, form: str) -> None:
    """Refuse to replace a file that holds something else.

    Raises:
        ValueError: naming it.
    """
    if not file.exists():
        return
    try:
        _, row = next(file_rows(file, ".jsonl"))
        instructions = (row["source"]["positive"], row["source"]["negative"])
        same = instructions in [_with_form(pair, form) for pair in trait.instructions]
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        same = False
    if not same:
        raise ValueError(f"'{file}' is there and holds other texts; give another file to write.")
