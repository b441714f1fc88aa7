"""Steerings of the tests of a served model, and transformers' answers to them.

They run in an environment of their own, with vLLM in it: `make test-serving`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.shared import made_once
from tests.serving.mixed import LONGEST, requests
from tests.serving.served import COMPOSED, greedy, language_model, tokens

import odesteer as ods
from odesteer.evaluation.demo import contrast
from odesteer.models.loading import local_copy
from odesteer.ode import Hourglass, Network, RectifiedField, RotationField
from odesteer.steering import load

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
    folder = made_once(tmp_path_factory, "steerings", fit_all)
    return {name: folder / name for name in NAMES}


# They act in this order.
NAMES = ("vector", "flow", "heads", "layers", "aimed", "turn", "prompted")


def fit_all(folder: Path) -> None:
    """Write them, each with a dose of its own: a search for one takes most of a minute."""
    model, tokenizer = language_model()
    moods = contrast()[0]
    some = ods.Contrast(moods.positive[:40], moods.negative[:40])

    def fit(method: Any, layer: Any, dose: Any = None) -> Any:
        return ods.fit(model, tokenizer, some, method, layer, dose, cache=folder / "read")

    made: dict[str, Any] = {
        "vector": fit(ods.CAA(), LAYER),
        "flow": fit(ods.ODESteer(), LAYER, ods.Angle(0.25)),
        "heads": fit("iti-heads", LAYER),
        "layers": fit("odesteer", [8, 20], ods.Angle(0.1)).replace(positions="all-prompt[:1]"),
    }
    made["aimed"] = made["flow"].with_strength(ods.Target(0.9, ods.Angle(0.4)))
    made["turn"] = turning(made["vector"])
    made["prompted"] = remembering(made["vector"])
    assert tuple(made) == NAMES
    for name, one in made.items():
        one.save_pretrained(folder / name)


@pytest.fixture(scope="session")
def named(steerings: dict[str, Path]) -> dict[str, Any]:
    """The steerings themselves, composed ones too."""
    from odesteer.common.expression import build

    found = {name: load(path) for name, path in steerings.items()}
    return {**found, **{name: build(text, found) for name, text in COMPOSED.items()}}


def turning(vector: ods.Steering) -> ods.Steering:
    """Turns towards a direction on one side of a gate; away, it is another field."""
    direction = torch.nn.functional.normalize(vector.field(torch.zeros(576)), dim=0)
    generator = torch.Generator().manual_seed(0)
    field = RotationField(direction, Network.draw([576, 8, 1], "relu", generator))
    return vector.replace(field=field, method="turn")


def remembering(vector: ods.Steering) -> ods.Steering:
    """Moves every token by what it made of the prompt's last one."""
    generator = torch.Generator().manual_seed(1)
    direction = vector.field(torch.zeros(576))
    basis = torch.linalg.qr(torch.stack([direction, torch.randn(576, generator=generator)], 1)).Q
    field = RectifiedField(
        Hourglass.draw(576, 1, generator), torch.zeros(576), 10.0, direction, 5.0, basis, 2, True
    )
    return vector.replace(field=field, method="prompted")


Reference = Callable[[list[int], Any, int], list[int]]


@pytest.fixture(scope="session")
def reference(named: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """What transformers generates, greedily, from a prompt's tokens under what a request asks."""
    model, _ = language_model()

    def answer_all(folder: Path) -> None:
        answers = []
        for prompt, extra in requests():
            ids = tokens(prompt)
            answers.append((ids, extra, greedy(model, named, ids, extra, LONGEST)))
        (folder / "answers.json").write_text(json.dumps(answers), encoding="utf-8")

    answers = made_once(tmp_path_factory, "answers", answer_all) / "answers.json"
    known: dict[Any, list[int]] = {
        (tuple(prompt), str(extra)): answer
        for prompt, extra, answer in json.loads(answers.read_text(encoding="utf-8"))
    }

    def generate(prompt: list[int], extra: Any, new: int) -> list[int]:
        key = (tuple(prompt), str(extra))
        if len(known.get(key, ())) < new:
            known[key] = greedy(model, named, prompt, extra, new)
        return known[key][:new]  # of a greedy text, the beginning is the shorter text

    return generate
