"""Steerings saved by version 0.1.0 (commit 891263e) are read, act alike and are saved alike."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from odesteer import Steering
from odesteer.steering.serialization import CONFIG, TENSORS

SAVED = Path(__file__).parents[1] / "saved_0_1_0"
NAMES = ("caa", "composed", "mimic", "odesteer", "two-layers")
ONE_LAYER = tuple(name for name in NAMES if name != "two-layers")


@pytest.fixture(scope="module")
def expected():
    return load_file(SAVED / "expected.safetensors")


def test_every_saved_directory_is_tested():
    assert {path.name for path in SAVED.iterdir() if path.is_dir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_saving_again_writes_the_same_bytes(name, tmp_path):
    Steering.from_pretrained(SAVED / name).save_pretrained(tmp_path)
    for file in (CONFIG, TENSORS):
        assert (tmp_path / file).read_bytes() == (SAVED / name / file).read_bytes()


@pytest.mark.parametrize("name", ONE_LAYER)
def test_activations_and_log_odds_are_those_of_0_1_0(name, expected):
    steering = Steering.from_pretrained(SAVED / name)
    # Sums are rounded in another order on other processors.
    torch.testing.assert_close(steering(expected["rows"]), expected[name], rtol=1e-6, atol=1e-6)
    log_odds = expected.get(f"{name}.log_odds")
    assert (log_odds is None) == (steering.field.barrier is None)
    if log_odds is not None:
        torch.testing.assert_close(
            steering.log_odds(expected["rows"]), log_odds, rtol=1e-6, atol=1e-6
        )


def test_every_layer_acts_as_in_0_1_0(expected):
    parts = Steering.from_pretrained(SAVED / "two-layers").parts
    assert [f"two-layers.{i}" in expected for i in range(len(parts) + 1)] == [True, True, False]
    for i, part in enumerate(parts):
        torch.testing.assert_close(
            part(expected["rows"]), expected[f"two-layers.{i}"], rtol=1e-6, atol=1e-6
        )
