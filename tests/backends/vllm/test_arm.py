"""A loaded model is steered at the right layers, or refused."""

import gc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from odesteer import Angle, Steering
from odesteer.backends.vllm import ask
from odesteer.backends.vllm.batch import ScheduledRequest
from odesteer.backends.vllm.install import install
from odesteer.backends.vllm.registry import SteeringRegistry, configuration
from odesteer.backends.vllm.request import parse
from odesteer.backends.vllm.runner_hooks import RunnerSteering
from odesteer.backends.vllm.steered_layer import STEERED_LAYERS
from odesteer.ode import ConstantField, GradientField, LinearBarrier

D = 16


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.o_proj = nn.Linear(D, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.o_proj(x)


class Layer(nn.Module):
    """As vLLM's: two summands."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, x: Tensor, residual: Tensor | None) -> Any:
        x = x if residual is None else x + residual
        return self.attention(x), x.clone()


class Strange(Layer):
    def forward(self, x: Tensor, residual: Tensor | None) -> Any:
        return {"hidden": x, "residual": residual}


class Model(nn.Module):
    def __init__(self, layer: type[Layer] = Layer) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=D, num_hidden_layers=3, model_type="llama")
        self.embed_tokens = nn.Embedding(5, D)
        self.layers = nn.ModuleList(layer() for _ in range(3))

    def forward(self, input_ids: Tensor) -> Tensor:
        x, residual = self.embed_tokens(input_ids), None
        for layer in self.layers:
            x, residual = layer(x, residual)
        return x + residual


def config(**changes: Any) -> Any:
    parallel = SimpleNamespace(tensor_parallel_size=1, prefill_context_parallel_size=1)
    found = SimpleNamespace(
        parallel_config=parallel,
        compilation_config=SimpleNamespace(pass_config=None, cudagraph_mode=None),
        model_config=SimpleNamespace(
            enforce_eager=True, dtype=torch.float32, get_hidden_size=lambda: D
        ),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=64),
        kv_transfer_config=None,
    )
    for path, value in changes.items():
        owner, _, name = path.partition("__")
        setattr(getattr(found, owner) if name else found, name or owner, value)
    return found


def steering(layer: int = 1, site: str = "residual", **more: Any) -> Steering:
    direction = torch.ones(D)
    field = GradientField(LinearBarrier(direction, 0.0))
    return Steering(field, strength=Angle(0.5), layer=layer, site=site, **more)


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Any]:
    def of(**steerings: Steering) -> SteeringRegistry:
        paths = {name: one.save_pretrained(tmp_path / name) for name, one in steerings.items()}
        found = SteeringRegistry.of(configuration(paths))
        assert found is not None
        return found

    yield of
    STEERED_LAYERS.clear()
    gc.collect()


def served(
    model: nn.Module, found: SteeringRegistry, asked: dict | None, rows: int = 4
) -> RunnerSteering:
    one = RunnerSteering(install(model, found, config()))
    one.begin(
        [ScheduledRequest("r", () if asked is None else parse(asked["odesteer"]), 0, rows, 3, 3)]
    )
    return one


IDS = torch.tensor([0, 1, 2, 3])


def test_an_armed_layer_passes_on_what_the_steering_makes_of_the_sum(catalogue) -> None:
    model, one = Model().eval(), steering()
    with torch.no_grad():
        plain = model(IDS)
        x, residual = model.layers[0](model.embed_tokens(IDS), None)
        x, residual = model.layers[1](x, residual)
        x, residual = model.layers[2](one(x + residual), None)
        server = served(model, catalogue(s=one), ask("s"))
        torch.testing.assert_close(model(IDS), x + residual)
        server.begin([])
        assert torch.equal(model(IDS), plain)  # idle: to the bit


def test_heads_are_steered_before_they_are_mixed(catalogue) -> None:
    model, one = Model().eval(), steering(site="heads")
    with torch.no_grad():
        x, residual = model.layers[0](model.embed_tokens(IDS), None)
        stream = x + residual
        mixed = model.layers[1].attention.o_proj.weight @ one(stream).mT
        expected, rest = model.layers[2](mixed.mT, stream)
        served(model, catalogue(s=one), ask("s"))
        torch.testing.assert_close(model(IDS), expected + rest)


def test_a_stage_of_a_pipeline_arms_its_own_layers(catalogue) -> None:
    class PPMissingLayer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nothing = nn.Linear(1, 1)

        def forward(self, x: Tensor, residual: Tensor | None) -> Any:
            return x, residual

    model = Model()
    model.layers[2] = PPMissingLayer()
    places = install(model, catalogue(a=steering(0), b=steering(2)), config())
    assert [list(place.parts) for place in places] == [["a"]]


def test_what_was_moved_is_told_by_steering_and_layer(catalogue) -> None:
    model = Model().eval()
    server = served(model, catalogue(s=steering(-1), t=steering(0)), ask("s"))
    with torch.no_grad():
        model(IDS)
    told = {(one["steering"], one["layer"]): one["tokens"] for one in server.stats()}
    assert told == {("t", 0): 0, ("s", 2): 4}


def test_a_second_model_is_refused_while_the_first_is_there(catalogue) -> None:
    found = catalogue(s=steering())
    first = Model()
    install(first, found, config())
    with pytest.raises(ValueError, match="one steered engine a process"):
        install(Model(), found, config())
    del first
    install(Model(), found, config())


def test_a_layer_of_unknown_form_is_refused_at_its_first_run(catalogue) -> None:
    model = Model(Strange)
    install(model, catalogue(s=steering()), config())
    with pytest.raises(ValueError, match="neither the residual stream nor its two summands"):
        model.layers[1](torch.zeros(2, D), None)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"parallel_config__enable_dbo": True}, "dual-batch overlap"),
        ({"parallel_config__prefill_context_parallel_size": 2}, "context parallelism"),
        (
            {"compilation_config__pass_config": SimpleNamespace(enable_sp=True)},
            "sequence-parallel",
        ),
    ],
)
def test_settings_that_cannot_be_steered_are_refused(change, word: str, catalogue) -> None:
    with pytest.raises(ValueError, match=word):
        install(Model(), catalogue(s=steering()), config(**change))


def test_heads_are_refused_where_they_are_spread_over_devices(catalogue) -> None:
    with pytest.raises(ValueError, match="'s' steers attention heads"):
        install(
            Model(),
            catalogue(s=steering(site="heads")),
            config(parallel_config__tensor_parallel_size=2),
        )


@pytest.mark.parametrize(
    ("one", "word"),
    [
        (steering(7), r"'s' does not fit: .* layer 7"),
        (steering().replace(field=ConstantField(torch.ones(D + 1))), "width 17"),
        (steering(model={"text_type": "gpt2", "layers": 3}), "model type gpt2"),
    ],
)
def test_a_steering_of_another_model_is_refused_by_name(one, word: str, catalogue) -> None:
    with pytest.raises(ValueError, match=word):
        install(Model(), catalogue(s=one), config())
