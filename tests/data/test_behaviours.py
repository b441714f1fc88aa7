"""Packaged behaviours: complete, balanced, and loaded by name from either side."""

import re

import numpy as np
import pytest
from sklearn.feature_extraction import DictVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

import odesteer as ods
from odesteer.common.catalogue import BEHAVIOURS
from odesteer.data.behaviours import PAIRS, read

FILES = sorted({file for file, _, _ in BEHAVIOURS.values()})
# Length is the behaviour of this one.
LENGTH = {"concise"}


def trivial_features(text: str) -> dict[str, float]:
    """Return what a confound would be made of: length, punctuation, first and last word."""
    words = re.findall(r"[\w']+", text.lower())
    marks = {f"has {mark}": float(mark in text) for mark in ",;:!?'\"-—"}
    return {
        "words": len(words),
        "characters": len(text),
        "last character": text.rstrip()[-1],
        "digits": float(any(map(str.isdigit, text))),
        "capital": float(text[0].isupper()),
        f"first {words[0]}": 1.0,
        f"last {words[-1]}": 1.0,
        **marks,
    }


@pytest.mark.parametrize("file", FILES)
def test_no_bag_of_trivial_features_separates_a_behaviour(file):
    rows = read(file)
    texts = [row[side] for side in ("positive", "negative") for row in rows]
    labels = np.repeat([1, 0], len(rows))
    pairs = np.tile(np.arange(len(rows)), 2)
    model = make_pipeline(DictVectorizer(), MaxAbsScaler(), LogisticRegression(max_iter=1000))
    scores = cross_val_predict(
        model,
        [trivial_features(text) for text in texts],
        labels,
        groups=pairs,
        cv=GroupKFold(5),
        method="decision_function",
    )
    separated = roc_auc_score(labels, scores)
    assert separated > 0.95 if file in LENGTH else separated < 0.75


@pytest.mark.parametrize("file", FILES)
def test_a_behaviour_is_complete(file):
    rows = read(file)
    assert len(rows) >= PAIRS
    for key in ("positive", "negative"):
        assert len({row[key] for row in rows}) == len(rows)
    assert all(row["prompt"].strip() and row["positive"] != row["negative"] for row in rows)


def test_both_sides_of_a_file_are_behaviours():
    formal, casual = ods.behaviours.load("formal"), ods.behaviours.load("casual")
    assert formal.is_paired
    assert len(formal.positive) == PAIRS
    assert formal.positive == casual.negative
    assert formal.negative == casual.positive


def test_fewer_pairs_are_spread_over_the_file():
    assert len(ods.behaviours.load("cheerful").positive) == PAIRS
    topics = {row["prompt"]: row["topic"] for row in read("melancholy")}
    few = ods.behaviours.load("cheerful", 24)
    assert len({topics[example.prompt] for example in few.positive}) == 24
    with pytest.raises(ValueError, match="2 pairs or more; got pairs=1"):
        ods.behaviours.load("formal", 1)


def test_an_unknown_name_is_answered_by_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'formal'"):
        ods.behaviours.load("formel")
