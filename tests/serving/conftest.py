"""What do tests of a served model share: the steerings, and what transformers makes of them?

They run in an environment of their own, with vLLM in it: `make test-serving`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.serving.served import COMPOSED, language_model, steered

import odesteer as ods
from odesteer.demo import contrast
from odesteer.layered import load
from odesteer.models import local_copy

LAYER = 14


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All that is here needs vLLM."""
    for item in items:
        if "serving" in Path(str(item.fspath)).parts:
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session")
def model_path() -> str:
    return str(local_copy())


@pytest.fixture(scope="session")
def steerings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of every kind that is served in another way."""
    model, tokenizer = language_model()
    moods = contrast()[0]
    some = ods.Contrast(moods.positive[:40], moods.negative[:40])
    methods = {
        "vector": ods.CAA(),
        "flow": ods.ODESteer(),
        "turn": ods.HPR(epochs=2),
        "prompted": ods.TruthFlow(epochs=1, min_steps=20),
    }
    made: dict[str, Any] = {}
    for name, method in methods.items():
        made[name] = ods.fit(model, tokenizer, some, method=method, layer=LAYER)
    made["flow"] = made["flow"].with_strength(ods.Angle(0.25))
    made["heads"] = ods.fit(model, tokenizer, some, method="iti-heads", layer=LAYER)
    made["aimed"] = made["flow"].with_strength(ods.Target(0.9, ods.Angle(0.4)))
    several = ods.fit(model, tokenizer, some, method="odesteer", layer=[8, 20])
    made["layers"] = several.with_strength(ods.Angle(0.15))
    folder = tmp_path_factory.mktemp("steerings")
    return {name: one.save_pretrained(folder / name) for name, one in made.items()}


@pytest.fixture(scope="session")
def named(steerings: dict[str, Path]) -> dict[str, Any]:
    """The steerings themselves, composed ones too."""
    from odesteer.backends.vllm.expression import build

    found = {name: load(path) for name, path in steerings.items()}
    return {**found, **{name: build(text, found) for name, text in COMPOSED.items()}}


Reference = Callable[[list[int], Any, int], list[int]]


@pytest.fixture(scope="session")
def reference(named: dict[str, Any]) -> Reference:
    """What transformers generates, greedily, from a prompt's tokens under what a request asks."""
    model, _ = language_model()
    known: dict[Any, list[int]] = {}

    def generate(prompt: list[int], extra: Any, new: int) -> list[int]:
        key = (tuple(prompt), str(extra), new)
        if key not in known:
            with steered(model, named, extra, len(prompt), len(prompt) + new):
                output = model.generate(
                    torch.tensor([prompt]),
                    max_new_tokens=new,
                    do_sample=False,
                    eos_token_id=None,
                    pad_token_id=0,
                )
            known[key] = output[0, len(prompt) :].tolist()
        return known[key]

    return generate
