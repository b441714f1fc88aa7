"""Bad input on the command line: one line that says what to do, exit code 2, nothing written."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.helpers.command_line import run
from typer.testing import Result

import odesteer as ods
from odesteer.cli import console

PAIR = {"prompt": "How are you?", "positive": "Very well.", "negative": "Not well."}


def run_process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with all that a process writes to stderr."""
    return subprocess.run(
        [sys.executable, "-m", "odesteer", *map(str, arguments)],
        capture_output=True,
        text=True,
        # No Hub in tests: a name that is not local must fail at once and in words.
        env={**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        timeout=120,
    )


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(PAIR) for _ in range(3)))
    return path


@pytest.fixture
def steering(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(20, 6, generator=generator) for _ in range(2))
    return ods.CAA().fit(positive + 2, negative, layer=1).save_pretrained(tmp_path / "steering")


def fails_with(result: Result | subprocess.CompletedProcess[str], *words: str) -> None:
    code = result.exit_code if isinstance(result, Result) else result.returncode
    lines = [line for line in result.stderr.splitlines() if not line.startswith("Loading ")]
    assert code == 2, result.stderr
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_an_unknown_method_is_answered_with_the_nearest_one(pairs: Path, tmp_path: Path) -> None:
    result = run("fit", "smollm2", pairs, "--method", "cca", "--out", tmp_path / "out")
    fails_with(result, "Unknown method 'cca'", "Did you mean 'caa'?", "odesteer-paper")
    assert not (tmp_path / "out").exists()


def test_a_missing_contrast_file_is_named(tmp_path: Path) -> None:
    result = run("fit", "smollm2", tmp_path / "none.jsonl", "--out", tmp_path / "out")
    fails_with(result, "none.jsonl", "JSONL")
    assert not (tmp_path / "out").exists()


def test_a_contrast_with_one_class_says_which_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"text": "Fine.", "label": 1}))
    fails_with(
        run("fit", "smollm2", path, "--out", tmp_path / "out"), "1 positive texts and no neg"
    )
    assert not (tmp_path / "out").exists()


def test_a_line_that_is_not_json_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps(PAIR) + "\n\n{oops\n")
    fails_with(run("fit", "smollm2", path, "--out", tmp_path / "out"), "Line 3", "JSON")


def test_a_layer_that_is_no_number_is_refused_before_the_model_loads(
    pairs: Path, tmp_path: Path
) -> None:
    result = run("fit", "no/model", pairs, "--layer", "middle", "--out", tmp_path / "out")
    fails_with(result, "--layer", "'middle'")


def test_a_model_that_cannot_be_reached_says_what_works_offline(
    pairs: Path, tmp_path: Path
) -> None:
    result = run_process("fit", "nobody/nothing", pairs, "--out", tmp_path / "out")
    fails_with(result, "Could not load the model 'nobody/nothing'", "smollm2", "offline")
    assert not (tmp_path / "out").exists()


def test_a_directory_without_a_steering_is_named(tmp_path: Path) -> None:
    fails_with(run("inspect", tmp_path), str(tmp_path), "steering_config.json")


def test_a_damaged_steering_is_refused(steering: Path) -> None:
    payload = bytearray((steering / "steering.safetensors").read_bytes())
    payload[-1] ^= 1
    (steering / "steering.safetensors").write_bytes(payload)
    fails_with(run("inspect", steering), "checksum")


def test_two_doses_at_once_are_refused(steering: Path) -> None:
    result = run("generate", "smollm2", "Hi", "-s", steering, "--strength", "1", "--angle", "0.1")
    fails_with(result, "--strength", "--angle", "one of them")


def test_a_target_without_a_budget_says_how_to_give_one(steering: Path) -> None:
    result = run("generate", "smollm2", "Hi", "-s", steering, "--target", "0.9")
    fails_with(result, "budget", "--angle")


def test_unknown_positions_are_refused_before_the_model_loads(steering: Path) -> None:
    result = run("generate", "no/model", "Hi", "-s", steering, "--positions", "promt[:4]")
    fails_with(result, "positions='promt[:4]'", "did you mean 'prompt'?", "last+generated")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "cca"], ["Unknown method 'cca'", "Did you mean 'caa'?"]),
        (["--layers", "10,middle"], ["--layers", "10,13, or auto", "'10,middle'"]),
        (["--angles", "small"], ["--angles", "0.1,0.2", "'small'"]),
        (["--target-probability", "90"], ["between 0 and 1", "90", "target effect"]),
        (
            ["--target-probability", "0.9", "--target-effect", "2"],
            ["0.9", "2", "give one of them"],
        ),
        (["--max-kl", "-1"], ["max KL of at least 0", "-1"]),
        (["--max-perplexity-ratio", "0.5"], ["perplexity ratio of at least 1", "0.5"]),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_the_model_loads(
    pairs: Path, tmp_path: Path, options: list[str], words: list[str]
) -> None:
    result = run("tune", "no/model", pairs, "--out", tmp_path / "out", *options)
    fails_with(result, *words)
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_is_a_usage_error() -> None:
    result = run("fit", "--nonsense")
    assert result.exit_code == 2
    assert "No such option: --nonsense" in result.stderr and "Traceback" not in result.stderr


def test_a_method_that_does_not_exist_is_not_explained() -> None:
    fails_with(run("methods", "odestear"), "Unknown method 'odestear'", "Did you mean 'odesteer'?")


def test_inspect_prints_json_for_scripts(steering: Path, tmp_path: Path) -> None:
    result = run("inspect", steering, "--json")
    facts = json.loads(result.stdout)
    assert (result.exit_code, facts["method"], facts["layer"]) == (0, "caa", 1)
    part = ods.load(steering).only
    slope = part.calibration.scale * float(part.barrier.weight.norm())
    assert facts["certificate"]["lipschitz"] == pytest.approx(slope)
    assert facts["highest coverage"] == round(part.coverage.toward.share[-1], 4)
    assert "log-odds change by at most" in run("inspect", steering).stdout
    nothing = ods.RandomDirection().fit(torch.zeros(2, 4), torch.ones(2, 4), layer=0)
    facts = json.loads(run("inspect", nothing.save_pretrained(tmp_path), "--json").stdout)
    assert not facts["certificate"]["radius"] and facts["highest coverage"] is None
    assert "has no barrier" in facts["certificate"]["reason"]


def test_inspect_shows_what_it_can_of_receipts_that_anybody_may_have_written(
    steering: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "odd"
    ods.load(steering).save_pretrained(odd)
    config = json.loads((odd / "steering_config.json").read_text())
    config["receipts"] = {"held_out": "x", "layers": {"a": 1}}
    (odd / "steering_config.json").write_text(json.dumps(config))
    result = run("inspect", odd)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "damaged" in result.stdout


def test_help_is_quick_because_it_imports_no_torch() -> None:
    code = "import sys, odesteer.cli.app; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


def test_the_help_of_fit_lists_every_method() -> None:
    shown = run("fit", "--help").stdout
    assert all(f"{name}" in shown for name in ods.METHODS)


def test_generate_needs_a_steering_or_a_method_and_not_both(steering: Path) -> None:
    fails_with(run("generate", "no/model", "Hi"), "--steering DIR", "--method caa")
    both = run("generate", "no/model", "Hi", "-s", steering, "-m", "caa")
    fails_with(both, "--steering DIR", "not both")
    contrast = run("generate", "no/model", "Hi", "-s", steering, "-c", steering)
    fails_with(contrast, "--contrast is for --method")


def test_a_method_that_there_is_not_is_refused_before_the_model_loads() -> None:
    fails_with(run("generate", "no/model", "Hi", "-m", "mimik"), "Unknown method 'mimik'", "mimic")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--layer", "ten"), ("--layer is a block index", "'ten'")),
        (("--layer", "10,"), ("--layer is a block index", "'10,'")),
        (("--layer", "14", "--spread"), ("--spread is for several layers", "14")),
    ],
)
def test_layers_that_make_no_sense_are_refused_before_the_model_loads(
    options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    fails_with(run("generate", "no/model", "Hi", "-m", "caa", *options), *words)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_of_another_encoding_shows_question_marks(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding=encoding))
    console.any_encoding()
    console.out.print(f"{console.bar(0.5)} \u4f60\u597d", soft_wrap=True)
    sys.stdout.flush()
    assert shown.getvalue().decode(encoding).endswith(" ??\n")
