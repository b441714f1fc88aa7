"""Every method steers the real 135M model, from the command line and through the engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.quick_methods import quick
from typer.testing import CliRunner

import odesteer as ods
from odesteer.cli.app import app
from odesteer.evaluation.demo import contrast_rows
from odesteer.models.loading import SMOLLM2, load_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pairs of bright and melancholy answers to short prompts."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    keys = ("prompt", "positive", "negative", "topic")
    lines = [json.dumps({key: row[key] for key in keys}) for row in contrast_rows()[::32]]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    return load_model(SMOLLM2)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the activations of the pairs are kept, for all methods."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[ods.Steering]:
    """What the command fits."""
    fits: list[ods.Steering] = []
    fit = ods.fit

    def recorded(*arguments: Any, **settings: Any) -> ods.Steering:
        fits.append(fit(*arguments, **settings))
        return fits[-1]

    monkeypatch.setattr(ods, "fit", recorded)
    return fits


@pytest.mark.parametrize("name", ods.METHODS)
def test_every_method_generates_from_the_command_line_and_leaves_no_trace(
    name: str,
    pairs: Path,
    smollm2: tuple[Any, Any],
    kept: Path,
    fits: list[ods.Steering],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The model and its activations are read once for all methods: that is not what is tested.
    monkeypatch.setattr("odesteer.models.loading.load_model", lambda *_: smollm2)
    monkeypatch.setitem(ods.METHODS, name, quick(name))
    monkeypatch.setenv("ODESTEER_CACHE", str(kept))
    arguments = ["generate", "smollm2", "How was your day?", "--method", name]
    layer = "auto" if name == "iti-heads" else "14"
    more = ["-c", str(pairs), "--layer", layer, "--max-new-tokens", "3", "--compare", "--json"]
    more.append("--cache")
    result = CliRunner().invoke(app, arguments + more)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)
    assert row["generation"]
    assert row["unsteered"]
    if name == "none":
        assert row["generation"] == row["unsteered"]
    (steering,) = fits
    moves_tokens_and_leaves_no_trace(steering, *smollm2)


def moves_tokens_and_leaves_no_trace(steering: ods.Steering, model: Any, tokenizer: Any) -> None:
    """Both ways; while nothing moves, and once the steering is off, logits keep every bit."""
    ids = tokenizer("The garden after the rain was", return_tensors="pt").input_ids
    changed = []
    with torch.no_grad():
        before = model(ids).logits
        # A gate that is closed one way is open the other.
        for direction in (steering, ~steering):
            with direction.attach(model, positions="all", measure=True) as handle:
                during = model(ids).logits
            assert bool(torch.isfinite(during).all())
            assert torch.equal(during, before) == (handle.stats()["moved"] == 0)
            changed.append(not torch.equal(during, before))
        assert torch.equal(model(ids).logits, before)
    assert any(changed) == (steering.method != "none")
