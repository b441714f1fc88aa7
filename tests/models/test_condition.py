"""A steering under a condition acts on exactly the rows whose prompts satisfy it."""

import gc

import pytest
import torch
from tests.helpers.models import block_outputs, constant, hooked, model, padded, prompt, quadratic

from odesteer import Angle, Steering, Target
from odesteer.models.hooks.condition import Threshold

PROMPTS = [prompt(t, seed=t) for t in (4, 9, 7, 5)]
IDS, MASK = padded(PROMPTS)
ACTS = constant(1, strength=4.0)


def condition(net, block: int = 1) -> tuple[Threshold, list[bool]]:
    """A condition that holds for two of the prompts, and for which, read without odesteer."""
    reads = quadratic(block)
    ends = torch.stack([block_outputs(net, ids)[0][block][0, -1] for ids in PROMPTS])
    probability = reads.probability(ends)
    middle = float(probability.sort().values[1:3].mean())
    return reads > middle, (probability > middle).tolist()


def generate(net, ids=IDS, mask=MASK, **how):
    how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0} | how
    return net.generate(ids, attention_mask=mask, **how)[:, ids.shape[1] :]


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize(
    "how", [{}, {"use_cache": False}, {"prefill_chunk_size": 4}, {"num_beams": 2}], ids=str
)
def test_rows_that_satisfy_it_are_steered_and_no_others(block, how):
    net = model()
    when, holds = condition(net, block)
    assert sum(holds) == 2
    plain = generate(net, **how)
    with ACTS.attach(net):
        steered = generate(net, **how)
    assert all(not torch.equal(a, b) for a, b in zip(plain, steered, strict=True))
    with ACTS.attach(net, when=when) as handle:
        written = generate(net, **how)
    for row, (given, each) in enumerate(zip(holds, written, strict=True)):
        assert torch.equal(each, steered[row] if given else plain[row])
    beams = handle.trace().any(dim=1).reshape(4, -1)
    assert beams.tolist() == [[given] * how.get("num_beams", 1) for given in holds]


def test_less_is_the_other_rows_and_other_texts_are_read_anew():
    net = model()
    when, holds = condition(net)
    less = Threshold(when.part, when.probability, above=False)
    assert (quadratic() < 0.3).above is False and (0.3 < quadratic()).above
    with ACTS.attach(net, when=less, positions="generated[:2]") as handle:
        generate(net)
        assert handle.trace().any(dim=1).tolist() == [not given for given in holds]
        for ids, given in zip(PROMPTS, holds, strict=True):
            generate(net, ids, torch.ones_like(ids))
            assert bool(handle.trace().any()) == (not given)
        generate(net)
        assert handle.trace().sum(dim=1).tolist() == [0 if given else 2 for given in holds]


def test_conditions_are_joined_and_negated():
    net = model()
    first, at_first = condition(net, 0)
    second, at_second = condition(net, 1)
    assert at_first != at_second
    both = list(zip(at_first, at_second, strict=True))
    for when, holds in (
        (first & second, [a and b for a, b in both]),
        (first | second, [a or b for a, b in both]),
        (~first, [not a for a in at_first]),
        (~(first | second) | (first & second), [a == b for a, b in both]),
    ):
        with ACTS.attach(net, when=when) as handle:
            generate(net)
        assert handle.trace().any(dim=1).tolist() == holds
    assert not hooked(net)
    with pytest.raises(ValueError, match="after block 2, too late"):
        ACTS.attach(net, when=first & (quadratic(2) > 0.5))
    assert not hooked(net)


def test_several_layers_and_rows_of_their_own_share_one_reading():
    net = model()
    when, holds = condition(net, 0)
    several = Steering.of([constant(0), constant(1).with_strength(Angle(0.5))])
    with several.attach(net, when=when, rows=[0, 1]) as handle:
        generate(net)
    wanted = [given and row < 2 for row, given in enumerate(holds)]
    for part in handle.parts:
        assert part.trace().any(dim=1).tolist() == wanted
    assert not hooked(net)


@pytest.mark.filterwarnings("ignore:A steering was taken off")
def test_the_reader_comes_off_with_a_forgotten_handle_and_a_refused_one():
    net = model()
    handle = ACTS.attach(net, when=condition(net)[0])
    assert hooked(net)
    del handle
    gc.collect()
    assert not hooked(net)
    with pytest.raises(ValueError, match="too late"):
        ACTS.attach(net, when=quadratic(2) > 0.5)
    assert not hooked(net)


@pytest.mark.parametrize(
    ("attach", "words"),
    [
        (lambda net: ACTS.attach(net, when=quadratic(2) > 0.5), "after block 2, too late .* 1"),
        (
            lambda net: ACTS.replace(site="heads").attach(net, when=quadratic(1) > 0.5),
            "the heads of block 1",
        ),
        (
            lambda net: ACTS.attach(net, "all-prompt[:1]", when=quadratic(0) > 0.5),
            r"positions='all-prompt\[:1\]' may steer tokens before it: use last\+generated",
        ),
        (
            lambda net: ACTS.attach(net, torch.ones(3), when=quadratic(0) > 0.5),
            "a mask may steer",
        ),
        (lambda net: quadratic() > 1.5, "a probability between 0 and 1; got 1.5"),
        (lambda net: constant() > 0.5, "'custom' has no barrier to read"),
        (lambda net: Steering.of([quadratic(0), quadratic(1)]) > 0.5, "acts at layers"),
        (lambda net: quadratic().replace(site="heads") > 0.5, "not in heads"),
    ],
)
def test_what_cannot_be_a_condition_is_refused_in_one_line(attach, words):
    net = model()
    with pytest.raises(ValueError, match=words) as caught:
        attach(net)
    assert "\n" not in str(caught.value)
    assert not hooked(net)


def test_the_dose_of_what_is_read_does_not_matter():
    net = model()
    when, holds = condition(net)
    for dose in (0.0, Angle(-0.4), Target(0.9, 1.0)):
        same = Threshold(when.part.with_strength(dose), when.probability, above=True)
        with ACTS.attach(net, when=same) as handle:
            generate(net)
        assert handle.trace().any(dim=1).tolist() == holds
