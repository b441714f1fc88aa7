"""A run is the same run with generations from a vLLM stand-in."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from tests.evaluation.experiment.test_run import GENERATIONS

from odesteer.backends import TransformersBackend
from odesteer.backends.vllm.registry import RegisteredSteerings, SteeringRegistry, options
from odesteer.evaluation.experiment import fits as served
from odesteer.evaluation.experiment.parse_toml import read
from odesteer.evaluation.experiment.run import run
from odesteer.models.loading import load_model


class Standing:
    """Stands for `Engine`: what it is started with, and whether it was closed."""

    started: ClassVar[list["Standing"]] = []

    def __init__(self, model: str, steerings: dict[str, Any], **settings: Any):
        self.model, self.settings, self.closed = model, settings, False
        folder = Path(model).parent
        paths = {
            name: one.save_pretrained(folder / f"engine-{len(self.started)}" / name)
            for name, one in steerings.items()
        }
        self.registered = RegisteredSteerings(
            SteeringRegistry.of(options(paths)["additional_config"])
        )
        self.started.append(self)

    def close(self) -> None:
        self.closed = True


def backend(engine: Standing, tokenizer: Any, template: str, positions: str) -> Any:
    """Generates as transformers does, once the engine has found the steering."""
    model, _ = load_model(engine.model)

    def generate(prompts: Any, steering: Any, sampling: Any) -> list[str]:
        engine.registered.extra_args(steering, "last+generated")
        inner = TransformersBackend(model, tokenizer, template, positions, len(prompts))
        return inner.generate(prompts, steering, sampling)

    return SimpleNamespace(generate=generate)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> list[Standing]:
    monkeypatch.setattr(Standing, "started", [])
    monkeypatch.setattr(served, "Engine", Standing)
    monkeypatch.setattr(served, "VLLMBackend", backend)
    module = SimpleNamespace(__version__="0.0")
    monkeypatch.setitem(sys.modules, "vllm", module)
    return Standing.started


def test_a_run_differs_in_who_generated_alone(
    file: Path, tmp_path: Path, model: Path, vllm: list[Standing]
) -> None:
    pytest.importorskip("vaderSentiment")
    file.write_text(GENERATIONS.format(model=model), encoding="utf-8")
    experiment = read(file)
    plain = run(experiment, tmp_path / "plain").results.read_text().splitlines()
    other = run(experiment, tmp_path / "vllm", backend="vllm").results.read_text().splitlines()
    assert plain[1:] == other[1:]
    header = json.loads(other[0])
    assert header.pop("backend") == {"name": "vllm", "version": "0.0"}
    before = json.loads(plain[0])
    assert before.pop("backend") is None and before == header
    # The two doses of one steering, of which one is chosen in the run, need one engine with it.
    [engine] = vllm
    assert len(engine.registered.steerings) == 1
    assert engine.closed
    assert engine.settings["dtype"] == "float32"
    with pytest.raises(ValueError, match="differs in backend"):
        run(experiment, tmp_path / "plain", backend="vllm")


def test_an_engine_that_lacks_a_steering_is_started_again(
    file: Path, model: Path, vllm: list[Standing]
) -> None:
    import odesteer as ods

    ones = [ods.Steering(_field(seed), ods.Angle(0.2), layer=1) for seed in (0, 1)]
    chosen = SimpleNamespace(model=SimpleNamespace(name=str(model), revision=None))
    lines: list[str] = []
    held: Any = served.VLLMGenerator(chosen, *load_model(str(model)), lines.append)  # type: ignore[arg-type]
    first = held.engine(ones[0], lambda: [ones[0].with_strength(1.0)])
    assert held.engine(ones[0].with_strength(2.0), list) is first
    assert held.engine(None, list) is first
    second = held.engine(ones[1], lambda: ones)
    assert first.closed and second is not first and held.engine(ones[0], list) is second
    assert lines == ["Starting vLLM with 1 steerings", "Starting vLLM with 2 steerings"]
    held.close()
    held.close()
    assert second.closed


def _field(seed: int) -> Any:
    from tests.helpers import models as tiny

    return tiny.constant(seed=seed).field


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ('task = "choices"\nbenchmark = "truthfulqa"', 'task is "choices"'),
        ("[sampling]\nno_repeat_ngram_size = 2", "does not know no_repeat_ngram_size"),
    ],
)
def test_what_vllm_cannot_run_is_refused_before_anything_is_done(
    file: Path, tmp_path: Path, model: Path, change: str, words: str
) -> None:
    begin = "" if "benchmark" in change else 'benchmark = "sentiment"\n'
    text = f'model = "{model}"\nlayers = [1]\ndoses = [0.2]\nmethods = ["caa"]\n{begin}{change}\n'
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        run(read(file), tmp_path / "run", backend="vllm")
    with pytest.raises(ValueError, match="Unknown backend 'vlm'"):
        run(read(file), tmp_path / "run", backend="vlm")
    assert not (tmp_path / "run").exists()


def test_without_vllm_a_run_says_so(
    file: Path, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    file.write_text(GENERATIONS.format(model=model), encoding="utf-8")
    with pytest.raises(ImportError, match="This needs vLLM"):
        run(read(file), tmp_path / "run", backend="vllm")
