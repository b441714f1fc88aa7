"""`odesteer score` ranks texts, writes them, and says how good the ranking is where it can."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import models as tiny
from typer.testing import CliRunner

import odesteer as ods
from odesteer.cli.app import app

SUBJECTS = ["the cat", "a dog", "the bird", "the moon", "a tree", "the mat"]
ROWS = [
    {"text": f"{who} is {how}", "label": label, "topic": who}
    for who in SUBJECTS
    for how, label in (("good", 1), ("bad", 0))
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return tiny.saved(folder, chat=False)


@pytest.fixture(scope="module")
def steering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fitted = ods.fit(tiny.model(), tiny.tokenizer(), ods.Contrast.from_rows(ROWS), layer=1)
    return fitted.save_pretrained(tmp_path_factory.mktemp("steering") / "good")


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def score(model: Path, file: Path, steering: Path, *more: object) -> Any:
    arguments = ["score", model, file, "--steering", steering, "--no-cache", *more]
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "120"})


def test_it_ranks_texts_that_have_no_labels(model: Path, steering: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in ROWS])
    done = score(model, file, steering, "--show", "3")
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["rank", "row", "log-odds", "P(positive)", "label", "text"]
    assert "is good" in lines[1] and "▕███████░▏" in lines[1]
    assert lines[4].split() == ["…"] and "is bad" in lines[7]
    assert lines[8].startswith("12 texts: 6 with P(positive) above 0.5; log-odds -")
    assert "takes P past 0.5" in lines[9] and "--out FILE" in lines[-1]
    whole = score(model, file, steering, "--show", "6").stdout.splitlines()
    assert len(whole) == 15 and "…" not in whole[7]


def test_long_texts_leave_the_numbers_their_room(
    model: Path, steering: Path, tmp_path: Path
) -> None:
    file = written(tmp_path / "texts.jsonl", [{"text": "the cat is good " * 40}])
    header, line = score(model, file, steering).stdout.splitlines()
    assert "log-odds" in header and "…" in line and len(line) <= 120


def test_labels_give_quality_and_a_threshold(model: Path, steering: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "texts.jsonl", ROWS)
    result = score(model, file, steering, "--false-positives", "0.2", "--json")
    report = json.loads(result.stdout)
    assert report["quality"]["auc"]["mean"] == 1.0
    assert (report["quality"]["positive"], report["quality"]["groups"]) == (6, 6)
    assert report["threshold"]["recall"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 6}
    assert report["threshold"]["false_positives"]["mean"] == pytest.approx(1 / 6)
    assert [row["rank"] for row in report["texts"]] == list(range(1, 13))
    assert report["fitted_on"] and "fitted on" in result.stderr
    shown = " ".join(score(model, file, steering, "--false-positives", "0.2").stdout.split())
    assert "AUC 1.000 [1.000, 1.000]" in shown and "n = 6 positive + 6 negative" in shown
    assert "recall 1.000" in shown and "check it on others" in shown


def test_each_text_has_the_radius_within_which_its_side_is_certain(
    model: Path, steering: Path, tmp_path: Path
) -> None:
    file = written(tmp_path / "texts.jsonl", ROWS)
    report = json.loads(score(model, file, steering, "--json").stdout)
    assert report["certificate"] == {"probability": 0.5, "reason": None}
    texts = [row["text"] for row in report["texts"]]
    scores = ods.score(tiny.model(), tiny.tokenizer(), ods.load(steering), texts)
    assert scores.radius is not None and (scores.radius > 0).all()
    assert [row["radius"] for row in report["texts"]] == pytest.approx(scores.radius, rel=1e-3)


def test_a_barrier_without_a_bound_has_no_radius_and_the_reason(
    model: Path, tmp_path: Path
) -> None:
    contrast = ods.Contrast.from_rows(ROWS)
    sketch = ods.fit(tiny.model(), tiny.tokenizer(), contrast, method="odesteer-paper", layer=1)
    file = written(tmp_path / "texts.jsonl", ROWS)
    saved = sketch.save_pretrained(tmp_path / "sketch")
    report = json.loads(score(model, file, saved, "--json").stdout)
    assert all(row["radius"] is None for row in report["texts"])
    assert "No Lipschitz bound of a SketchBarrier" in report["certificate"]["reason"]
    assert "No certified radius" in score(model, file, saved).stdout


def test_away_turns_scores_and_labels_around(model: Path, steering: Path, tmp_path: Path) -> None:
    file = written(tmp_path / "texts.jsonl", ROWS)
    report = json.loads(score(model, file, steering, "--away", "--json").stdout)
    assert "bad" in report["texts"][0]["text"] and report["texts"][0]["label"] == 1
    assert report["quality"]["auc"]["mean"] == 1.0


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_every_text_is_written(model: Path, steering: Path, tmp_path: Path, kind: str) -> None:
    pair = {"prompt": "the cat", "positive": "is good, on the mat", "negative": "is bad"}
    out = tmp_path / "new" / f"ranked.{kind}"
    done = score(model, written(tmp_path / "p.jsonl", [pair] * 2), steering, "--out", out)
    assert done.exit_code == 0, done.stderr
    text = out.read_text(encoding="utf-8")
    rows = [*csv.DictReader(text.splitlines())] if kind == "csv" else json_lines(text)
    assert [str(row["label"]) for row in rows] == ["1", "1", "0", "0"]
    assert rows[0]["text"] == "is good, on the mat" and rows[0]["prompt"] == "the cat"
    assert float(rows[0]["probability"]) > float(rows[3]["probability"])


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        (ROWS, ["--out", "ranked.txt"], ".csv or .jsonl"),
        (ROWS, ["--false-positives", "5"], "between 0 and 1"),
        (ROWS, ["--false-positives", "0.05"], "20 negatives or more; got 6"),
        ([{"text": "good"}], ["--false-positives", "0.5"], "texts of both classes"),
        ([{"text": "good", "label": 0.5}], [], "'text' and 'label' 0 or 1"),
        (ROWS, ["--layer", "2"], "of layer 1, not 2"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(
    model: Path,
    steering: Path,
    tmp_path: Path,
    rows: list[dict[str, Any]],
    more: list[str],
    said: str,
) -> None:
    refused = score(model, written(tmp_path / "texts.jsonl", rows), steering, *more)
    assert refused.exit_code == 2
    assert refused.stdout == "" and said in " ".join(refused.stderr.split()), refused.stderr
