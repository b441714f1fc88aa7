"""The scripts that measure on a GPU run on a CPU and measure what they say."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from perf import decode_gpu, steer_gpu


def test_every_way_of_one_steering_operation_runs_and_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def at_once(runs: Sequence[Any]) -> Any:
        return lambda: [run() for run in runs]

    def counted(functions: dict[str, Any], repetitions: int) -> dict[str, list[float]]:
        for run, _ in functions.values():
            run()
        return {name: [2.0] * repetitions for name in functions}

    monkeypatch.setattr(steer_gpu, "DEVICE", "cpu")
    monkeypatch.setattr(steer_gpu, "copies_of", lambda size: 2)
    monkeypatch.setattr(steer_gpu, "as_graph", at_once)
    monkeypatch.setattr(steer_gpu, "by_turns", counted)
    steerings = [steer_gpu.steering_of(256, 128) for _ in range(2)]
    result = steer_gpu.measure(steerings, 256, "whitened", 3, "bfloat16", 1e12, 2)
    assert result["error"] < 1e-5
    assert result["bound"] == pytest.approx((4 * 256 * 256 + 2 * 2 * 3 * 256) / 1e6)
    assert "| 256 | 3 | bfloat16 | whitened |" in steer_gpu.text_of({"gpu": "none"}, [result])


def test_the_decoding_script_runs_on_a_small_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--tiny", "--tokens", "3", "--repetitions", "1", "--batches", "2"]
    monkeypatch.setattr("sys.argv", ["decode_gpu.py", *arguments, "--out", str(tmp_path)])
    decode_gpu.main()
    results = json.loads((tmp_path / "decode_gpu.json").read_text())["results"]
    assert [result["cache"] for result in results] == ["dynamic", "static"]
    for result in results:
        assert set(result["speeds"]) == {"unsteered", "caa", "odesteer"}


def test_twins_share_their_weights_and_only_one_is_steered() -> None:
    model = decode_gpu.model_of(decode_gpu.TINY, "cpu")
    twin = decode_gpu.twin_of(model)
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    assert all(one is other for one, other in pairs) and twin is not model
    tokens = torch.tensor([[5, 6, 7]])
    before = model(tokens).logits
    for name, steering in decode_gpu.steerings_of(96, 1).items():
        if steering is not None:
            with steering.attach(twin):
                assert not torch.equal(twin(tokens).logits, before), name
                assert torch.equal(model(tokens).logits, before)
