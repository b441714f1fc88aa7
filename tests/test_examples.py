"""Every file in examples/ runs, and writes what our own attach and generate write."""

import inspect
import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.helpers.paths import REPOSITORY

import odesteer as ods
from odesteer.evaluation.demo import contrast
from odesteer.models.hooks.registration import Hook
from odesteer.models.loading import load_model

FOLDER = REPOSITORY / "examples"
FILES = sorted(FOLDER.glob("*.py"))
STREET, CONCERT = "Describe the street outside your window.", "How was the concert?"
_plain_fit = ods.fit


class Reference:
    """One model and one steering, as our own documentation would use them."""

    def __init__(self) -> None:
        self.model, self.tokenizer = load_model("smollm2")
        whole, _ = contrast()
        some = whole.subset(sorted(set(whole.groups[0]))[::4])  # fitted in seconds
        dose = ods.Angle(0.2)  # each example asks for its own
        self.steering = ods.fit(self.model, self.tokenizer, some, layer=16, strength=dose)
        self.said = cache(self._said)

    def ids(self, question: str = STREET) -> torch.Tensor:
        chat = [{"role": "user", "content": question}]
        ids: torch.Tensor = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        return ids

    def _said(self, angle: float, question: str = STREET) -> str:
        ids = self.ids(question)
        with self.steering.with_strength(ods.Angle(angle)).attach(self.model):
            output = self.model.generate(ids, max_new_tokens=16, do_sample=False)
        text: str = self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        return text

    def fit(self, *arguments: Any, **keywords: Any) -> ods.Steering:
        """What an example gets for its fit: ours, at its dose."""
        given = inspect.signature(_plain_fit).bind(*arguments, **keywords).arguments
        assert given["layer"] == self.steering.layer
        return self.steering.with_strength(given["strength"])


@pytest.fixture(scope="module")
def ours() -> Reference:
    return Reference()


Run = Callable[[], Any]


def _pipeline(run: Run, ours: Reference) -> None:
    assert run() == (ours.said(0.0), ours.said(0.2))


def _peft(run: Run, ours: Reference) -> None:
    texts = run()
    assert texts["plain"] == ours.said(0.0)
    assert texts["steering"] == ours.said(0.2)
    assert texts["steering, then adapter"] == texts["adapter, then steering"]
    assert len(set(texts.values())) == 4


def _trl(run: Run, ours: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    generate = transformers.GenerationMixin.generate

    def recorded(model: Any, *arguments: Any, **keywords: Any) -> Any:
        state = torch.get_rng_state()
        output = generate(model, *arguments, **keywords)
        calls.append((state, arguments, keywords, output.clone()))
        return output

    monkeypatch.setattr(transformers.GenerationMixin, "generate", recorded)
    trained = run()
    monkeypatch.undo()
    [(state, arguments, keywords, written)] = calls
    results = []
    for angle in (0.1, 0.0):  # the same draws, from the model before the step
        with ours.steering.with_strength(ods.Angle(angle)).attach(ours.model, positions="all"):
            torch.set_rng_state(state)
            results.append(ours.model.generate(*arguments, **keywords))
    assert torch.equal(results[0], written)
    assert not torch.equal(results[1][:, : written.shape[1]], written)
    hooks = [
        hook
        for one in trained.modules()
        for hook in (*one._forward_hooks.values(), *one._forward_pre_hooks.values())
    ]
    assert not any(isinstance(hook, Hook) for hook in hooks)  # TRL leaves one of its own
    assert "generate" not in vars(trained)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(trained.parameters(), ours.model.parameters(), strict=True)
    ]
    assert all(moved)  # those below the steered block, too: gradients went through it


def _accelerate(run: Run, ours: Reference) -> None:
    texts = run()
    assert texts["whole, steered"] == texts["spread, steered"] == ours.said(0.2)
    assert texts["spread"] == ours.said(0.0)


def _compile(run: Run, ours: Reference) -> None:
    texts = run()
    assert list(texts.values()) == [ours.said(angle) for angle in (0.0, 0.2, 0.1, 0.0)]


def _streaming(run: Run, ours: Reference) -> None:
    text, stats = run()
    prompt = ours.ids()
    written = ours.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    ids = torch.cat([prompt, written], dim=1)
    start, end = prompt.shape[1], ids.shape[1]
    assert stats["steered"] == end - start == 32
    assert stats["tokens"] == end - 1
    turned = ours.steering.with_strength(ods.Angle(0.25))
    agreed = []
    for first in range(start + 6, start + 15):  # with the new dose from there on, in one pass
        with turned.attach(ours.model, positions=torch.arange(end) >= first), torch.no_grad():
            chosen = ours.model(ids).logits[0, start - 1 : -1].argmax(dim=-1)
        if torch.equal(chosen, written[0]):
            agreed.append(first - start)
    assert agreed, "the dose was not turned where the text had eight spaces, or a little later"


def _inspect(run: Run, ours: Reference) -> None:
    import odesteer.integrations.inspect_ai  # noqa: F401  an entry point, once it is installed

    answers = run()
    for name, angle in ("plain", 0.0), ("steered", 0.2):
        assert answers[name] == [ours.said(angle, one) for one in (STREET, CONCERT)]


CHECKS: dict[str, tuple[Callable[..., None], str]] = {
    "accelerate_sharding.py": (_accelerate, "accelerate"),
    "compile.py": (_compile, "torch"),
    "inspect_eval.py": (_inspect, "inspect_ai"),
    "peft_adapter.py": (_peft, "peft"),
    "pipeline.py": (_pipeline, "transformers"),
    "streaming.py": (_streaming, "transformers"),
    "trl_generation.py": (_trl, "trl"),
}


def test_every_example_is_checked_and_listed() -> None:
    assert [path.name for path in FILES] == list(CHECKS)
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in FILES:
        assert f"[`{path.name}`]({path.name})" in listed
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 70


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_the_example_writes_what_our_own_generate_writes(
    name: str, ours: Reference, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check, needs = CHECKS[name]
    pytest.importorskip(needs)
    monkeypatch.setattr(ods, "fit", ours.fit)
    monkeypatch.chdir(tmp_path)  # what it writes, if it does
    run = runpy.run_path(str(FOLDER / name))["main"]
    extra = {"monkeypatch": monkeypatch} if check is _trl else {}
    check(run, ours, **extra)
    assert ours.said(0.2) != ours.said(0.0)
