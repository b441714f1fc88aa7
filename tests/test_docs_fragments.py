"""Blocks of the docs that need more than Python and this package are right.

Blocks marked `py` go on from what stands before them on their page, or need a server or vLLM. Each
runs here with something small in place of what it needs; our own functions are the real ones.
"""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, create_autospec

import pytest
from tests.helpers import models as tiny
from tests.test_docs import PAGES

import odesteer as ods
from odesteer.backends.vllm import Engine, VLLMBackend
from odesteer.backends.vllm.request import SteeringRequest, parse

FRAGMENT = re.compile(r"```py\n(.*?)```", re.DOTALL)
CONTRAST = ods.Contrast.from_pairs(
    positive=["the cat", "the dog", "a bird", "the tree"] * 3,
    negative=["a dog sat", "the bird flew on", "the cat sat", "a tree"] * 3,
)


def _fragments() -> dict[str, str]:
    return {
        f"{page.name}-{number}": match[1]
        for page in PAGES
        for number, match in enumerate(FRAGMENT.finditer(page.read_text("utf-8")), start=1)
    }


def space(**names: Any) -> dict[str, Any]:
    """What a block finds when it begins."""
    return {"__name__": "__main__", "ods": ods, **names}


def _concepts(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    net, tokenizer = tiny.model(), tiny.tokenizer()
    inputs = tokenizer("the cat sat", return_tensors="pt", return_token_type_ids=False)
    return space(model=net, tokenizer=tokenizer, contrast=CONTRAST, inputs=inputs)


def _start(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    tiny.constant(1).save_pretrained("eerie")
    parts = (tiny.model(), tiny.tokenizer(chat=True))
    patch.setattr("odesteer.models.loading.load_model", lambda *_: parts)
    return space()


def _client(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    def create(model: str, extra_body: dict[str, Any], **_: Any) -> Any:
        extra = extra_body.get("vllm_xargs")
        if extra is not None:
            [asked] = parse(extra["odesteer"])
            assert asked == SteeringRequest("melancholy", ods.Angle(0.1))
        message = SimpleNamespace(content=model)
        return SimpleNamespace(choices=[SimpleNamespace(message=message)])

    client = MagicMock()
    client.chat.completions.create = create
    _module(patch, "openai", OpenAI=lambda **_: client)
    return space()


def _offline(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    tiny.constant(1).save_pretrained("runs/truthful")

    def sampling(extra_args: dict[str, str]) -> None:
        [asked] = parse(extra_args["odesteer"])
        assert asked == SteeringRequest("truthful", ods.Angle(0.2), probability=0.9)

    _module(patch, "vllm", LLM=MagicMock(), SamplingParams=sampling)
    return space()


def _engine(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    names = dict.fromkeys(("path", "tokenizer", "prompts", "answers"), "")
    return space(
        Engine=create_autospec(Engine),
        VLLMBackend=create_autospec(VLLMBackend),
        kind=tiny.constant(1),
        honest=tiny.constant(2),
        **names,
    )


def _module(patch: pytest.MonkeyPatch, name: str, **attributes: Any) -> None:
    module = ModuleType(name)
    vars(module).update(attributes)
    patch.setitem(sys.modules, name, module)


def _methods(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    return _concepts(patch) | {"steering": tiny.constant(1)}


STAND_INS = {
    "concepts.md-1": _concepts,
    "methods.md-1": _methods,
    "start.md-1": _start,
    "serving.md-1": _client,
    "serving.md-2": _offline,
    "serving.md-3": _engine,
}


def test_no_fragment_is_left_out() -> None:
    assert set(_fragments()) == {*STAND_INS}


@pytest.mark.parametrize("name", STAND_INS)
def test_the_fragment_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = STAND_INS[name](monkeypatch)
    exec(compile(_fragments()[name], f"<{name}>", "exec"), names)
