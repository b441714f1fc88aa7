"""`odesteer fit` and `odesteer behaviours`: a packaged behaviour, and whether fitting it worked."""

import json
from pathlib import Path

import pytest
from tests.helpers import models as tiny
from tests.helpers.command_line import run

import odesteer as ods


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return tiny.saved(folder)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"{a} {b}", "positive": "is good good", "negative": "is bad bad"}
        for a in ("the cat", "a dog", "the bird")
        for b in ("sat", "ran", "flew", "was")
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


CAA = ["--method", "caa", "--layer", "1"]


def test_it_writes_before_and_after_and_says_the_verdict(model, pairs, tmp_path):
    done = run("fit", model, pairs, *CAA, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "unsteered\n" in done.stdout
    assert "Verdict: " in done.stdout
    # A person would see it at once, and so does the command.
    assert "12 of 12 positive texts end with the word 'good'" in done.stderr
    kept = ods.load(tmp_path / "out").receipts["assessment"]
    assert f"Verdict: {kept['verdict']}." in done.stdout
    assert kept["effect"]["n"] == 12


def test_json_has_the_assessment_and_no_check_leaves_it_out(model, pairs, tmp_path):
    settings = [*CAA, "--json", "--out", tmp_path / "out"]
    report = json.loads(run("fit", model, pairs, *settings).stdout)
    assert report["assessment"]["verdict"]
    assert "assessment" not in json.loads(run("fit", model, pairs, *settings, "--no-check").stdout)


def test_an_effect_can_be_required(model, pairs, tmp_path):
    settings = [*CAA, "--angle", "0", "--out", tmp_path / "out"]
    assert run("fit", model, pairs, *settings).exit_code == 0
    done = run("fit", model, pairs, *settings, "--require-effect")
    assert done.exit_code == 1
    assert "nothing happens" in done.stdout
    assert (tmp_path / "out" / "steering_config.json").exists()


def test_a_layer_that_the_model_lacks_is_refused_and_nothing_is_written(model, pairs, tmp_path):
    done = run("fit", model, pairs, "--layer", "4", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "Layer 4 is out of range: this model has 4 decoder blocks" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_behaviour_is_fitted_by_its_name(model, tmp_path):
    settings = ["--no-check", "--out", tmp_path / "out"]
    done = run("fit", model, "--behaviour", "formal", *CAA, *settings)
    assert done.exit_code == 0, done.stderr
    data = ods.load(tmp_path / "out").receipts["data"]
    assert data["sha256"] == ods.behaviours.load("formal").sha256


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Give a contrast file, or --behaviour NAME"),
        (["pairs.jsonl", "--behaviour", "formal"], "not both"),
        (["formal"], "the packaged behaviour is --behaviour formal"),
        (["--behaviour", "formel"], "Did you mean 'formal'?"),
    ],
)
def test_what_to_learn_is_said_once(arguments, words, tmp_path):
    done = run("fit", "smollm2", *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.split())


def test_behaviours_are_listed_with_an_example():
    listed = json.loads(run("behaviours", "--json").stdout)
    assert [row["name"] for row in listed] == list(ods.behaviours.names())
    assert "formal, professional prose" in run("behaviours").stdout
    shown = run("behaviours", "sea").stdout
    assert "odesteer fit smollm2 --behaviour sea --out sea" in shown
    assert len(json.loads(run("behaviours", "sea", "--json").stdout)["pairs"]) == 64


def test_where_no_dose_was_asked_for_the_text_chooses_it(model, pairs, tmp_path):
    done = run("fit", model, pairs, "--layer", "1", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    kept = ods.load(tmp_path / "out").receipts
    first = kept.get("kl", {}).get("asked") == 0.6
    written = kept["assessment"]
    assert first or written["perplexity_ratio"] <= 1.5 or written["verdict"] != "works"
    assert kept["tokens"] == "response"
    asked = ["--kl", "medium", "--json", "--out", tmp_path / "asked"]
    report = json.loads(run("fit", model, pairs, "--layer", "1", *asked).stdout)
    assert report["kl"]["asked"] == 0.3


def test_a_target_may_have_a_coverage_and_few_rows_are_refused_in_one_line(model, pairs, tmp_path):
    target = [*CAA, "--angle", "0.5", "--target", "0.6", "--no-check", "--out", tmp_path / "out"]
    done = run("fit", model, pairs, *target, "--coverage", "0.9")
    assert done.exit_code == 0, done.stderr
    dose = ods.load(tmp_path / "out").dose
    assert dose == ods.Target(0.6, ods.Angle(0.5), coverage=0.9)
    done = run("fit", model, pairs, *target, "--coverage", "0.95")
    assert done.exit_code == 2
    assert "takes at least 19 held-out rows of each class" in " ".join(done.stderr.split())
    done = run("fit", model, pairs, *CAA, "--coverage", "0.9", "--out", tmp_path / "out")
    assert "--coverage is of a target" in done.stderr
