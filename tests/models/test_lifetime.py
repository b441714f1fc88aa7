"""Handles that are forgotten, graphs that are compiled, passes that are run again, threads."""

import gc
import sys
import threading
import warnings
from contextlib import contextmanager

import pytest
import torch
from tests.helpers.models import (
    WIDTH,
    block_outputs,
    constant,
    hooked,
    model,
    padded,
    prompt,
    quadratic,
)

from odesteer import Steering
from odesteer.models.hooks.registration import force_recompile, undo_all
from odesteer.models.layers import find_layers
from odesteer.ode import ConstantField

IDS = torch.cat([prompt(9, seed=1), prompt(9, seed=2)])


def logits(net, ids=IDS, mask=None):
    return block_outputs(net, ids, mask)[1]


def heads(seed=0):
    return constant(layer=1, seed=seed).replace(site="heads")


# ---- forgotten


def test_a_forgotten_handle_comes_off_and_says_what_to_do():
    net = model()
    plain = logits(net)
    with pytest.warns(RuntimeWarning, match=r"keep the handle: handle = steering\.attach"):
        constant().attach(net)
        gc.collect()
    assert torch.equal(logits(net), plain)
    assert not hooked(net)
    assert "generate" not in vars(net)


def test_a_forgotten_one_leaves_the_others_on():
    net = model()
    with quadratic(2).attach(net):
        alone = logits(net)
        with pytest.warns(RuntimeWarning):
            constant().attach(net)
        assert torch.equal(logits(net), alone)


def test_handles_of_several_layers_come_off_together():
    net = model()
    with pytest.warns(RuntimeWarning):
        Steering.of((constant(0), constant(2))).attach(net)
    assert not hooked(net)


def test_a_with_block_that_names_no_handle_keeps_it():
    net = model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with constant().attach(net):
            gc.collect()
            assert hooked(net)


# ---- compiled


def test_every_change_of_steerings_is_seen_by_a_compiled_graph():
    net = model()
    torch._dynamo.reset()
    try:
        graph = torch.compile(net, backend="eager")
        plain = logits(net)
        for seed in range(2):  # the second comes after all of the first is gone
            first, second = constant(1, seed=seed), constant(1, seed=seed + 7)
            with first.attach(net, positions="all") as handle:
                with second.attach(net, positions="all"):
                    torch.testing.assert_close(logits(graph), logits(net))
                torch.testing.assert_close(logits(graph), logits(net))
                handle.set_strength(-1.0)
                torch.testing.assert_close(logits(graph), logits(net))
            torch.testing.assert_close(logits(graph), plain)
    finally:
        torch._dynamo.reset()


def test_a_compiled_model_can_be_attached_to_and_shares_its_tracker():
    net = model()
    with constant().attach(net):
        expected = logits(net)
    torch._dynamo.reset()
    try:
        graph = torch.compile(net, backend="eager")
        with constant().attach(graph):
            torch.testing.assert_close(logits(graph), expected)
            assert torch.equal(logits(net), expected)
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_marks_come_off_in_any_order_and_give_a_forward_of_its_own_back(order):
    block = find_layers(model())[1]
    for own in (None, lambda *_, **__: "own"):
        if own is not None:
            block.forward = own
        undo: list = []
        for _ in range(3):
            force_recompile(undo, block)
        if own is not None:
            assert block.forward() == "own"
        for i in order:
            assert vars(block)["forward"] is not own
            undo[i]()
        assert vars(block).get("forward") is own


# ---- gradients


@pytest.mark.parametrize("steering", [constant(), quadratic()], ids=["vector", "ODE"])
def test_gradients_pass_as_through_a_constant_displacement(steering):
    net = model()
    embeddings = net.get_input_embeddings()
    plain = block_outputs(net, IDS)[0][1]
    shift = steering(plain) - plain

    def gradient():
        net.zero_grad()
        net(input_ids=IDS, labels=IDS).loss.backward()
        return embeddings.weight.grad.clone()

    with steering.attach(net, positions="all"):
        steered = gradient()
    hook = find_layers(net)[1].register_forward_hook(lambda _m, _a, out: out + shift)
    expected = gradient()
    hook.remove()
    torch.testing.assert_close(steered, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [constant, quadratic, heads], ids=["vector", "ODE", "heads"])
def test_checkpointing_changes_nothing_also_inside_a_block_and_under_padding(make, reentrant):
    ids, mask = padded([prompt(3), prompt(9), prompt(6)])
    results = []
    for recompute in (False, True):
        net = model().train()
        if recompute:
            net.gradient_checkpointing_enable({"use_reentrant": reentrant})
            net.enable_input_require_grads()
        with make().attach(net) as handle:
            net(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
            steered = handle.stats()["steered"]
        results.append((steered, [p.grad for p in net.parameters()]))
    (count, one), (again, two) = results
    assert again == count == 3  # counted once, though run twice
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


# ---- threads


def test_steerings_may_come_and_go_in_one_thread_while_another_generates():
    net, errors = model(), []
    stop = threading.Event()

    def come_and_go():
        try:
            while not stop.is_set():
                with constant(2).attach(net), heads().attach(net):
                    pass
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=come_and_go)
    with constant(1).attach(net) as handle:
        thread.start()
        for _ in range(10):
            net.generate(IDS, max_new_tokens=4, do_sample=False)
        stop.set()
        thread.join()
        assert handle.stats()["steered"] == 10 * 2 * 4
    assert not errors
    assert not hooked(net)
    assert "generate" not in vars(net)
    assert all("forward" not in vars(module) for module in net.modules())


def test_a_call_on_its_way_survives_that_the_last_steering_comes_off_under_it():
    net, errors, done = model(), [], []
    stop = threading.Event()

    def speak():
        try:
            while not stop.is_set():
                done.append(net.generate(IDS, max_new_tokens=4, do_sample=False))
        except Exception as error:
            errors.append(error)

    speakers = [threading.Thread(target=speak) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        for speaker in speakers:
            speaker.start()
        while len(done) < 60 and not errors:
            with constant(1).attach(net, positions="generated"):
                stop.wait(0.003)
            stop.wait(0.003)
    finally:
        stop.set()
        for speaker in speakers:
            speaker.join()
        sys.setswitchinterval(interval)
    assert not errors, errors[0]
    assert not hooked(net)


class Stop(Exception):
    """Thrown between two lines, as Ctrl-C is."""


FILES = ("hooks/handle.py", "hooks/registration.py", "hooks/token_tracker.py")


@contextmanager
def stopped_at(count):
    """Throw `Stop` before line `count` of what puts hooks on and takes them off."""
    left = count

    def trace(frame, event, _argument):
        nonlocal left
        if not frame.f_code.co_filename.endswith(FILES):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Stop
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.filterwarnings("ignore:A steering was taken off its model")
@pytest.mark.parametrize("make", [constant, heads])
def test_nothing_is_left_wherever_an_exception_of_elsewhere_ends_attaching_or_removing(make):
    net, steering, count, stopped = model(), make(), 0, True
    while stopped:
        count += 1
        stopped = False
        try:
            with stopped_at(count), steering.attach(net):
                pass
        except Stop:
            stopped = True
        assert not hooked(net), count
        assert "generate" not in vars(net), count
        assert all("forward" not in vars(module) for module in net.modules()), count
    assert count > 150


def test_what_was_cut_off_is_undone_by_the_next_call():
    done, undo = [], []

    def fail_once():
        done.append("second")
        if len(done) == 1:
            raise KeyboardInterrupt

    undo += [lambda: done.append("first"), fail_once]
    with pytest.raises(KeyboardInterrupt):
        undo_all(undo)
    undo_all(undo)
    assert done == ["second", "second", "first"] and not undo


def test_a_field_of_another_width_is_refused_for_heads_too():
    narrow = Steering(ConstantField(torch.ones(WIDTH + 1)), layer=0).replace(site="heads")
    with pytest.raises(ValueError, match="width"):
        narrow.attach(model())


def heads_gradients(reentrant, recompute, batches, backward):
    """Gradients of a steered model under `backward`, which gets the losses of both batches."""
    net = model().train()
    if recompute:
        net.gradient_checkpointing_enable({"use_reentrant": reentrant})
        net.enable_input_require_grads()
    with heads().attach(net):
        losses = [
            net(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False).loss
            for ids, mask in batches
        ]
        backward(*losses)
    return [p.grad for p in net.parameters()]


def together(one, two):
    (one + 3 * two).backward()


def latest_first(one, two):
    (3 * two).backward()
    one.backward()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("backward", [together, latest_first])
def test_finding_8_two_passes_of_one_shape_are_each_run_again_as_they_were(reentrant, backward):
    texts = [prompt(9, seed=1), prompt(3, seed=2)]
    batches = [padded(texts), padded(texts[::-1]), padded(texts, left=False)]
    for pair in (batches[:2], batches[1:]):
        expected = heads_gradients(reentrant, False, pair, backward)
        gradients = heads_gradients(reentrant, True, pair, backward)
        for one, other in zip(expected, gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_finding_8_a_pass_from_before_the_steering_is_not_run_again_at_a_guess(reentrant):
    net = model().train()
    net.gradient_checkpointing_enable({"use_reentrant": reentrant})
    net.enable_input_require_grads()
    loss = net(input_ids=IDS, labels=IDS, use_cache=False).loss
    with heads().attach(net), pytest.raises(RuntimeError, match="attach before the forward pass"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_finding_8_backward_after_the_with_block_says_what_to_do(reentrant, again):
    net = model().train()
    net.gradient_checkpointing_enable({"use_reentrant": reentrant})
    net.enable_input_require_grads()
    with heads().attach(net):
        loss = net(input_ids=IDS, labels=IDS, use_cache=False).loss
    handle = heads().attach(net) if again else None
    with pytest.raises(RuntimeError, match="inside the same `with` block") as error:
        loss.backward()
    assert "\n" not in str(error.value)
    if handle is not None:
        handle.remove()


@pytest.mark.parametrize("make", [constant, heads])
def test_backward_after_the_with_block_needs_no_steering_without_checkpointing(make):
    gradients = []
    for inside in (True, False):
        net = model().train()
        with make().attach(net):
            loss = net(input_ids=IDS, labels=IDS).loss
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*gradients, strict=True))
