"""`odesteer pairs` writes a file that `odesteer fit` reads, and says in one line why it cannot."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import models as tiny
from tests.helpers.command_line import run
from tests.helpers.scripted_server import serving


def fails_with(result: Any, *words: str) -> None:
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Loading ")]
    assert result.exit_code == 2 and len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]


def answer(body: Any) -> Any:
    if not body:
        return 200, {"data": [{"id": "first"}]}
    question, instruction = body["messages"][-1]["content"].split("\n\n")
    text = f"Aye, {question}" if "captain" in instruction else f"Well, {question}"
    return 200, {"choices": [{"message": {"content": text}}]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return tiny.saved(folder)


def test_a_server_writes_what_fit_reads(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "new" / "sea.jsonl"
    with serving(answer) as server:
        command = ["pairs", "speaks like a captain", "--with", f"{server.address}/v1", "--n", 12]
        shown = run(*command, "--out", file)
        assert shown.exit_code == 0, shown.stderr
        assert "12 pairs by first" in shown.stdout and "Aye, " in shown.stdout
        assert "begin with the word 'aye'" in shown.stderr
        facts = json.loads(run(*command, "--out", file, "--json").stdout)
    assert facts["pairs"] == 12 == len(file.read_text().splitlines()) and facts["rejected"] == {}
    fit = ["fit", model, file, "--method", "caa", "--layer", 1, "--no-check"]
    fitted = run(*fit, "--out", tmp_path / "steering")
    assert fitted.exit_code == 0, fitted.stderr


def test_a_model_of_this_machine_writes_the_same_twice(tmp_path: Path, model: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for file in files:
        more = ["--n", 2, "--max-new-tokens", 6, "--length-ratio", 99, "--out", file]
        result = run("pairs", "is good", "--with", model, *more)
        assert result.exit_code == 0, result.stderr
    assert files[0].read_text() == files[1].read_text()


def test_bad_input_is_said_in_one_line(tmp_path: Path, model: Path) -> None:
    out = ["--out", tmp_path / "p.jsonl"]
    fails_with(run("pairs", "--with", model, *out), "Give a description such as")
    trait = tmp_path / "t.json"
    trait.write_text("{}")
    fails_with(run("pairs", "a", "--from", trait, "--with", model, *out), "not both")
    fails_with(run("pairs", "--from", trait, "--with", model, *out), "is no trait file")
    fails_with(run("pairs", "a", "--with", model, "--model", "m", *out), "is no address")
    fails_with(run("pairs", "a", "--with", "ftp://x", *out), "Could not load the model 'ftp://x'")
    (tmp_path / "p.jsonl").write_text("mine\n")
    fails_with(run("pairs", "a", "--with", model, *out), "holds other texts")
    base = tmp_path / "base"
    tiny.model().save_pretrained(base)
    tiny.tokenizer().save_pretrained(base)
    out = ["--out", tmp_path / "q.jsonl"]
    fails_with(run("pairs", "a", "--with", base, *out), "has no chat template", "--template")
    with serving(lambda body: (401, {"error": {"message": "no key"}})) as server:
        address = f"{server.address}/v1"
        fails_with(run("pairs", "a", "--with", address, *out), "status 401 (no key)", "OPENAI_API")
    assert not (tmp_path / "q.jsonl").exists()


def test_ctrl_c_says_where_the_answers_are(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("odesteer.data.pairs.writers.generate", stop)
    result = run("pairs", "is good", "--with", model, "--out", tmp_path / "p.jsonl")
    assert result.exit_code == 130
    assert "p.jsonl.answers" in result.stderr and "goes on from there" in result.stderr


def test_a_format_is_named_or_recognised(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "bipo.csv"
    rows = "".join(f'Is the {w} good?,"the {w} is good","the {w} was bad"\n' for w in tiny.WORDS)
    file.write_text(f"question,matching,not_matching\n{rows}")
    fit = ["fit", model, file, "--method", "caa", "--layer", 1, "--no-check"]
    fit += ["--out", tmp_path / "steering"]
    for more in ([], ["--format", "bipo"]):
        result = run(*fit, *more)
        assert result.exit_code == 0, result.stderr
    fails_with(run(*fit, "--format", "axbench"), "the format 'axbench' has input, output")
    fails_with(run(*fit, "--format", "bippo"), "Did you mean 'bipo'")
