"""The agreement that a judge states is the one measured."""

import re
from importlib.metadata import version

import numpy as np
import pytest
from experiments.judge_agreement import auc, mood, toxicity, truth

from odesteer.evaluation.judges import JUDGES


def stated(name):
    """(AUC, n) of what a judge says of itself."""
    text = JUDGES[name].agreement
    n = re.search(r"n = ([\d,]+)", text)[1]
    return float(re.search(r"AUC ([\d.]+)", text)[1]), int(n.replace(",", ""))


def check(rows):
    for row in rows:
        measured = (pytest.approx(row.auc, abs=0.002), row.n)
        assert stated(row.judge) == measured, row


def test_the_auc_is_the_share_of_pairs_in_the_right_order():
    labels = np.array([True, True, False, False, False])
    assert auc(labels, np.array([3.0, 1.0, 0.0, 1.0, 2.0])) == (3 + 1.5) / 6


def test_of_moods():
    pytest.importorskip("vaderSentiment")
    check(mood(draws=1))


def test_of_offensive_texts(data_dir):
    pytest.importorskip("profanity_check", reason="needs alt-profanity-check (extra eval)")
    # Other versions are other models, trained for another scikit-learn.
    if version("alt-profanity-check") != "1.9.1":
        pytest.skip("stated for alt-profanity-check 1.9.1")
    check(toxicity(str(data_dir), draws=1))


@pytest.mark.slow
def test_of_true_and_informative_answers(data_dir):
    check(truth(str(data_dir), draws=1))
