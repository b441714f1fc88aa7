"""A run is read as it is: torn at its end, yes; damaged, foreign or doubled, no."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.report.synthetic import case, condition, lines, write

from odesteer.evaluation.report import read_run


def small(*more: dict[str, Any]) -> list[dict[str, Any]]:
    conditions = [condition("none"), condition("caa")]
    cases = [case(name, i, {"truth-tfidf": 0.5}) for name in ("none", "caa") for i in range(2)]
    return lines(conditions, cases, more=more)


def test_a_finished_run_is_read_whole(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "one", small()))
    assert run.finished
    assert not run.remarks
    assert run.name == "one"
    assert [len(run.answers[name]) for name in ("none", "caa")] == [2, 2]
    assert run.answers["caa"][1].scores == {"truth-tfidf": 0.5}


def test_its_file_names_the_run_as_well(tmp_path: Path) -> None:
    write(tmp_path, small())
    assert read_run(tmp_path / "results.jsonl") == read_run(tmp_path)


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_left_out_and_said(tmp_path: Path, cut: int) -> None:
    content = small()[:-1]
    write(tmp_path, content)
    file = tmp_path / "results.jsonl"
    file.write_bytes(file.read_bytes().rstrip()[:-cut])
    run = read_run(tmp_path)
    assert not run.finished
    assert len(run.answers["caa"]) == 1
    (remark,) = run.remarks
    assert "not finished" in remark and "cut off" in remark and "3 answers" in remark


def test_a_run_without_its_last_line_is_not_finished(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, small()[:-1]))
    assert not run.finished
    assert "no last line" in run.remarks[0]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, small())
    file = tmp_path / "results.jsonl"
    content = file.read_text().splitlines()
    content[2] = content[2][:-5]
    file.write_text("\n".join(content))
    with pytest.raises(ValueError, match="damaged at line 3"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has not started"),
        ("hello\n", "no result file of odesteer"),
        ('{"kind": "fit"}\n', "first line is of kind 'fit'"),
        ('{"kind": "run", "schema": 2}\n', "update odesteer"),
        ('{"kind": "run", "schema": 1}\n', "damaged at line 1: it has no 'conditions'"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "results.jsonl").write_text(content)
    with pytest.raises(ValueError, match=said) as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_run_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no results\.jsonl .*`odesteer run`"):
        read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no run '.*nowhere'.*`odesteer run`"):
        read_run(tmp_path / "nowhere")


def test_a_run_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no case yet"):
        read_run(write(tmp_path, small()[:1]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"condition": "other"}, "'other' is not in the first line"),
        ({"scores": {"truth-tfidf": "high"}}, "'truth-tfidf' is 'high', neither"),
        ({"scores": {"truth-tfidf": True}}, "neither a number nor null"),
        ({"case": "0"}, "case '0' of 'caa' is there twice"),
    ],
)
def test_a_case_that_cannot_be_is_an_error(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    content = small()
    content[-2] = {**content[-2], **change}
    with pytest.raises(ValueError, match=said):
        read_run(write(tmp_path, content))


def test_lost_cases_are_noticed(tmp_path: Path) -> None:
    content = small()
    del content[2]
    with pytest.raises(ValueError, match="has 3 cases, and its last line says 4"):
        read_run(write(tmp_path, content))


def test_not_a_number_is_no_json(tmp_path: Path) -> None:
    write(tmp_path, small())
    file = tmp_path / "results.jsonl"
    file.write_text(file.read_text().replace("0.5", "NaN", 1))
    with pytest.raises(ValueError, match="not finite"):
        read_run(tmp_path)


def test_what_is_measured_of_a_case_may_stand_beside_its_scores(tmp_path: Path) -> None:
    content = small()
    content[1] = {**content[1], "kl": 0.25, "nll": None}
    scores = read_run(write(tmp_path, content)).answers["none"][0].scores
    assert scores == {"truth-tfidf": 0.5, "kl": 0.25, "nll": None}


def test_lines_of_a_kind_that_is_not_known_are_counted(tmp_path: Path) -> None:
    run = read_run(write(tmp_path, small({"kind": "weather"}, {"kind": "weather"})))
    assert run.remarks == (
        "2 lines of kind 'weather' are not known to this version and not reported.",
    )


def test_the_file_is_what_python_writes(tmp_path: Path) -> None:
    folder = write(tmp_path, small())
    first = json.loads((folder / "results.jsonl").read_text().splitlines()[0])
    assert first["kind"] == "run"
