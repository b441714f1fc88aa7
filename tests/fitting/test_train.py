"""A field trained through the model gains on held-out texts, and is the same for the same seed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.fitting.test_kl_budget import UNWANTED, WANTED
from tests.helpers import models as tiny

import odesteer as ods
from odesteer.extraction.packing import PromptWithAnswers
from odesteer.fitting import train
from odesteer.fitting.train import Pair, _accumulate, _batches, _pairs
from odesteer.methods.trained import BARRIERS, OBJECTIVES, FieldParameters, Likelihoods

CONTRAST = ods.Contrast.from_pairs(WANTED, UNWANTED)
QUICK: dict[str, Any] = {"rank": 4, "batch": 2}


def fit(method: ods.Method, **settings: Any) -> ods.Steering:
    strength = settings.pop("strength", ods.KL(0.02))
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    return ods.fit(model, tokenizer, CONTRAST, method, 1, strength, **settings)


@pytest.mark.parametrize(
    ("barrier", "objective"),
    [*(("quadratic", each) for each in OBJECTIVES), ("constant", "dpo"), ("network", "dpo")],
)
def test_the_held_out_margin_at_the_budget_grows(barrier: str, objective: str) -> None:
    method = ods.TrainedODESteer(barrier=barrier, objective=objective, epochs=3, **QUICK)
    steering = fit(method)
    record = [each["at_budget"] for each in steering.receipts["epochs"]]
    assert len(record) == 4
    assert max(record) > record[0] > 0
    receipt = steering.receipts["kl"]
    assert receipt["measured"] == pytest.approx(0.02, rel=0.04)
    assert receipt["margin"] > 0


@pytest.mark.parametrize("barrier", BARRIERS)
def test_the_same_seed_gives_the_same_field_and_weights_stay(barrier: str, tmp_path) -> None:
    method = ods.TrainedODESteer(barrier=barrier, epochs=1, **QUICK)
    one, two, other = (fit(method, seed=seed) for seed in (3, 3, 4))
    rows = torch.randn(5, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one(rows), two(rows))
    assert not torch.equal(one(rows), other(rows))
    loaded = ods.load(one.save_pretrained(tmp_path / "steering"))
    assert torch.equal(loaded(rows), one(rows))
    assert not any(tensor.requires_grad for tensor in one.field.buffers())


def test_without_a_budget_the_dose_is_the_one_given() -> None:
    steering = fit(ods.TrainedODESteer(epochs=0, **QUICK), strength=ods.Angle(0.07))
    assert steering.strength == ods.Angle(0.07) and "kl" not in steering.receipts


def test_it_is_trained_at_one_layer() -> None:
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    with pytest.raises(ValueError, match="trained at one layer"):
        ods.fit(model, tokenizer, CONTRAST, "odesteer-trained", [0, 1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"objective": "x"}, "objective"), ({"barrier": "x"}, "barrier"), ({"lr": 0.0}, "lr > 0")],
)
def test_settings_that_are_none_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ods.TrainedODESteer(**settings)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("barrier", BARRIERS)
def test_the_field_starts_along_the_direction(barrier: str, rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    direction, rows = torch.randn(8, generator=generator), torch.randn(20, 8, generator=generator)
    field = FieldParameters(barrier, rank, direction, rows, seed=0).requires_grad_(False).field()
    moved = field(rows)
    assert bool((moved @ direction > 0).all())
    if barrier != "quadratic":  # whose field is tangent to the sphere
        torch.testing.assert_close(moved, (direction / direction.norm()).expand_as(moved))


def test_the_losses_are_those_of_their_papers() -> None:
    texts = Likelihoods(
        log_q=torch.tensor([[-6.0, -8.0]]),
        log_p=torch.tensor([[-9.0, -7.0]]),
        tokens=torch.tensor([[3, 2]]),
    )
    sigmoid = torch.sigmoid(torch.tensor([0.2 * (3.0 + 1.0), 2.0 * -2.0 + 4.0, -4.0 + 2.0]))
    losses = {name: float(each.loss(texts, 0.2)) for name, each in OBJECTIVES.items()}
    assert losses["dpo"] == losses["bipo"] == pytest.approx(float(-sigmoid[0].log()) / 0.2)
    assert losses["lm"] == 2.0
    # p finds the wanted text less likely by 2 nats, which is the factor.
    assert losses["reps"] == pytest.approx(float(-sigmoid[1].log()))
    assert losses["split"] == pytest.approx(2.0 + 0.6 * 4.0)  # the gap of 2 exceeds the margin
    backwards = texts.swapped()
    assert float(OBJECTIVES["reps"].loss(backwards, 0.2)) == pytest.approx(float(-sigmoid[2].log()))
    assert float(OBJECTIVES["split"].loss(backwards, 0.2)) == pytest.approx(
        4.0 + 0.6 * 2.0 + 4.0 * (0.5 + 2.0)
    )


@pytest.mark.parametrize("angle", [0.1, -0.1])
def test_batches_of_a_step_add_up_to_the_gradient_of_one(
    angle: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.model("llama").requires_grad_(False)
    texts = [
        PromptWithAnswers([1, *range(7, 9 + i % 3)], [[*range(10, 12 + i)]]) for i in range(12)
    ]
    pairs = [Pair(texts[i], texts[-1 - i]) for i in range(6)]
    direction, rows = torch.randn(2, 9, tiny.WIDTH, generator=torch.Generator().manual_seed(0))
    results = []
    for tokens in (10**6, 64, 1):
        monkeypatch.setattr(train, "default_batch_tokens", lambda _device, size=tokens: size)
        parameters = FieldParameters("quadratic", 3, direction[0], rows, seed=0)
        step = _batches(model, pairs, 1)
        method = ods.TrainedODESteer(objective="reps")
        nats = _accumulate(parameters, method, step, angle, 10.0, "last+generated")
        gradients = [each.grad for each in parameters.parameters()]
        results.append((len(step), nats, gradients))
    counts, nats, gradients = zip(*results, strict=True)
    assert counts[0] == 1 < counts[1] < counts[2] == 6
    assert nats == pytest.approx([nats[0]] * 3, rel=1e-4)
    for parts in gradients[1:]:
        torch.testing.assert_close(parts, gradients[0], rtol=1e-4, atol=1e-5)


class Interrupted(Exception):
    pass


def interrupted(method: ods.Method, cache: Path) -> Path:
    """Interrupt a fit in its third epoch; return its checkpoint."""

    def interrupt(done: int, total: int) -> None:
        if (done, total) == (5, 6):  # two steps an epoch
            raise Interrupted

    with pytest.raises(Interrupted):
        fit(method, cache=cache, progress=interrupt)
    [path] = cache.glob("*/training/*")
    return path


@pytest.mark.parametrize(("barrier", "lr"), [("quadratic", 3e-3), ("network", 0.3)])
def test_an_interrupted_training_continues_to_the_same_bits(
    barrier: str, lr: float, tmp_path: Path
) -> None:
    method = ods.TrainedODESteer(barrier=barrier, lr=lr, objective="bipo", epochs=3, **QUICK)
    path = interrupted(method, tmp_path)
    fit(replace(method, epochs=0), cache=tmp_path)
    assert path.exists()  # it is of another run
    calls: list[tuple[int, int]] = []
    resumed = fit(method, cache=tmp_path, progress=lambda *call: calls.append(call))
    assert [done for done, total in calls if total == 6] == [5, 6]
    assert not path.exists()
    whole = fit(method)
    best = np.argmax([epoch["at_budget"] for epoch in whole.receipts["epochs"]])
    assert (best == 3) == (lr < 0.1)  # else it is one of before the interruption
    assert resumed.receipts == whole.receipts and resumed.strength == whole.strength
    for one, other in zip(resumed.field.buffers(), whole.field.buffers(), strict=True):
        assert torch.equal(one, other)


def test_a_damaged_checkpoint_is_as_good_as_none(tmp_path: Path) -> None:
    method = ods.TrainedODESteer(epochs=3, **QUICK)
    path = interrupted(method, tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    calls: list[tuple[int, int]] = []
    fit(method, cache=tmp_path, progress=lambda *call: calls.append(call))
    assert [done for done, total in calls if total == 6] == [1, 2, 3, 4, 5, 6]


def test_texts_that_are_no_pairs_are_paired_by_lot() -> None:
    texts: list[Any] = list("abcdefg")
    pairs = _pairs(texts, np.array([0, 1, 2, 4, 5, 6]), 4, np.random.default_rng(0))
    assert [tuple(pair) for pair in pairs] == [("a", "e"), ("b", "f"), ("c", "g")]
    uneven = _pairs(texts, np.array([0, 1, 2, 3, 4]), 4, np.random.default_rng(0))
    assert sorted(pair.wanted for pair in uneven) == ["a", "b", "c", "d"]
    assert {pair.unwanted for pair in uneven} == {"e"}
