"""What Inspect AI hears of a steered model is what our own backend writes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import models as tiny
from tests.helpers.paths import REPOSITORY

import odesteer as ods
from odesteer.models.hooks.registration import Hook

pytest.importorskip("inspect_ai")

from inspect_ai.model import GenerateConfig, get_model

import odesteer.integrations.inspect_ai as provider

QUESTIONS = ["the cat", "a dog is under the tree", "the moon"]


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, str]:
    """Directories of a model and of a steering for it, as arguments of the provider."""
    tokenizer = tiny.tokenizer(chat=True)
    tokenizer.eos_token = "<end>"
    model = tiny.model()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    generator = torch.Generator().manual_seed(0)
    positive = torch.randn(40, tiny.WIDTH, generator=generator) + 0.3
    negative = torch.randn(40, tiny.WIDTH, generator=generator)
    steering = ods.METHODS["odesteer"]().fit(positive, negative, layer=1, calibrate=False)
    steering.with_strength(ods.Angle(0.5)).save_pretrained(tmp_path / "steering")
    return {"model_path": str(tmp_path / "model"), "steering": str(tmp_path / "steering")}


def _completions(**arguments: Any) -> tuple[list[str], Any]:
    model = get_model("odesteer/tiny", do_sample=False, memoize=False, **arguments)

    async def ask() -> list[str]:
        config = GenerateConfig(max_tokens=6)
        pending = [model.generate(question, config=config) for question in QUESTIONS]
        return [one.completion.strip() for one in await asyncio.gather(*pending)]

    return asyncio.run(ask()), model.api


def _ours(saved: dict[str, str], angle: float) -> list[str]:
    from odesteer.models.loading import load_model

    steering = ods.Steering.from_pretrained(saved["steering"]).with_strength(ods.Angle(angle))
    backend = ods.TransformersBackend(*load_model(saved["model_path"]))
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return backend.generate(chats, steering, ods.Sampling(max_new_tokens=6))


def test_a_batch_of_its_requests_is_steered_as_ours_until_it_is_closed(
    saved: dict[str, str],
) -> None:
    texts, api = _completions(**saved)
    assert texts == _ours(saved, 0.5)
    turned, other = _completions(**saved, angle=-0.5)
    assert turned == _ours(saved, -0.5)
    plain, _ = _completions(model_path=saved["model_path"])
    assert plain == _ours(saved, 0.0)
    assert len({tuple(one) for one in (texts, turned, plain)}) == 3
    for one in api, other:
        model = one.model
        hooks = [hook for part in model.modules() for hook in part._forward_hooks.values()]
        assert any(isinstance(hook, Hook) for hook in hooks)
        one.close()
        assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 1.0, "angle": 0.2}, "give one of them"),
        ({"steering": None, "angle": 0.2}, "give steering=DIR"),
        ({"positions": "everywhere"}, "everywhere"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_is_asked(
    saved: dict[str, str], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        get_model("odesteer/tiny", memoize=False, **(saved | arguments))


def test_the_entry_point_leads_to_the_provider() -> None:
    project = REPOSITORY / "pyproject.toml"
    section = f'[project.entry-points.inspect_ai]\nodesteer = "{provider.__name__}"\n'
    assert section in project.read_text(encoding="utf-8")
