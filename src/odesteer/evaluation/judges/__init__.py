"""Judges of generations; `JUDGES` is the table."""

from collections.abc import Mapping

from odesteer.common.registry import resolve
from odesteer.evaluation.judges.base import Judge, Score
from odesteer.evaluation.judges.chat_grade import ChatGrade
from odesteer.evaluation.judges.models import (
    InfoLlama,
    KLToUnsteered,
    Perplexity,
    Reward,
    ToxicityClassifier,
    TruthLlama,
)
from odesteer.evaluation.judges.offline import (
    InfoTfidf,
    Profanity,
    TruthReference,
    TruthTfidf,
    VaderMood,
)

JUDGES: Mapping[str, type[Judge]] = {
    judge.name: judge
    for judge in (
        TruthLlama,
        InfoLlama,
        TruthTfidf,
        InfoTfidf,
        TruthReference,
        Reward,
        ChatGrade,
        ToxicityClassifier,
        Profanity,
        VaderMood,
        Perplexity,
        KLToUnsteered,
    )
}


def find_judge(name: str) -> type[Judge]:
    """Return a judge's class by its name.

    Other packages register theirs under the entry-point group "odesteer.judges".

    Raises:
        ValueError: for an unknown name.
    """
    return resolve(JUDGES, name, "judge", "odesteer.judges", Judge)


__all__ = [
    "JUDGES",
    "ChatGrade",
    "InfoLlama",
    "InfoTfidf",
    "Judge",
    "KLToUnsteered",
    "Perplexity",
    "Profanity",
    "Reward",
    "Score",
    "ToxicityClassifier",
    "TruthLlama",
    "TruthReference",
    "TruthTfidf",
    "VaderMood",
    "find_judge",
]
