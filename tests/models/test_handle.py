"""A handle undoes all its changes, and its statistics are true."""

import copy
import pickle

import pytest
import torch
from tests.helpers.models import (
    ARCHITECTURES,
    DEPTH,
    WIDTH,
    block_outputs,
    constant,
    hooked,
    model,
    prompt,
    quadratic,
)

from odesteer import Angle, PerRow, Steering, Target, TruthFlow
from odesteer.models.layers import find_layers
from odesteer.ode import ConstantField, LinearBarrier

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
IDS = torch.cat([prompt(9, seed=1), prompt(9, seed=2), prompt(9, seed=3)])


def forward(net):
    return block_outputs(net, IDS)


def is_clean(net):
    return not hooked(net) and "generate" not in vars(net)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_handles_come_off_in_any_order_and_leave_the_model_as_it_was(order):
    net = model()
    _, plain = forward(net)
    kind, modules = type(net), [type(m) for m in net.modules()]
    handles = [s.attach(net) for s in (constant(0), quadratic(1), constant(1, seed=4))]
    assert type(net) is kind
    assert [type(m) for m in net.modules()] == modules
    for i in order:
        assert not is_clean(net)
        handles[i].remove()
        handles[i].remove()
    assert is_clean(net)
    assert torch.equal(forward(net)[1], plain)


@every_architecture
def test_everything_comes_off_after_the_block_and_after_an_exception_in_it(name):
    net = model(name)
    with constant().attach(net):
        pass
    assert is_clean(net)
    with pytest.raises(KeyError), constant().attach(net), quadratic(2).attach(net):
        raise KeyError
    assert is_clean(net)


def test_a_handle_that_was_removed_is_not_entered_again_unsteered():
    net = model()
    handle = constant().attach(net)
    with handle:
        pass
    with pytest.raises(ValueError, match=r"taken off its model.*attach it anew"), handle:
        pass


def test_a_copy_of_its_hook_does_nothing_once_it_is_removed():
    net = model()
    with constant().replace(site="heads").attach(net) as handle:
        module = find_layers(net)[1].self_attn.o_proj
        (hook,) = module._forward_pre_hooks.values()
    # Quantising in place swaps modules, and takes hooks over to the new ones.
    copied = module.register_forward_pre_hook(hook)
    _, after = forward(net)
    copied.remove()
    assert torch.equal(after, forward(net)[1])
    assert handle.stats()["tokens"] == 0


def test_an_exception_inside_the_model_is_forgotten_by_the_next_call():
    net, steering = model(), constant()
    with steering.attach(net):
        _, expected = forward(net)
        with pytest.raises(IndexError):
            net(input_ids=torch.tensor([[10**6]]))
        with pytest.raises(IndexError):
            net.generate(torch.tensor([[10**6, 3, 4]]), max_new_tokens=2)
        assert torch.equal(forward(net)[1], expected)
    assert is_clean(net)


def test_a_generate_of_the_models_own_is_given_back():
    net = model()
    own = net.generate = lambda *_, **__: "mine"
    with constant().attach(net):
        assert net.generate(IDS) == "mine"
    assert net.generate is own


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickle.dumps], ids=["copy", "pickle"])
def test_a_steered_model_refuses_to_be_duplicated(duplicate):
    net = model()
    with constant().attach(net), pytest.raises(TypeError, match="while it is steered: remove"):
        duplicate(net)


def test_the_model_can_be_copied_and_pickled_afterwards():
    net = model()
    with constant().attach(net):
        forward(net)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(forward(twin)[1], forward(net)[1])


def test_weights_and_gradients_are_left_alone():
    net = model()
    weights = copy.deepcopy(net.state_dict())
    with quadratic().attach(net):
        net(input_ids=IDS, labels=IDS).loss.backward()
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


def test_set_strength_acts_at_once():
    net = model()
    with constant(strength=1.0).attach(net) as handle:
        one = forward(net)[1]
        handle.set_strength(0.0)
        assert torch.equal(forward(net)[1], (plain := forward(net)[1]))
        handle.set_strength(1.0)
        assert torch.equal(forward(net)[1], one)
    assert torch.equal(forward(net)[1], plain)


def test_stats_measure_what_happened():
    net, direction = model(), torch.arange(WIDTH) / 100
    steering = Steering(ConstantField(direction, LinearBarrier(direction, 0.1)), 2.0, layer=1)
    plain, _ = forward(net)
    rows = plain[1].reshape(-1, WIDTH)
    with steering.attach(net, positions="all", measure=True) as handle:
        forward(net)
        stats = handle.stats()
    length = 2 * float(direction.norm())
    assert stats["tokens"] == stats["steered"] == IDS.numel()
    assert stats["moved"] == 1.0
    assert stats["displacement"] == pytest.approx(length, rel=1e-4)
    assert stats["relative_displacement"] == pytest.approx(
        float((length / rows.norm(dim=-1)).mean()), rel=1e-4
    )
    assert stats["log_odds_before"] == pytest.approx(
        float(steering.log_odds(rows).mean()), abs=1e-4
    )
    climb = stats["log_odds_after"] - stats["log_odds_before"]
    assert climb == pytest.approx(2 * float(direction @ direction), rel=1e-3)


def test_stats_of_a_target_tell_the_share_that_moved():
    net = model()
    direction = torch.ones(WIDTH)
    steering = Steering(ConstantField(direction, LinearBarrier(direction)), layer=1)
    before = steering.probability(forward(net)[0][1])
    targeted = steering.with_strength(Target(0.5, budget=100.0))
    with targeted.attach(net, positions="all", measure=True) as handle:
        forward(net)
    assert 0 < handle.stats()["moved"] < 1
    assert handle.stats()["moved"] == pytest.approx(float((before < 0.5).float().mean()))


@pytest.mark.parametrize("positions", ["all", "last+generated"])
def test_stats_say_how_tokens_ended_and_their_shares_add_up(positions):
    net = model()
    steering = quadratic()
    ends = {"reached", "already_there", "budget_spent", "stuck", "infeasible", "not_finite"}
    rows = forward(net)[0][1] if positions == "all" else forward(net)[0][1][:, -1]
    p = float(steering.probability(rows).median())
    for dose in (Target(p, budget=0.5), PerRow([Target(p, budget=0.5)] * 3), Angle(0.1), 0.0):
        targeted = steering.with_strength(dose)
        with targeted.attach(net, positions=positions, measure=True) as handle:
            forward(net)
            told = handle.stats()
        counts = targeted.solution(rows).counts()
        for name in ends:
            assert told[name] == pytest.approx(counts.get(name, 0) / rows[..., 0].numel()), name
    with steering.attach(net, positions=positions) as handle:
        forward(net)
    assert not ends & set(handle.stats())


def test_stats_of_a_field_that_reads_the_prompt_say_how_tokens_ended():
    net = model()
    rows = forward(net)[0][1].flatten(0, 1)
    steering = TruthFlow(epochs=1, min_steps=1).fit(
        rows[:12], rows[12:24], prompts=rows[:12], layer=1
    )
    with steering.attach(net, measure=True) as handle:
        forward(net)
    assert handle.stats()["budget_spent"] == 1.0


@pytest.mark.parametrize(
    ("steering", "positions", "words"),
    [
        (constant().replace(layer=None), "all", "does not know its layer"),
        (constant().replace(layer=DEPTH), "all", "Layer 4 is out of range.*4 decoder blocks"),
        (constant().replace(layer=-5), "all", "Layer -5 is out of range"),
        (Steering(ConstantField(torch.ones(7)), layer=0), "all", r"width 7.*LlamaFor.*width 32"),
        (constant(), "lst", r"positions='lst': .* did you mean 'last'.*last\+generated"),
    ],
)
def test_what_cannot_be_attached_is_refused_and_leaves_nothing(steering, positions, words):
    net = model()
    with pytest.raises(ValueError, match=words):
        steering.attach(net, positions=positions)
    assert is_clean(net)


def test_a_mask_of_another_batch_is_refused():
    net = model()
    with constant().attach(net, positions=torch.ones(2, 9)), pytest.raises(ValueError, match="2 r"):
        forward(net)
