"""The operator moves its rows as the steering would, and no other row by a bit."""

import pytest
import torch
from tests.helpers.models import two_gaussians
from torch import Tensor

from odesteer import Steering
from odesteer.backends.vllm.batch import ScheduledRequest, StepBatch
from odesteer.backends.vllm.request import ask, parse
from odesteer.backends.vllm.steered_layer import STEERED_LAYERS, SteeredLayer, steer, steer_one
from odesteer.ode import ConstantField, Dense, Network, RotationField, Target, Time
from odesteer.steering import LayerSteering

D, ROWS = 12, 16


def curved(strength: object = 1.5) -> LayerSteering:
    import odesteer as ods

    positive, negative = two_gaussians(60, 60, D)
    return ods.ODESteer().fit(positive, negative, layer=1, strength=strength).only


def vector() -> LayerSteering:
    return Steering(ConstantField(torch.linspace(-1, 1, D)), layer=1).only


def gated() -> LayerSteering:
    theta = torch.nn.functional.normalize(torch.cos(torch.arange(D).float()), dim=0)
    layer = Dense(torch.linspace(-1, 1, D)[None] / D, torch.zeros(1))
    return Steering(RotationField(theta, Network([layer], "relu")), layer=1).only


def batch(*asks: dict | None, length: int = 4) -> list[ScheduledRequest]:
    """Requests of `length` rows, all of them generated."""
    return [
        ScheduledRequest(
            str(i), () if one is None else parse(one["odesteer"]), i * length, length, 9, 5
        )
        for i, one in enumerate(asks)
    ]


@pytest.fixture
def stream() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(ROWS, D, generator=generator),
        torch.randn(ROWS, D, generator=generator),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("two", [True, False], ids=["two summands", "one tensor"])
@pytest.mark.parametrize("make", [curved, vector])
def test_steered_rows_are_what_the_steering_makes_of_the_sum(make, two, dtype, stream) -> None:
    steering = make()
    place = SteeredLayer(2, {"s": steering})
    place.begin(StepBatch.of(batch(None, ask("s"), ask("s", strength=-0.5), None)))
    hidden, residual = (one.to(dtype) for one in stream)
    before, rest = hidden.clone(), residual.clone()
    place.apply(hidden, residual if two else None)
    a = before + rest if two else before
    assert torch.equal(hidden[:4], before[:4]) and torch.equal(hidden[12:], before[12:])
    for rows, one in (
        (slice(4, 8), steering),
        (slice(8, 12), steering.with_strength(-0.5)),
    ):
        torch.testing.assert_close(hidden[rows], one(a[rows]))
    if two:
        assert torch.equal(residual[:4], rest[:4]) and torch.equal(residual[12:], rest[12:])
        assert not residual[4:12].any()


def test_without_a_step_every_bit_is_kept(stream) -> None:
    hidden, residual = stream
    kept = hidden.clone(), residual.clone()
    place = SteeredLayer(2, {"s": curved()}, rows=ROWS)
    assert place.idle
    place.apply(hidden, residual)
    place.apply_dense(hidden, residual)
    assert torch.equal(hidden, kept[0]) and torch.equal(residual, kept[1])


ASKS = (
    ask("s", target=0.8, strength=2.0),
    None,
    ask("s", angle=0.3),
    ask("s", strength=-1.0),
)


@pytest.mark.parametrize("make", [curved, vector, gated])
def test_the_dense_form_is_the_sparse_one(make, stream) -> None:
    steering = make()
    asks = ASKS if steering.field.barrier is not None else (None, *ASKS[1:])
    place = SteeredLayer(2, {"s": steering}, rows=ROWS + 5)
    place.begin(StepBatch.of(batch(*asks)))
    hidden, residual = stream
    sparse, dense = (hidden.clone(), residual.clone()), (hidden.clone(), residual.clone())
    place.apply_sparse(*sparse)
    moved = place.totals["s"].clone()
    place.totals["s"].zero_()
    place.apply_dense(*dense)
    for one, other, unsteered in zip(sparse, dense, stream, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert torch.equal(other[4:8], unsteered[4:8])
    torch.testing.assert_close(place.totals["s"], moved, rtol=1e-5, atol=1e-5)
    # And buffers are as new for the next step.
    place.begin(StepBatch.of(batch(None, None, None, None)))
    again = hidden.clone(), residual.clone()
    place.apply_dense(*again)
    assert torch.equal(again[0], hidden)


@pytest.mark.parametrize("make", [curved, vector, gated])
def test_the_dense_form_decides_nothing_by_what_it_reads(make) -> None:
    """As a CUDA graph demands: on the device without memory, whatever looks at a value raises."""
    place = SteeredLayer(2, {"s": make()}, rows=ROWS, device="meta")
    place.begin(StepBatch.of(batch(*ASKS)))
    hidden = torch.empty(ROWS, D, device="meta")
    place.apply_dense(hidden, torch.empty_like(hidden))
    with pytest.raises(RuntimeError):
        bool(hidden.any())


def test_rows_that_have_reached_their_target_keep_the_sum(stream) -> None:
    steering = curved(Target(0.5, Time(3.0)))
    place = SteeredLayer(2, {"s": steering})
    place.begin(StepBatch.of(batch(*(4 * [ask("s")]))))
    hidden, residual = stream
    a = hidden + residual
    there = steering.probability(a) >= 0.5
    assert there.any() and not there.all()
    place.apply(hidden, residual)
    assert torch.equal((hidden + residual)[there], a[there])
    assert (steering.probability(hidden + residual) >= 0.5 - 1e-4).all()


@pytest.mark.parametrize("dense", [False, True])
def test_rows_of_several_doses_stop_at_the_level_of_their_coverage(dense, stream) -> None:
    steering = curved()
    asks = [ask("s", strength=3, target=0.5, coverage=c) for c in (0.7, 0.8)]
    place = SteeredLayer(2, {"s": steering}, rows=ROWS if dense else 0)
    place.begin(StepBatch.of(batch(*asks, ask("s", strength=0.1), None)))
    place.dense = dense
    hidden, residual = stream
    a = hidden + residual
    place.apply(hidden, residual)
    for i, coverage in enumerate((0.7, 0.8)):
        rows = slice(4 * i, 4 * i + 4)
        alone = steering.with_strength(Target(0.5, 3.0, coverage=coverage))(a[rows])
        torch.testing.assert_close((hidden + residual)[rows], alone, atol=1e-3, rtol=1e-3)


def test_several_steerings_act_in_the_operators_order(stream) -> None:
    parts = {"b": curved(), "a": vector()}
    place = SteeredLayer(2, parts)
    both = {"odesteer": '[{"name": "a"}, {"name": "b"}]'}
    place.begin(StepBatch.of(batch(both, None, None, None)))
    hidden, residual = stream
    expected = parts["a"](parts["b"]((hidden + residual)[:4]))
    place.apply(hidden, residual)
    torch.testing.assert_close(hidden[:4], expected)


def test_what_was_moved_is_counted(stream) -> None:
    steering = vector()
    place = SteeredLayer(2, {"s": steering})
    for _ in range(3):
        place.begin(StepBatch.of(batch(ask("s"), None, ask("s", strength=2.0), None)))
        place.apply(stream[0].clone(), stream[1].clone())
    length = float(torch.linspace(-1, 1, D).norm())
    tokens, displacement = place.totals["s"].tolist()
    assert tokens == 24
    assert displacement == pytest.approx(3 * 4 * (length + 2 * length), rel=1e-5)


class Remembers(ConstantField):
    """Moves along the prompt's last activation."""

    prompt_conditioned = True

    def forward(self, a: Tensor) -> Tensor:
        return a


def test_what_a_field_read_in_the_prompt_moves_all_that_follows(stream) -> None:
    steering = Steering(Remembers(torch.zeros(D)), layer=1).only
    place = SteeredLayer(2, {"s": steering})
    hidden, residual = stream
    a = hidden + residual
    asks = parse(ask("s", strength=0.5)["odesteer"])
    place.begin(StepBatch.of([ScheduledRequest("r", asks, 2, 4, 0, 4)]))  # the prompt: rows 2 to 5
    place.apply(hidden, residual)
    torch.testing.assert_close((hidden + residual)[5], a[5] + 0.5 * a[5])
    torch.testing.assert_close((hidden + residual)[:5], a[:5])
    place.begin(StepBatch.of([ScheduledRequest("r", asks, 0, 1, 4, 4)]))  # the next token
    more = torch.randn(1, D), torch.randn(1, D)
    expected = more[0] + more[1] + 0.5 * a[5]
    place.apply(*more)
    torch.testing.assert_close(more[0], expected)
    place.forget({"r"})
    with pytest.raises(KeyError):
        place.apply(torch.randn(1, D), torch.randn(1, D))


@pytest.fixture
def armed(stream):
    place = SteeredLayer(7, {"s": curved()}, rows=ROWS)
    place.begin(StepBatch.of(batch(*ASKS)))
    STEERED_LAYERS[7] = place
    yield place
    del STEERED_LAYERS[7]


def test_the_operators_keep_torchs_contract(armed, stream) -> None:
    # Not those of autograd: nothing is trained in a server.
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(steer, (stream[0].clone(), stream[1].clone(), 7), test_utils=tests)
    torch.library.opcheck(steer_one, (stream[0].clone(), 7), test_utils=tests)


def test_a_whole_graph_is_compiled_with_the_operator_in_it(armed, stream) -> None:
    def layer(x: Tensor) -> Tensor:
        hidden, residual = 2.0 * x, x - 1.0
        steer(hidden, residual, 7)
        return hidden + residual

    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    for asks in (ASKS, (None, None, None, None)):
        armed.begin(StepBatch.of(batch(*asks)))
        with torch.no_grad():
            torch.testing.assert_close(compiled(stream[0]), layer(stream[0]))
