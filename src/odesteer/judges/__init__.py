"""One file a judge; `JUDGES` is the table that everything else reads."""

from collections.abc import Mapping

from odesteer.judges.base import Judge, Score
from odesteer.judges.classifier import ToxicityClassifier
from odesteer.judges.kl import KLToUnsteered
from odesteer.judges.llm import ChatGrade
from odesteer.judges.perplexity import Perplexity
from odesteer.judges.perspective import Perspective
from odesteer.judges.profanity import Profanity
from odesteer.judges.reference import TruthReference
from odesteer.judges.reward import Reward
from odesteer.judges.tfidf import InfoTfidf, TruthTfidf
from odesteer.judges.vader import VaderMood
from odesteer.judges.yes_no import InfoLlama, TruthLlama
from odesteer.lookup import find

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
    return find(JUDGES, name, "judge", "odesteer.judges", Judge)


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
