"""MC1, MC2 and MC3 equal their equations."""

import math

import pytest

from odesteer.evaluation import metrics
from odesteer.evaluation.case import Case


def test_a_known_example_by_hand():
    # exp: .2, .1 right; .15, .05 wrong
    logprobs, right = [math.log(p) for p in (0.2, 0.1, 0.15, 0.05)], [True, True, False, False]
    assert metrics.mc2(logprobs, right) == pytest.approx(0.3 / 0.5)
    assert metrics.mc3(logprobs, right) == 0.5
    assert metrics.mc1([logprobs[0], *logprobs[2:]], [True, False, False]) == 1.0
    assert metrics.mc1([logprobs[1], *logprobs[2:]], [True, False, False]) == 0.0


def test_mc2_does_not_change_when_every_answer_gets_less_likely():
    logprobs, right = [-1.0, -2.0, -0.5], [True, False, False]
    shifted = [value - 2000.0 for value in logprobs]  # exp of it is 0 in floating point
    assert metrics.mc2(shifted, right) == pytest.approx(metrics.mc2(logprobs, right))


def test_a_tie_is_not_more_likely():
    assert metrics.mc1([-1.0, -1.0], [True, False]) == 0.0
    assert metrics.mc3([-1.0, -1.0], [True, False]) == 0.0
    assert metrics.mc2([-1.0, -1.0], [True, False]) == pytest.approx(0.5)


def test_the_order_of_the_answers_does_not_matter():
    logprobs, right = [-3.0, -1.0, -2.0, -2.5], [True, False, True, False]
    for metric in (metrics.mc2, metrics.mc3):
        assert metric(logprobs, right) == metric(logprobs[::-1], right[::-1])


@pytest.mark.parametrize(
    ("logprobs", "right", "says"),
    [
        ([-1.0, -2.0], [True, True], "right and wrong"),
        ([-1.0], [True, False], "right and wrong"),
        ([-1.0, math.nan], [True, False], "finite"),
    ],
)
def test_what_has_no_answer_is_refused(logprobs, right, says):
    for metric in (metrics.mc1, metrics.mc2, metrics.mc3):
        with pytest.raises(ValueError, match=says):
            metric(logprobs, right)


def test_mc1_has_one_right_answer():
    with pytest.raises(ValueError, match="got 2 of 3"):
        metrics.mc1([-1.0, -2.0, -3.0], [True, True, False])


def test_a_case_is_scored_from_each_answer_once():
    case = Case(
        "Is it?",
        id="7",
        choices={
            "mc1": (("no", True), ("yes", False)),
            "mc2": (("no", True), ("never", True), ("yes", False)),
        },
    )
    assert metrics.answers(case) == ("no", "yes", "never")
    found = metrics.scores(case, {"no": -1.0, "yes": -2.0, "never": -3.0})
    expected = {"mc1": 1.0, "mc3": 0.5}
    e = math.exp
    expected["mc2"] = (e(-1) + e(-3)) / (e(-1) + e(-2) + e(-3))
    assert found == pytest.approx(expected)
    with pytest.raises(ValueError, match="Case '7' needs the log-probability of 'never'"):
        metrics.scores(case, {"no": -1.0, "yes": -2.0})
