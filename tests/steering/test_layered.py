"""Steering several layers, attention heads, and by what the prompt says."""

import pytest
import torch
from tests.helpers.models import (
    ARCHITECTURES,
    DEPTH,
    WIDTH,
    WORDS,
    block_outputs,
    constant,
    hooked,
    model,
    padded,
    prompt,
    quadratic,
    tokenizer,
)

import odesteer as ods
from odesteer import CAA, Angle, MiMiC, Steering, Target
from odesteer.extraction.extract import extract
from odesteer.fitting import read
from odesteer.models.chat_template import encode
from odesteer.models.hooks.attach import scoring
from odesteer.models.layers import attention_output, find_layers, head_width, input_width
from odesteer.ode import ConstantField, VectorField

PROMPTS = [prompt(t, seed=t) for t in (4, 9, 7)]
IDS, MASK = padded(PROMPTS)
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def texts(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        " ".join(WORDS[i] for i in torch.randint(len(WORDS), (6,), generator=generator))
        for _ in range(n)
    ]


CONTRAST = ods.Contrast.from_pairs(
    [("the cat", t) for t in texts(12, 1)], [("the cat", t) for t in texts(12, 2)], [*range(12)] * 2
)


def generate(net, **how):
    how = {"do_sample": False, "max_new_tokens": 6} | how
    return net.generate(IDS, attention_mask=MASK, **how)


# ---- several layers


def test_parts_are_kept_in_depth_order_and_act_as_if_attached_one_by_one():
    net = model()
    both = Steering.of((quadratic(layer=2, seed=1), constant(layer=1)))
    assert both.layer == (1, 2)
    with both.attach(net, positions="all"):
        together = block_outputs(net, IDS, MASK)[0]
    with (
        quadratic(layer=2, seed=1).attach(net, positions="all"),
        constant(layer=1).attach(net, positions="all"),
    ):
        apart = block_outputs(net, IDS, MASK)[0]
    plain = block_outputs(net, IDS, MASK)[0]
    assert all(torch.equal(x, y) for x, y in zip(together, apart, strict=True))
    assert torch.equal(together[0], plain[0])
    assert not torch.equal(together[1], plain[1])
    assert not hooked(net)


def test_a_part_that_does_not_fit_leaves_nothing_on_the_model():
    net = model()
    with pytest.raises(ValueError, match="Layer 9 is out of range"):
        Steering.of((constant(layer=1), constant(layer=9))).attach(net)
    assert not hooked(net)
    assert "generate" not in vars(net)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((), "at least one part"),
        ((constant(layer=None), constant(layer=1)), "needs a layer"),
        ((constant(layer=1), quadratic(layer=1)), r"at one place.*\[1, 1\].*join them"),
    ],
)
def test_parts_that_cannot_be_together_are_refused(parts, words):
    with pytest.raises(ValueError, match=words):
        Steering.of(parts)


def test_one_dose_is_spread_over_the_layers():
    both = Steering.of((quadratic(layer=1), quadratic(layer=2)))
    assert [part.dose for part in both.spread(Angle(0.4)).parts] == [Angle(0.2)] * 2
    assert [part.dose for part in both.with_strength(Angle(0.4)).parts] == [Angle(0.4)] * 2
    spread = both.spread(Target(0.9, budget=3.0))
    assert [part.dose for part in spread.parts] == [Target(0.9, budget=1.5)] * 2


def test_negation_and_the_handle_reach_every_layer():
    net = model()
    both = Steering.of((constant(layer=1), constant(layer=2)))
    with (~both).attach(net, positions="all") as handle:
        away = block_outputs(net, IDS, MASK)[0]
        assert handle.stats()["steered"] > 0
        handle.set_strength(0.0)
        idle = block_outputs(net, IDS, MASK)[0]
    plain = block_outputs(net, IDS, MASK)[0]
    assert torch.equal(idle[2], plain[2])
    step = constant().field.direction
    torch.testing.assert_close(away[1][MASK.bool()], (plain[1] - step)[MASK.bool()])


def test_it_is_saved_and_loaded_whole(tmp_path):
    both = Steering.of((quadratic(layer=1), constant(layer=2)))
    path = both.save_pretrained(tmp_path / "both")
    loaded = ods.load(path)
    assert isinstance(loaded, Steering)
    a = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    for one, two in zip(both.parts, loaded.parts, strict=True):
        assert torch.equal(one(a), two(a))
        assert (one.layer, one.dose, one.solver) == (two.layer, two.dose, two.solver)
    single = quadratic().save_pretrained(tmp_path / "one")
    assert torch.equal(ods.load(single)(a), quadratic()(a))


def test_the_backend_takes_it_for_all_prompts_or_for_some():
    backend = ods.TransformersBackend(model(), tokenizer())
    both = Steering.of((constant(layer=1, strength=3.0), constant(layer=2, strength=3.0)))
    prompts = ["the cat sat on", "a dog is"]
    sampling = ods.Sampling(max_new_tokens=5)
    steered = backend.generate(prompts, both, sampling)
    plain = backend.generate(prompts, None, sampling)
    assert backend.generate(prompts, [None, both], sampling) == [plain[0], steered[1]]
    assert steered != plain


# ---- fitted at several layers


def test_several_layers_are_fitted_each_from_its_own_activations():
    net, words = model(), tokenizer()
    both = ods.fit(net, words, CONTRAST, method="caa", layer=[2, 1])
    assert both.layer == (1, 2)
    for part in both.parts:
        alone = CAA().fit(*ods.activations(net, words, CONTRAST, part.layer))
        torch.testing.assert_close(part.field.direction, alone.field.direction)


@pytest.mark.parametrize("method", ["mimic", "linear-act"])
def test_later_layers_learn_from_negatives_that_the_earlier_ones_moved(method):
    net, words = model(), tokenizer()
    both = ods.fit(net, words, CONTRAST, method=method, layer=[1, 2])
    positive, plain = ods.activations(net, words, CONTRAST, 2)
    with Steering.of(both.parts[:1]).attach(net, positions="all"):
        moved = ods.activations(net, words, CONTRAST, 2)[1]
    assert not torch.allclose(plain, moved)
    expected = ods.METHODS[method]().fit(positive, moved, groups=CONTRAST.groups)
    torch.testing.assert_close(both.parts[1].field.state_dict(), expected.field.state_dict())
    apart = ods.fit(net, words, CONTRAST, method=method, layer=[1, 2], incremental=False)
    expected = ods.METHODS[method]().fit(positive, plain, groups=CONTRAST.groups)
    torch.testing.assert_close(apart.parts[1].field.state_dict(), expected.field.state_dict())
    assert not hooked(net)


def test_any_method_can_be_fitted_incrementally():
    """What CAA still has to do after the first layer did it all is less."""
    net, words = model(), tokenizer()
    both = ods.fit(net, words, CONTRAST, method="caa", layer=[1, 2], incremental=True)
    positive, _ = ods.activations(net, words, CONTRAST, 2)
    with Steering.of(both.parts[:1]).attach(net, positions="all"):
        moved = ods.activations(net, words, CONTRAST, 2)[1]
    torch.testing.assert_close(
        both.parts[1].field.direction, positive.mean(dim=0) - moved.mean(dim=0)
    )


def test_a_method_that_needs_pairs_gets_them_from_the_groups():
    uneven = ods.Contrast.from_pairs(
        texts(5, 1), texts(4, 2), groups=["a", "a", "b", "c", "c", "c", "b", "a", "a"]
    )
    paired = uneven.paired()
    assert paired.is_paired
    assert paired.groups[0] == ["a", "a", "b", "c"]
    net = model()
    assert ods.fit(net, tokenizer(), uneven, method="repe", layer=1).method == "repe"
    with pytest.raises(ValueError, match="nothing can be paired"):
        ods.Contrast.from_pairs(texts(2, 1), texts(1, 2), groups=[1, 2, 3]).paired()


# ---- attention heads


@every_architecture
def test_the_projection_that_mixes_the_heads_is_found(name):
    net = model(name)
    for block in find_layers(net):
        assert input_width(attention_output(block)) == 4 * head_width(net)


@every_architecture
def test_heads_are_moved_before_they_are_mixed_and_nothing_else_is(name):
    net = model(name)
    block = find_layers(net)[1]
    width = input_width(attention_output(block))
    direction = torch.randn(width, generator=torch.Generator().manual_seed(1))
    seen = {}

    def run(positions=None):
        hook = attention_output(block).register_forward_pre_hook(
            lambda _m, args: seen.update(heads=args[0])
        )
        try:
            return block_outputs(net, IDS, MASK)[0]
        finally:
            hook.remove()

    plain = run()
    before = seen["heads"]
    steering = Steering(ConstantField(direction), 1.0, layer=1, site="heads")
    with steering.attach(net, positions="all"):
        moved = run()
    torch.testing.assert_close(seen["heads"][MASK.bool()], (before + direction)[MASK.bool()])
    assert torch.equal(moved[0], plain[0])
    assert not torch.allclose(moved[1], plain[1])
    assert not hooked(net)


@every_architecture
def test_head_activations_are_what_the_projection_reads_at_the_last_token(name):
    net = model(name)
    rows = [row[0].tolist() for row in PROMPTS]
    got = extract(net, rows, [1], site="heads")[0]
    seen = []
    hook = attention_output(find_layers(net)[1]).register_forward_pre_hook(
        lambda _m, args: seen.append(args[0][0, -1])
    )
    with torch.no_grad():
        for row in PROMPTS:
            net(input_ids=row)
    hook.remove()
    torch.testing.assert_close(got, torch.stack(seen), atol=1e-5, rtol=1e-4)
    assert not hooked(net)


def test_iti_on_heads_is_fitted_over_the_whole_model_and_steers_it():
    net = model()
    method = ods.HeadITI(num_heads=3)
    steering = ods.fit(net, tokenizer(), CONTRAST, method=method, strength=5.0)
    chosen = sum(len(part.hyperparameters["heads"]) for part in steering.parts)
    assert chosen == 3
    assert all(part.hyperparameters["head_dim"] == WIDTH // 4 for part in steering.parts)
    plain = generate(net)
    with steering.attach(net):
        assert not torch.equal(generate(net), plain)
    assert torch.equal(generate(net), plain)


def test_a_model_without_such_heads_says_so():
    with pytest.raises(ValueError, match="has no attention whose heads"):
        attention_output(torch.nn.Linear(3, 3))


# ---- a field that reads the prompt


class _FromPrompt(VectorField):
    """v = the prompt's activation, reversed: a different constant for each prompt."""

    prompt_conditioned = True

    def forward(self, a):
        return a.flip(-1)

    def reversed(self):
        raise NotImplementedError


FROM_PROMPT = Steering(_FromPrompt(), 0.5, layer=1)


@every_architecture
def test_every_later_token_moves_by_what_its_own_prompt_said(name):
    net = model(name)
    plain = block_outputs(net, IDS, MASK)[0][1]
    with FROM_PROMPT.attach(net, positions="all"):
        moved = block_outputs(net, IDS, MASK)[0][1]
    expected = plain + 0.5 * plain[:, -1:].flip(-1)
    torch.testing.assert_close(moved[MASK.bool()], expected[MASK.bool()])


@every_architecture
@pytest.mark.parametrize("positions", ["last+generated", "generated"])
def test_what_the_prompt_said_is_remembered_while_generating(name, positions):
    net = model(name)
    with FROM_PROMPT.attach(net, positions=positions):
        together = generate(net)
        uncached = generate(net, use_cache=False)
        beams = generate(net, num_beams=2)
        again = generate(net, num_beams=2, use_cache=False)
        for row, ids in zip(together, PROMPTS, strict=True):
            alone = net.generate(ids, do_sample=False, max_new_tokens=6)
            assert torch.equal(alone[0, -6:], row[-6:])
    assert torch.equal(uncached, together)
    assert torch.equal(again, beams)
    assert not torch.equal(generate(net), together)


def test_a_prompt_read_in_chunks_is_the_same_prompt():
    net = model()
    with FROM_PROMPT.attach(net):
        whole = generate(net)
        chunked = generate(net, prefill_chunk_size=3)
    assert torch.equal(whole, chunked)


def test_fields_that_read_prompts_are_fitted_with_them():
    class Reader(CAA):
        tokens = "response"
        reads_prompts = True

    net, words = model(), tokenizer()
    reading = read(net, words, CONTRAST, [1], Reader())[1]
    ids = encode(words, "the cat")
    at_prompt = block_outputs(net, torch.tensor([ids]))[0][1][0, -1]
    torch.testing.assert_close(reading.prompts, at_prompt.expand(12, WIDTH))
    whole = encode(words, "the cat", CONTRAST.positive[3].response)
    rows = block_outputs(net, torch.tensor([whole]))[0][1][0]
    torch.testing.assert_close(reading.positive[3], rows[len(ids) :].mean(dim=0))


# ---- prompts and continuations in one pass


@every_architecture
@pytest.mark.parametrize("positions", ["last+generated", "generated", "prompt", "all"])
@pytest.mark.parametrize("steering", [quadratic(), FROM_PROMPT], ids=["quadratic", "prompt"])
def test_scoring_gives_the_logits_that_generation_gave(name, positions, steering):
    net = model(name)
    with steering.attach(net, positions=positions):
        said = generate(net, output_logits=True, return_dict_in_generate=True)
        whole = torch.cat([MASK, torch.ones(3, 6, dtype=torch.long)], dim=1)
        places = (whole.cumsum(dim=1) - 1).clamp_min(0)
        with scoring(net, torch.full((3,), IDS.shape[1])), torch.no_grad():
            logits = net(said.sequences, attention_mask=whole, position_ids=places).logits
    expected = torch.stack(said.logits, dim=1)
    torch.testing.assert_close(logits[:, IDS.shape[1] - 1 : -1], expected, atol=2e-4, rtol=1e-3)


def test_log_probabilities_are_those_of_the_steered_generation():
    net, words = model(), tokenizer()
    backend = ods.TransformersBackend(net, words)
    prompts, texts_ = ["the cat sat on", "a dog"], ["mat tree", "bird is good moon"]
    got = backend.logprobs(prompts, texts_, quadratic())
    for one, text, values in zip(prompts, texts_, got, strict=True):
        start, end = encode(words, one), words(text, add_special_tokens=False).input_ids
        steered = torch.arange(len(start) + len(end)) >= len(start) - 1
        with quadratic().attach(net, positions=steered), torch.no_grad():
            logits = net(torch.tensor([start + end]), use_cache=False).logits[0]
        logp = torch.log_softmax(logits, dim=-1)[len(start) - 1 : -1]
        expected = logp.gather(-1, torch.tensor(end)[:, None]).squeeze(-1)
        torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-3)


def test_the_deepest_block_may_be_fitted_and_steered():
    net = model()
    both = ods.fit(net, tokenizer(), CONTRAST, method=MiMiC(), layer=[0, DEPTH - 1])
    with both.attach(net):
        generate(net)


def test_graded_labels_of_a_contrast_reach_the_method():
    seen = []

    class Grader(CAA):
        def fit_samples(self, samples, progress=None):
            seen.append(samples.rewards)
            return super().fit_samples(samples, progress)

    rows = [
        {"positive": good, "negative": bad, "positive_reward": 4.0, "negative_reward": i}
        for i, (good, bad) in enumerate(zip(texts(3, 1), texts(3, 2), strict=True))
    ]
    ods.fit(model(), tokenizer(), ods.Contrast.from_rows(rows), method=Grader(), layer=1)
    assert seen[0].tolist() == [4.0, 4.0, 4.0, 0.0, 1.0, 2.0]
