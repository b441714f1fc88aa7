"""A CUDA graph with the operator follows its buffers and never waits for the host."""

import pytest
import torch
from tests.helpers.models import two_gaussians
from torch import Tensor

import odesteer as ods
from odesteer.backends.vllm import ask
from odesteer.backends.vllm.batch import ScheduledRequest, StepBatch
from odesteer.backends.vllm.request import parse
from odesteer.backends.vllm.steered_layer import STEERED_LAYERS, SteeredLayer, steer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

D, ROWS, EACH = 64, 32, 8
ASKS = (
    (ask("s"), None, ask("s", strength=-1.0), ask("s", angle=0.3)),
    (None, None, None, None),
    (ask("s", target=0.8, strength=3.0), ask("s", strength=0.5), None, ask("s")),
)


def step(asks: tuple) -> StepBatch:
    return StepBatch.of(
        [
            ScheduledRequest(
                str(i), () if one is None else parse(one["odesteer"]), i * EACH, EACH, 9, 5
            )
            for i, one in enumerate(asks)
        ]
    )


@pytest.fixture
def steering() -> ods.Steering:
    positive, negative = two_gaussians(200, 200, D)
    return ods.ODESteer().fit(positive, negative, layer=1, strength=1.5)


def stream(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, ROWS, D, generator=generator).to("cuda", dtype)
    return drawn[0].clone(), drawn[1].clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_graph_follows_the_buffers(dtype: torch.dtype, steering) -> None:
    place = SteeredLayer(3, {"s": steering}, rows=ROWS, device="cuda")
    STEERED_LAYERS[3] = place
    hidden, residual = stream(dtype)
    start = hidden.clone(), residual.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        place.dense = True  # what a server does before it captures
        for _ in range(3):
            steer(hidden, residual, 3)
        place.dense = False
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        steer(hidden, residual, 3)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    for asks in (*ASKS, ASKS[0]):
        hidden.copy_(start[0])
        residual.copy_(start[1])
        place.begin(step(asks))
        graph.replay()
        expected = start[0].clone(), start[1].clone()
        place.apply_sparse(*expected)
        torch.testing.assert_close(hidden + residual, expected[0] + expected[1], **tolerance)
        for i, one in enumerate(asks):
            if one is None:
                rows = slice(i * EACH, (i + 1) * EACH)
                assert torch.equal(hidden[rows], start[0][rows])
                assert torch.equal(residual[rows], start[1][rows])
    del STEERED_LAYERS[3]


def test_a_layer_that_is_compiled_into_graphs_follows_them_too(steering) -> None:
    place = SteeredLayer(3, {"s": steering}, rows=ROWS, device="cuda")
    STEERED_LAYERS[3] = place

    def layer(x: Tensor) -> Tensor:
        hidden, residual = 2.0 * x, x - 1.0
        steer(hidden, residual, 3)
        return hidden + residual

    compiled = torch.compile(layer, fullgraph=True, mode="reduce-overhead")
    x, _ = stream(torch.float32)
    with torch.no_grad():
        place.dense = True
        for _ in range(3):
            compiled(x)
        place.dense = False
        for asks in ASKS:
            place.begin(step(asks))
            torch.testing.assert_close(compiled(x).clone(), layer(x), rtol=1e-4, atol=1e-4)
    del STEERED_LAYERS[3]
