"""Answers that can be learnt from: written, in words of their own, comparable in length."""

import re

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from odesteer.data import Contrast

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
