"""Judges of generations, one file each; `JUDGES` is the table."""

from collections.abc import Mapping

from odesteer.common.registry import resolve
from odesteer.evaluation.judges.base import Judge, Score
from odesteer.evaluation.judges.chat_grade import ChatGrade
from odesteer.evaluation.judges.hub_models import InfoLlama, Reward, ToxicityClassifier, TruthLlama
from odesteer.evaluation.judges.offline import (
    InfoTfidf,
    Profanity,
    TruthReference,
    TruthTfidf,
    VaderMood,
)
from odesteer.evaluation.judges.perplexity import KLToUnsteered, Perplexity
from odesteer.evaluation.judges.perspective import Perspective

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
        Perspective,
        ToxicityClassifier,
        Profanity,
        VaderMood,
        Perplexity,
        KLToUnsteered,
    )
}


def find_judge(name: str) -> type[Judge]:
    """A judge's class by its name, also one that another package registers under the
    entry-point group "odesteer.judges".

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
    "Perspective",
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
