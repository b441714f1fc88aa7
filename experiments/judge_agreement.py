"""Agreement of the judges that run offline with people, or with a reference.

    python experiments/judge_agreement.py            a minute; needs the data sets and extra eval

| judge | asked about | compared with |
|---|---|---|
| profanity | RealToxicityPrompts, prompts and continuations | Perspective's toxicity >= 0.5 |
| truth-tfidf, info-tfidf | model answers to TruthfulQA's questions | labels by people |
| truth-reference | the same | the same |
| vader | the package's sentences | bright or melancholy, as they were written |

Model answers are those of the judges' training sets that are not TruthfulQA's own references,
each once. No question is judged by a model that was trained on it (`evaluation/judges/offline.py`).
AUC: how often a text of the class is scored above one that is not. The interval is a 95 %
bootstrap over questions or texts.
"""

import argparse
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata, spearmanr

from odesteer.evaluation.benchmarks import TruthfulQA
from odesteer.evaluation.benchmarks.base import json_lines, locate
from odesteer.evaluation.benchmarks.sentiment import rows as sentences
from odesteer.evaluation.case import Case
from odesteer.evaluation.judges import (
    InfoTfidf,
    Judge,
    Profanity,
    TruthReference,
    TruthTfidf,
    VaderMood,
)
from odesteer.evaluation.judges.offline import labelled

DRAWS = 500


class Row(NamedTuple):
    """One judge against one reference."""

    judge: str
    against: str
    auc: float
    low: float
    high: float
    accuracy: float | None  # at a threshold of 0.5, where scores are probabilities
    share: float  # of the class
    spearman: float | None
    n: int
    unscored: int


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """P(score of a positive > score of a negative), ties half (Mann and Whitney)."""
    ranks = rankdata(scores)
    n, m = labels.sum(), (~labels).sum()
    return float((ranks[labels].sum() - n * (n + 1) / 2) / (n * m))


def compare(
    judge: Judge,
    against: str,
    cases: Sequence[Case],
    texts: Sequence[str],
    labels: Sequence[bool],
    graded: Sequence[float] | None = None,
    probability: bool = True,
    draws: int = DRAWS,
) -> Row:
    """Cases without a group are independent; the others are drawn by group."""
    found = judge.score(cases, texts)
    known = np.array([score.value is not None for score in found])
    scores = np.array([score.value for score in found if score.value is not None])
    truth = np.array(labels)[known]
    names = [case.group or str(i) for i, case in enumerate(cases)]
    _, group = np.unique(np.array(names)[known], return_inverse=True)
    rows_of = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        picks = generator.integers(len(rows_of), size=len(rows_of))
        places = np.concatenate([rows_of[i] for i in picks])
        drawn.append(auc(truth[places], scores[places]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Row(
        judge.name,
        against,
        auc(truth, scores),
        float(low),
        float(high),
        float(((scores >= 0.5) == truth).mean()) if probability else None,
        float(truth.mean()),
        None if graded is None else float(spearmanr(scores, np.array(graded)[known])[0]),
        len(scores),
        int((~known).sum()),
    )


def toxicity(data: str | None, draws: int = DRAWS) -> list[Row]:
    texts, graded = [], []
    for name in ("toxic", "nontoxic"):
        for row in json_lines(locate(f"realtoxicityprompts/{name}.jsonl", data)[0]):
            for part in (row["prompt"], row["continuation"]):
                if part.get("toxicity") is not None:
                    texts.append(part["text"])
                    graded.append(part["toxicity"])
    labels = [value >= 0.5 for value in graded]
    cases = [Case("")] * len(texts)
    against = "Perspective >= 0.5"
    return [compare(Profanity(), against, cases, texts, labels, graded, draws=draws)]


def truth(data: str | None, draws: int = DRAWS) -> list[Row]:
    case_of = {case.question.strip(): case for case in TruthfulQA.load(data).cases}

    def answers(name: str) -> tuple[list[Case], list[str], list[bool]]:
        kept: dict[tuple[str, str], bool] = {}
        for question, answer, label in labelled(locate(f"truthfulqa/{name}.jsonl.gz", data)[0]):
            case = case_of[question]
            known = {_plain(text) for text in (*case.references, *case.distractors)}
            if _plain(answer) not in known:
                kept.setdefault((question, answer), label)
        cases = [case_of[question] for question, _ in kept]
        return cases, [answer for _, answer in kept], list(kept.values())

    true, informative = answers("finetune_truth"), answers("finetune_info")
    return [
        compare(TruthTfidf(data), "true, by people", *true, draws=draws),
        compare(TruthReference(), "true, by people", *true, probability=False, draws=draws),
        compare(InfoTfidf(data), "informative, by people", *informative, draws=draws),
    ]


def mood(draws: int = DRAWS) -> list[Row]:
    pairs = sentences()
    texts = [row["negative"] for row in pairs] + [row["positive"] for row in pairs]
    labels = [True] * len(pairs) + [False] * len(pairs)
    cases = [Case("", group=row["topic"]) for row in pairs] * 2
    against = "bright, as written"
    return [compare(VaderMood(), against, cases, texts, labels, probability=False, draws=draws)]


def _plain(text: str) -> str:
    return re.sub(r"\W+", " ", text.lower()).strip()


def markdown(rows: Sequence[Row]) -> str:
    lines = [
        "| judge | against | AUC [95 %] | accuracy at 0.5 | share of the class | Spearman | n | "
        "unscored |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        accuracy = "" if row.accuracy is None else f"{row.accuracy:.3f}"
        spearman = "" if row.spearman is None else f"{row.spearman:.3f}"
        lines.append(
            f"| `{row.judge}` | {row.against} | {row.auc:.3f} [{row.low:.3f}, {row.high:.3f}] | "
            f"{accuracy} | {row.share:.3f} | {spearman} | {row.n} | {row.unscored} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="the directory of data sets; default: ODESTEER_DATA")
    arguments = parser.parse_args()
    print(markdown([*toxicity(arguments.data), *truth(arguments.data), *mood()]))
