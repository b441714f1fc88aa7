"""A run that is killed, shared or repeated gives the same file to the byte."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.experiment.conftest import start, units
from typer.testing import CliRunner

import odesteer as ods
from odesteer.cli.app import app
from odesteer.evaluation.experiment.config import read
from odesteer.evaluation.experiment.run import run

GENERATIONS = """
model = "{model}"
layers = [1]
doses = [0.3, "choose"]
methods = ["none", "prompt", "caa"]
samples = 2
batch = 5
folds = 1
benchmark = "sentiment"
[sampling]
max_new_tokens = 4
temperature = 1.0
[limits]
test = 2
[choose]
doses = [0.1, 0.2]
max_kl = 5.0
metric = "vader"
"""


_ONCE: dict[Path, Path] = {}


@pytest.fixture
def once(file: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a process that nothing disturbs, computed for the first test that asks."""
    if model not in _ONCE:
        _ONCE[model] = run(read(file), tmp_path_factory.mktemp("once")).results
    return _ONCE[model]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_results_say_everything_once_and_in_order(once: Path) -> None:
    found = lines(once)
    assert (found[0]["kind"], found[-1]["kind"]) == ("run", "end")
    names = [one["id"] for one in found[0]["conditions"]]
    assert names == [
        "none",
        "prompt",
        *(
            f"{method}@{dose},layer-{layer}"
            for method in ("random", "caa", "repe")
            for layer in (1, 2)
            for dose in ("angle-0.2", "kl-0.05")
        ),
    ]
    cases = [line for line in found if line["kind"] == "case"]
    assert (
        len({(c["condition"], c["fold"], c["case"]) for c in cases})
        == len(cases)
        == 12 * len(names)
    )
    assert found[-1] == {"kind": "end", "cases": len(cases), "unscored": {}}
    for fold, parts in enumerate(found[0]["folds"]):
        assert {c["case"] for c in cases if c["fold"] == fold} == set(parts["test"])
    for case in cases:
        assert set(case["scores"]) == {"mc1", "mc2", "mc3", "kl", "displacement"}
        assert (case["scores"]["kl"] == 0) == (case["condition"] == "none")
    at = [c["scores"]["displacement"] for c in cases if "@angle-0.2" in c["condition"]]
    assert at == pytest.approx([0.2] * len(at), rel=1e-4)
    choices = [line for line in found if line["kind"] == "choice"]
    assert len(choices) == 12
    for choice in choices:
        [trial] = choice["trials"]
        assert trial["damage"] == pytest.approx(0.05, rel=0.05)
        assert choice["rule"].startswith("mean KL to the unsteered next token 0.05 on ")
    assert all(line["seconds"] is None for line in found if line["kind"] == "fit")
    barriers = [line for line in found if line["kind"] == "barrier"]
    assert {(b["condition"].split("@")[0], b["fold"]) for b in barriers} == {
        (name, fold) for name in ("caa", "repe") for fold in (0, 1)
    }
    assert all(len(b["log_odds"]) == len(b["labels"]) == len(b["groups"]) for b in barriers)
    for line in (line for line in found if line["kind"] == "trajectory"):
        [barrier] = [
            b for b in barriers if (b["condition"], b["fold"]) == (line["condition"], line["fold"])
        ]
        negatives = [
            h for h, y in zip(barrier["log_odds"], barrier["labels"], strict=True) if not y
        ]
        assert line["log_odds"][0] == pytest.approx(negatives[:100], abs=1e-4)  # where they start
        assert line["distance"][0] == 0 and len(line["distance"]) == len(line["log_odds"]) == 11
        assert line["distance"][-1] == pytest.approx(0.2, rel=1e-3)
        means = [sum(h) / len(h) for h in line["log_odds"]]
        assert means == sorted(means)
    assert ods.load(once.parent / "steerings" / "fold-0" / "caa-layer-1").method == "caa"


def test_generations_are_judged_and_drawn_from_seeds_of_their_own(
    file: Path, tmp_path: Path, model: Path
) -> None:
    pytest.importorskip("vaderSentiment")
    file.write_text(GENERATIONS.format(model=model), encoding="utf-8")
    found = lines(run(read(file), tmp_path / "run").results)
    cases = [line for line in found if line["kind"] == "case"]
    assert {line["sample"] for line in cases} == {0, 1}
    per_condition: dict[str, list[Any]] = {}
    for line in cases:
        per_condition.setdefault(line["condition"], []).append(line)
    assert list(per_condition) == ["none", "prompt", "caa@angle-0.3", "caa@chosen"]
    assert len({len(some) for some in per_condition.values()}) == 1
    for line in per_condition["none"]:
        if line["generation"]:
            assert line["scores"]["kl"] == 0 and line["scores"]["perplexity"] > 0
            assert line["scores"]["perplexity"] == line["scores"]["nll"]
        else:
            assert line["scores"]["vader"] is None and "vader" in line["reasons"]
    texts = {name: [line["generation"] for line in some] for name, some in per_condition.items()}
    assert texts["none"] != texts["caa@angle-0.3"]
    ones = [
        text
        for text, line in zip(texts["none"], per_condition["none"], strict=True)
        if line["sample"]
    ]
    others = [
        text
        for text, line in zip(texts["none"], per_condition["none"], strict=True)
        if not line["sample"]
    ]
    assert ones != others
    [choice] = [line for line in found if line["kind"] == "choice"]
    assert len(choice["trials"]) == 2 and all(t["damage"] < 5 for t in choice["trials"])
    best = min(choice["trials"], key=lambda trial: -trial["effect"])
    assert choice["dose"] == best["dose"]


def test_killed_again_and_again_it_ends_with_the_same_file(
    once: Path, file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    kills = 0
    for more in (1, 9, 4):
        process, aim = start(file, folder), units(folder) + more
        while process.poll() is None and units(folder) < aim:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 3
    # What a writer that was killed leaves: half a line.
    with (folder / "results.jsonl").open("ab") as results:
        results.write(b'{"kind": "case", "condi')
    before = units(folder)
    assert 0 < before
    outcome = run(read(file), folder)
    assert outcome.computed == units(folder) - before  # nothing was computed twice
    assert outcome.results.read_bytes() == once.read_bytes()
    assert run(read(file), folder).computed == 0


def test_two_processes_share_a_run(once: Path, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    pair = [start(file, folder), start(file, folder)]
    assert [process.wait(timeout=120) for process in pair] == [0, 0]
    assert (folder / "results.jsonl").read_bytes() == once.read_bytes()
    assert not list((folder / "claims").iterdir())


def test_a_target_is_matched_by_its_probability(file: Path, tmp_path: Path) -> None:
    method = "{name='caa', id='stops', within=0.5}"
    few = [f"methods=['none', {method}]", "doses=[]", "layers=[1]", "folds=1", "barrier=false"]
    found = lines(run(read(file, [*few, "matched={kl=[0.002]}"]), tmp_path / "run").results)
    [choice] = [line for line in found if line["kind"] == "choice"]
    assert choice["dose"]["type"] == "target"
    assert choice["dose"]["budget"] == {"type": "angle", "amount": 0.5}
    assert choice["trials"][0]["damage"] == pytest.approx(0.002, rel=0.05)
    with pytest.raises(ValueError, match=r"within.*more than 0"):
        read(file, ["methods=[{name='caa', within=-1.0}]"])


def test_another_experiment_is_refused_with_what_differs(file: Path, tmp_path: Path) -> None:
    short = ["methods=['none']", "barrier=false"]
    run(read(file, short), tmp_path / "run")
    with pytest.raises(
        ValueError, match=r"differs in batch \(there 1, here 2\)\. Choose another --out"
    ):
        run(read(file, [*short, "batch=2"]), tmp_path / "run")


def test_the_commands_answers(file: Path, tmp_path: Path) -> None:
    def odesteer(*arguments: object) -> Any:
        return CliRunner().invoke(
            app, ["run", str(file), *map(str, arguments)], env={"COLUMNS": "200"}
        )

    dry = odesteer("--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert "14: none, prompt, random@angle-0.2,layer-1" in dry.stdout
    assert "1 check, 2 read, 12 fit, 12 choice, 2 barrier, 12 cases" in dry.stdout
    assert not (tmp_path / "run").exists()
    arguments = ["--set", "methods=['none']", "--set", "barrier=false", "--out", tmp_path / "run"]
    done = odesteer(*arguments)
    assert (done.exit_code, done.stdout) == (0, f"Wrote {tmp_path / 'run' / 'results.jsonl'}\n")
    assert "(it was complete)" in odesteer(*arguments).stdout
    wrong = odesteer("--set", "method=['none']")
    assert wrong.exit_code == 2
    assert "Did you mean 'methods'" in wrong.stderr


def test_stopped_by_hand_it_says_how_to_go_on(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("odesteer.evaluation.experiment.run.Worker.lines", stop)
    stopped = CliRunner().invoke(app, ["run", str(file), "--out", str(tmp_path / "run")])
    assert stopped.exit_code == 130
    assert "the same command goes on from there" in " ".join(stopped.stderr.split())
    assert not list((tmp_path / "run" / "claims").iterdir())
