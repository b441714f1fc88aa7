"""Attached, a steering moves the chosen tokens of one block's output and nothing else."""

import pytest
import torch
from tests.helpers.models import (
    ARCHITECTURES,
    DEPTH,
    block_outputs,
    constant,
    model,
    padded,
    prompt,
    quadratic,
)

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
both_fields = pytest.mark.parametrize("make", [constant, quadratic])
IDS = torch.cat([prompt(9, seed=1), prompt(9, seed=2), prompt(9, seed=3)])
EVERY = torch.ones(IDS.shape, dtype=torch.bool)
LAST = EVERY.cumsum(dim=1) == IDS.shape[1]


def forward(net, ids=IDS, mask=None):
    return block_outputs(net, ids, mask)


@every_architecture
@both_fields
@pytest.mark.parametrize(
    ("positions", "chosen"),
    [
        ("all", EVERY),
        ("prompt", EVERY),
        ("last+generated", LAST),
        ("generated", ~EVERY),
        (torch.arange(9) % 3 == 1, (torch.arange(9) % 3 == 1).expand(3, 9)),
        (torch.arange(27).reshape(3, 9) % 5 == 1, torch.arange(27).reshape(3, 9) % 5 == 1),
        (torch.tensor([True, False]), (torch.arange(9) == 0).expand(3, 9)),
    ],
    ids=["all", "prompt", "last+generated", "generated", "[t]", "[b, t]", "short mask"],
)
def test_only_the_chosen_tokens_move_and_exactly_to_a_of_T(name, make, positions, chosen):
    net, steering = model(name), make(layer=1)
    plain, _ = forward(net)
    with steering.attach(net, positions=positions):
        steered, _ = forward(net)
    assert torch.equal(steered[0], plain[0])
    assert torch.equal(steered[1][~chosen], plain[1][~chosen])
    assert torch.equal(steered[1][chosen], steering(plain[1][chosen]))
    assert bool((steered[1][chosen] != plain[1][chosen]).any(dim=-1).all())
    # Causality: what comes before the first chosen token never changes, at any depth.
    before = chosen.cumsum(dim=1) == 0
    for above in (2, 3):
        assert torch.equal(steered[above][before], plain[above][before])


@every_architecture
@pytest.mark.parametrize("layer", range(DEPTH))
def test_every_layer_can_be_steered_also_counted_from_the_end(name, layer):
    net = model(name)
    with constant(layer).attach(net):
        one = forward(net)[1]
    with constant(layer - DEPTH).attach(net):
        two = forward(net)[1]
    assert torch.equal(one, two)
    assert not torch.equal(one, forward(net)[1])


@every_architecture
@both_fields
@pytest.mark.parametrize("positions", ["last+generated", "all", "prompt"])
def test_padding_on_either_side_changes_nothing(name, make, positions):
    net, prompts = model(name), [prompt(t, seed=t) for t in (3, 9, 6)]
    with make(layer=1).attach(net, positions=positions):
        alone = [forward(net, ids)[1][0] for ids in prompts]
        for left in (True, False):
            ids, mask = padded(prompts, left)
            _, logits = forward(net, ids, mask)
            for i, expected in enumerate(alone):
                real = logits[i][mask[i].bool()]
                torch.testing.assert_close(real, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("positions", ["last+generated", "all", "prompt"])
def test_padding_tokens_are_never_steered(positions):
    net, steering = model(), constant()
    for left in (True, False):
        ids, mask = padded([prompt(3), prompt(9), prompt(6)], left)
        plain, steered = forward(net, ids, mask)[0], None
        with steering.attach(net, positions=positions) as handle:
            steered = forward(net, ids, mask)[0]
        pads = mask == 0
        assert torch.equal(steered[1][pads], plain[1][pads])
        assert handle.stats()["steered"] == (3 if positions == "last+generated" else 18)


@both_fields
@pytest.mark.parametrize("rows", [[0], [2, 0], [], [0, 1, 2]], ids=str)
def test_rows_steers_those_rows_and_leaves_the_others_bit_for_bit(make, rows):
    net, steering = model(), make(layer=1)
    plain, plain_logits = forward(net)
    with steering.attach(net, positions="all", rows=rows):
        steered, logits = forward(net)
    for i in range(3):
        if i in rows:
            torch.testing.assert_close(steered[1][i], steering(plain[1][i]))
        else:
            assert torch.equal(logits[i], plain_logits[i])


def test_two_steerings_on_rows_of_their_own_share_a_batch():
    net, one, two = model(), constant(), quadratic(layer=2)
    logits = []
    for steering in (one, two):
        with steering.attach(net):
            logits.append(forward(net)[1])
    with one.attach(net, rows=[1]), two.attach(net, rows=[0, 2]):
        _, together = forward(net)
    expected = torch.stack([logits[1][0], logits[0][1], logits[1][2]])
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rows", [[3], [0, 7], [-4]])
def test_rows_that_the_batch_does_not_have_are_refused(rows):
    net = model()
    with constant().attach(net, rows=rows), pytest.raises(ValueError, match=r"rows .* do not fit"):
        forward(net)


@every_architecture
@both_fields
def test_strength_zero_leaves_the_logits_bit_for_bit(name, make):
    net = model(name)
    _, plain = forward(net)
    with make(layer=1).with_strength(0.0).attach(net, positions="all"):
        assert torch.equal(forward(net)[1], plain)


@every_architecture
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_of_the_model_is_kept_and_a_of_T_rounded_once(name, dtype):
    net, steering = model(name).to(dtype), quadratic()
    plain, _ = forward(net)
    with steering.attach(net, positions="all"):
        steered, logits = forward(net)
    assert steered[1].dtype == logits.dtype == dtype
    assert torch.equal(steered[1], steering(plain[1]))


def test_two_layers_are_steered_at_once():
    net, one, two = model(), constant(1), quadratic(3)
    with one.attach(net, positions="all"):
        below, _ = forward(net)
        with two.attach(net, positions="all"):
            both, _ = forward(net)
    assert all(torch.equal(both[i], below[i]) for i in range(3))
    assert torch.equal(both[3], two(below[3]))


def test_two_steerings_at_one_layer_act_one_after_the_other():
    net, one, two = model(), constant(1), quadratic(1)
    plain, _ = forward(net)
    with one.attach(net, positions="all"), two.attach(net, positions="all"):
        both, _ = forward(net)
    assert torch.equal(both[1], two(one(plain[1])))
