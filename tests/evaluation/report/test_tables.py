"""Rows, metrics and cells of a run have the values that can be worked out by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.report.synthetic import angle, case, condition, lines, write

from odesteer.evaluation.report import Report, build, read_run, writers
from odesteer.evaluation.report.tables import Cell, Column, Line, Table, effect, headings

ANGLE = angle(0.1)


def report(folder: Path, content: list[dict[str, Any]], **arguments: Any) -> Report:
    return build(read_run(write(folder, content)), drawn=False, **arguments)


def cells(found: Report, label: str) -> dict[str, Cell | None]:
    (line,) = (line for line in found.main.lines if line.label == label)
    return {column.key: cell for column, cell in zip(found.main.columns, line.cells, strict=True)}


def value(cell: Cell | None) -> float:
    assert cell is not None and cell.value is not None
    return cell.value.mean


def change(cell: Cell | None) -> tuple[float, float, float, int]:
    assert cell is not None and cell.difference is not None
    return cell.difference.interval


def truthful(folder: Path) -> Report:
    """Three questions: P(true), P(informative) of unsteered and CAA."""
    answers = {
        "none": [(0.9, 0.9), (0.1, 0.9), (0.1, 0.1)],
        "caa": [(0.9, 0.1), (0.9, 0.9), (None, 0.9)],
    }
    cases = [
        case(name, i, {"truth-tfidf": true, "info-tfidf": info},
             reasons={} if true is not None else {"truth-tfidf": "empty generation"})
        for name, own in answers.items()
        for i, (true, info) in enumerate(own)
    ]  # fmt: skip
    metrics = ("true", "info", "true_x_info", "true_and_info")
    conditions = [condition("none"), condition("caa", dose=ANGLE)]
    return report(folder, lines(conditions, cases, metrics, ("truth-tfidf", "info-tfidf")))


def test_the_product_of_rates_and_the_rate_of_both_are_two_columns(tmp_path: Path) -> None:
    found = truthful(tmp_path)
    own = cells(found, "Unsteered")
    assert value(own["true truth-tfidf"]) == pytest.approx(1 / 3)
    assert value(own["info info-tfidf"]) == pytest.approx(2 / 3)
    assert value(own["true_x_info truth-tfidf info-tfidf"]) == pytest.approx(2 / 9)
    assert value(own["true_and_info truth-tfidf info-tfidf"]) == pytest.approx(1 / 3)


def test_unscored_is_counted_and_left_out_of_the_difference(tmp_path: Path) -> None:
    found = truthful(tmp_path)
    own = cells(found, "CAA")["true truth-tfidf"]
    assert own is not None
    assert value(own) == 1.0  # of two answers; a zero for the third would make it 2/3
    assert own.unscored == 1
    assert own.value is not None and own.value.n == 2
    assert change(own)[0] == 0.5 and change(own)[3] == 2
    (judges,) = (facts for facts in found.facts if facts.title.startswith("Judges"))
    unscored = {row[0]: row[-1] for row in judges.rows}
    assert unscored == {"truth-tfidf": "1 of 6 (1: empty generation)", "info-tfidf": "0 of 6"}


def test_the_unsteered_row_has_no_difference(tmp_path: Path) -> None:
    own = cells(truthful(tmp_path), "Unsteered").values()
    assert all(cell is not None and cell.difference is None for cell in own)


def test_win_rate_reward_and_percentile(tmp_path: Path) -> None:
    rewards = {"none": [0.0, 1.0, 2.0, 3.0], "caa": [1.0, 1.0, 0.0, 9.0]}
    cases = [case(n, i, {"reward": r}) for n, own in rewards.items() for i, r in enumerate(own)]
    metrics = ("win_rate", "reward", "reward_90th_percentile")
    conditions = [condition("none"), condition("caa", dose=ANGLE)]
    found = report(tmp_path, lines(conditions, cases, metrics, ("reward",), "ultrafeedback"))
    own, base = cells(found, "CAA"), cells(found, "Unsteered")
    assert value(base["win_rate reward"]) == 0.5
    assert value(own["win_rate reward"]) == 0.625  # won, tied, lost, won
    assert change(own["win_rate reward"])[0] == 0.125
    assert change(own["reward"])[0] == pytest.approx(1.25)
    assert value(own["reward_90th_percentile reward"]) == pytest.approx(6.6)
    assert value(base["reward_90th_percentile reward"]) == pytest.approx(2.7)
    assert change(own["reward_90th_percentile reward"])[0] == pytest.approx(3.9)


def toxic(folder: Path) -> Report:
    """Two prompts of two samples."""
    scores = {"none": [0.2, 0.8, 0.4, 0.3], "caa": [0.1, 0.6, 0.2, None]}
    cases = [
        case(name, i // 2, {"profanity": score, "perplexity": 2.0, "kl": 0.5 * (name == "caa")},
             sample=i % 2, generation="a b a b")
        for name, own in scores.items()
        for i, score in enumerate(own)
    ]  # fmt: skip
    metrics = (
        "toxicity", "expected_maximum_toxicity", "toxicity_probability", "perplexity", "distinct_1",
    )  # fmt: skip
    conditions = [condition("none"), condition("caa", dose=ANGLE)]
    judges = ("profanity", "perplexity")
    return report(folder, lines(conditions, cases, metrics, judges, "real-toxicity-prompts"))


def test_the_expected_maximum_is_over_the_samples_of_a_prompt(tmp_path: Path) -> None:
    found = toxic(tmp_path)
    base, own = cells(found, "Unsteered"), cells(found, "CAA")
    assert value(base["expected_maximum_toxicity profanity"]) == pytest.approx(0.6)
    assert value(base["toxicity_probability profanity"]) == 0.5
    # The second prompt has an unscored sample: its maximum is not known.
    assert value(own["expected_maximum_toxicity profanity"]) == 0.6
    assert own["expected_maximum_toxicity profanity"].unscored == 1  # type: ignore[union-attr]
    assert change(own["expected_maximum_toxicity profanity"])[0] == pytest.approx(-0.2)
    assert value(own["toxicity profanity"]) == pytest.approx(0.3)
    assert change(own["toxicity profanity"])[0] == pytest.approx(-1 / 6)


def test_nats_are_printed_as_perplexity(tmp_path: Path) -> None:
    assert value(cells(toxic(tmp_path), "CAA")["perplexity"]) == pytest.approx(math.exp(2.0))


def test_texts_are_counted_for_their_diversity(tmp_path: Path) -> None:
    found = toxic(tmp_path)
    assert value(cells(found, "Unsteered")["distinct_1"]) == 2 / 16
    assert change(cells(found, "CAA")["distinct_1"])[0] == 0.0


def test_damage_stands_last_and_is_never_tested(tmp_path: Path) -> None:
    found = toxic(tmp_path)
    assert [column.key for column in found.main.columns][-2:] == ["kl", "perplexity"]
    assert cells(found, "CAA")["kl"].adjusted is None  # type: ignore[union-attr]


def test_what_nobody_tried_to_measure_is_empty_and_not_unscored(tmp_path: Path) -> None:
    conditions = [condition("none"), condition("prompt")]
    cases = [
        case(name, i, {"truth-tfidf": None, "displacement": moved},
             reasons={"truth-tfidf": "empty generation"})
        for name, moved in (("none", 0.0), ("prompt", None))
        for i in range(2)
    ]  # fmt: skip
    own = cells(report(tmp_path, lines(conditions, cases, ("truth-tfidf",))), "Prompt only")
    assert own["displacement"] is None
    assert own["truth-tfidf"] is not None and own["truth-tfidf"].unscored == 2


def test_a_benchmark_may_want_less_of_what_a_judge_calls_better(tmp_path: Path) -> None:
    cases = [case("none", 0, {"vader": 0.5})]
    content = lines([condition("none")], cases, ("vader",), ("vader",), "sentiment")
    assert report(tmp_path / "a", content).main.columns[0].better == "higher"
    content[0]["benchmark"]["wanted"] = {"vader": "lower"}
    found = report(tmp_path / "b", content)
    assert found.main.columns[0].better == "lower"
    assert next(f for f in found.facts if f.title.startswith("Judges")).rows[0][2] == "lower"


def test_two_judges_of_one_thing_are_two_columns(tmp_path: Path) -> None:
    cases = [case("none", i, {"profanity": 0.2, "perspective": 0.4, "extra": 1.0}) for i in "ab"]
    found = report(tmp_path, lines([condition("none")], cases, ("toxicity",), ()))
    assert [c.key for c in found.main.columns] == [
        "toxicity perspective", "toxicity profanity", "extra",
    ]  # fmt: skip


def test_references_first_then_equal_doses_together_in_the_order_of_the_methods(
    tmp_path: Path,
) -> None:
    conditions = [
        condition("odesteer@2", "odesteer", angle(0.2)),
        condition("odesteer@1", "odesteer", angle(0.1)),
        condition("T", "caa", {"type": "time", "amount": 5.0}),
        condition("iti@1", "iti", angle(0.1)),
        condition("caa@1", "caa", angle(0.1)),
        condition("random@1", "random", angle(0.1)),
        condition("best", "caa", chosen=True),
        condition("prompt"),
        condition("none"),
    ]
    cases = [case(one["id"], 0, {"truth-tfidf": 1.0}) for one in conditions]
    found = report(tmp_path, lines(conditions, cases))
    assert [line.id for line in found.main.lines] == [
        "none", "prompt", "best", "random@1", "caa@1", "iti@1", "odesteer@1", "odesteer@2", "T",
    ]  # fmt: skip
    assert [len(own) for _, own in headings(found.main.lines)] == [2, 1, 4, 1, 1]


@pytest.mark.parametrize("seeds_of_none", [(0,), (0, 1)])
def test_seeds_are_pooled_and_each_is_paired(tmp_path: Path, seeds_of_none: Any) -> None:
    conditions = [condition(f"none,seed-{s}", "none", seed=s) for s in seeds_of_none]
    conditions += [condition(f"caa@angle-0.1,seed-{s}", "caa", ANGLE, seed=s) for s in (0, 1)]
    cases = [
        case(one["id"], i, {"truth-tfidf": 0.0 if one["method"] == "none" else 1.0})
        for one in conditions
        for i in range(4)
    ]
    found = report(tmp_path, lines(conditions, cases))
    (line,) = (line for line in found.main.lines if line.method == "caa")
    assert line.n == (8, 4)
    cell = line.cells[0]
    assert change(cell)[:1] == (1.0,) and change(cell)[3] == 8
    assert cell is not None and cell.difference is not None
    assert cell.difference.groups == 4 and cell.difference.p == 2 / 16


def test_two_folds_are_one_row(tmp_path: Path) -> None:
    conditions = [condition("none"), condition("caa", dose=ANGLE)]
    cases = [
        case(one["id"], i, {"truth-tfidf": float(one["method"] == "caa")}, fold=i % 2)
        for one in conditions
        for i in range(6)
    ]
    found = report(tmp_path, lines(conditions, cases))
    assert found.main.lines[1].n == (6, 6)


def test_marks_are_corrected_for_the_whole_table() -> None:
    from odesteer.evaluation.statistics import Interval, PairedDifference

    def cell(p: float) -> Cell:
        return Cell(difference=PairedDifference(Interval(-1.0, -2.0, -0.5, 9), 9, p))

    columns = (Column("a", "A", "lower"), Column("b", "B", "higher"), Column("c", "C", None))
    cells_ = (cell(0.01), cell(0.02), cell(0.04))
    table = Table("t", "T", columns, (Line("x", "", "", cells_),)).corrected()
    first, second, third = table.lines[0].cells
    assert first is not None and second is not None and third is not None
    assert [c.adjusted for c in (first, second, third)] == pytest.approx([0.03, 0.04, 0.04])
    assert [effect(c, k) for c, k in zip((first, second, third), columns, strict=True)] == [
        "better", "worse", "changed",
    ]  # fmt: skip
    twice = Table("t", "T", columns, (Line("x", "", "", cells_),) * 2).corrected()
    assert not any(c is not None and c.significant for c in twice.lines[0].cells[1:])
    assert "6 differences" in twice.legend()[1]


def doses(folder: Path, **arguments: Any) -> Report:
    """CAA at one dose with KL 0.1; ODESteer at two doses with KL 0.05 and 0.25."""
    made = {
        "none": (None, 0.0, 0.0),
        "caa": (angle(0.1), 0.3, 0.1),
        "odesteer@1": (angle(0.1), 0.2, 0.05),
        "odesteer@2": (angle(0.2), 0.6, 0.25),
        "random": (angle(0.3), 0.1, 0.4),
    }
    conditions = [condition(n, n.split("@")[0], dose) for n, (dose, _, _) in made.items()]
    cases = [
        case(n, i, {"truth-tfidf": truth, "kl": kl} if n != "none" else {"truth-tfidf": truth})
        for n, (_, truth, kl) in made.items()
        for i in range(12)
    ]
    return report(folder, lines(conditions, cases, ("truth-tfidf",)), **arguments)


def test_methods_are_compared_at_equal_dose(tmp_path: Path) -> None:
    found = doses(tmp_path)
    main, equal_dose = found.tables
    assert [line.label for line in equal_dose.lines] == ["ODESteer − CAA"]
    assert change(equal_dose.lines[0].cells[0])[0] == pytest.approx(-0.1)
    assert main.lines[0].label == "Unsteered"


def test_any_method_may_be_the_one_compared_with(tmp_path: Path) -> None:
    found = doses(tmp_path, against="caa")
    assert [line.label for line in found.tables[1].lines] == ["CAA − ODESteer"]
    with pytest.raises(ValueError, match=r"no method 'cca' .* caa, odesteer"):
        doses(tmp_path, against="cca")


def test_a_barrier_is_measured_on_pairs(tmp_path: Path) -> None:
    barrier = {
        "kind": "barrier", "condition": "caa", "fold": 0, "part": "test",
        "log_odds": [2.0, 1.0, 0.0, 1.0, 3.0, 3.0], "labels": [1, 0, 1, 0, 1, 0],
        "groups": ["a", "a", "b", "b", "c", "c"],
    }  # fmt: skip
    conditions = [condition("none"), condition("caa", dose=ANGLE)]
    cases = [case(one["id"], 0, {"truth-tfidf": 1.0}) for one in conditions]
    found = report(tmp_path, lines(conditions, cases, more=[barrier]))
    table = found.tables[-1]
    assert table.name == "barriers"
    by_key = {c.key: cell for c, cell in zip(table.columns, table.lines[0].cells, strict=True)}
    assert value(by_key["pair_accuracy"]) == 0.5  # right, wrong, tied
    assert "| 0.500 [0.000, 1.000] |" in writers.markdown_table(table)
    assert table.lines[0].n == (6, 3)


def test_an_unfinished_run_is_compared_on_what_both_have(tmp_path: Path) -> None:
    conditions = [condition("none"), condition("caa", dose=ANGLE), condition("later", "iti", ANGLE)]
    cases = [case("none", i, {"truth-tfidf": 0.0}) for i in range(4)]
    cases += [case("caa", i, {"truth-tfidf": 1.0}) for i in range(2)]
    found = report(tmp_path, lines(conditions, cases)[:-1])
    assert [line.id for line in found.main.lines] == ["none", "caa"]
    assert change(found.main.lines[1].cells[0])[3] == 2


def test_conditions_matched_on_validation_data_stand_together_and_are_not_pooled(
    tmp_path: Path,
) -> None:
    conditions = [condition("none")]
    conditions += [
        condition(f"{method}@kl-{kl}", method, label=method, chosen=True)
        for kl in (0.2, 0.1)
        for method in ("odesteer", "caa", "random")
    ]
    cases = [case(one["id"], i, {"truth-tfidf": 0.5}) for one in conditions for i in range(3)]
    found = report(tmp_path, lines(conditions, cases))
    assert [(heading, [line.id for line in own]) for heading, own in headings(found.main.lines)][
        1:
    ] == [
        (f"every method at KL {kl} on validation data",
         [f"random@kl-{kl}", f"caa@kl-{kl}", f"odesteer@kl-{kl}"])
        for kl in (0.1, 0.2)
    ]  # fmt: skip
    assert found.main.lines[1].label == "Random direction"
    # Each is compared with those that were set to the same damage.
    assert len(found.tables[1].lines) == 4
    assert {line.label for line in found.tables[1].lines} == {
        "ODESteer − Random direction", "ODESteer − CAA",
    }  # fmt: skip


def test_two_sets_of_hyperparameters_are_two_methods(tmp_path: Path) -> None:
    conditions = [condition("none")]
    conditions += [condition(f"{name}@1", "odesteer", ANGLE) for name in ("odesteer", "p-half")]
    cases = [case(one["id"], i, {"truth-tfidf": 0.5}) for one in conditions for i in range(3)]
    found = report(tmp_path, lines(conditions, cases))
    assert [line.label for line in found.main.lines] == [
        "Unsteered", "ODESteer (odesteer)", "ODESteer (p-half)",
    ]  # fmt: skip
    assert [line.label for line in found.tables[1].lines] == [
        "ODESteer (odesteer) − ODESteer (p-half)"
    ]


def test_a_run_of_barriers_alone_is_a_report(tmp_path: Path) -> None:
    barrier = {
        "kind": "barrier", "condition": "caa", "fold": 0, "part": "validation", "layer": 14,
        "log_odds": [2.0, -1.0, 1.0, 1.0], "labels": [1, 0, 1, 0],
    }  # fmt: skip
    note = {"kind": "note", "about": "packing", "text": "One answer a row."}
    content = lines([condition("caa")], [], (), (), "ultrafeedback", more=[note, barrier])
    run = read_run(write(tmp_path, content))
    found = build(run)
    assert [table.name for table in found.tables] == ["barriers"]
    assert [drawing.name for drawing in found.figures] == ["calibration"]
    assert found.main.lines[0].setting == "validation, layer 14"
    assert run.notes == ("Invented numbers.", "One answer a row.")
    grouped = {**barrier, "groups": ["a", "a", "b", "b"], "part": "test"}
    way = {"kind": "trajectory", "condition": "caa", "fold": 0,
           "distance": [0.0, 0.1], "log_odds": [[-1.0, 1.0], [0.0, 2.0]]}  # fmt: skip
    content = lines([condition("caa")], [], (), (), "ultrafeedback", more=[grouped, way])
    found = build(read_run(write(tmp_path, content)))
    assert found.sentences[-1].startswith("Held-out pairs: the interval of 0 of 1 barriers is")
    assert "CAA with 0.750 [0.500, 1.000] of 2 pairs" in found.sentences[-1]  # one won, one tied
    assert [drawing.name for drawing in found.figures] == ["flow", "calibration"]


def test_the_summary_says_how_far_a_random_direction_comes(tmp_path: Path) -> None:
    def sentence(names: dict[str, float]) -> str:
        conditions = [condition(name, dose=None if name == "none" else ANGLE) for name in names]
        cases = [
            case(name, i, {"mc2": value + 0.01 * i})
            for name, value in names.items()
            for i in range(6)
        ]
        content = lines(conditions, cases, ("mc2",), ())
        return " ".join(report(tmp_path, content).sentences)

    found = sentence({"none": 0.1, "random": 0.3, "caa": 0.6})
    assert found.startswith("CAA (angle 0.1) improves MC2 most, from ")
    assert "picked after the fact" in found and "A random direction alone" in found
    assert "+0.200" in found
    assert "A random direction" not in sentence({"none": 0.5, "random": 0.3, "caa": 0.6})
    assert "improve" not in sentence({"random": 0.3, "caa": 0.6})  # nothing to compare with
