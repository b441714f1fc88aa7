"""Audit of the steered tokens: in every set-up exactly those asked for, or a refusal.

A hook before the steering and one after it see each call's tokens; where a token stands in its
text is counted from the length of the cache, without the tracker.
"""

import copy
import functools

import peft
import pytest
import torch
from tests.helpers.models import VOCABULARY, WIDTH, constant, padded, prompt
from tests.helpers.models import model as fresh
from tests.helpers.position_rules import meant
from torch import Tensor, nn
from transformers import GenerationMixin, RwkvConfig, RwkvForCausalLM
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from odesteer.models.layers import find_layers, unwrap
from odesteer.testing import ARCHITECTURES

PROMPTS = [prompt(t, seed=t) for t in (4, 9, 7)]
LEFT, LEFT_MASK = padded(PROMPTS)
RIGHT, RIGHT_MASK = padded(PROMPTS, left=False)
N, NEW = LEFT.shape[1], 4
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


model = functools.cache(fresh)  # each test takes off what it puts on


class Watch:
    """Which tokens the steering on a model's second block changes, and which it should."""

    def __init__(self, net: nn.Module, positions="last+generated", mask=LEFT_MASK, virtual=0):
        self.inner, self.mask, self.virtual = unwrap(net), mask, virtual
        self.net, self.positions, self.prefix = net, positions, 0
        self.changed: list[Tensor] = []
        self.offsets: list[int] = []

    def __enter__(self) -> "Watch":
        block = find_layers(self.inner)[1]
        outputs: list[Tensor] = []

        def record(_module, _args, kwargs):
            cache = kwargs.get("past_key_values")
            self.offsets.append(0 if cache is None else int(cache.get_seq_length()))

        def before(_module, _args, output):
            outputs.append(output[0] if isinstance(output, tuple) else output)

        def after(_module, _args, output):
            output = output[0] if isinstance(output, tuple) else output
            self.changed.append((output != outputs.pop()).any(dim=-1))

        decoder = self.inner.base_model
        self.hooks = [
            decoder.register_forward_pre_hook(record, with_kwargs=True),
            block.register_forward_hook(before),
        ]
        self.handle = constant(1, strength=5.0).attach(self.net, positions=self.positions)
        self.hooks.append(block.register_forward_hook(after))
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()
        for hook in self.hooks:
            hook.remove()

    def wanted(self, offset: int, changed: Tensor) -> Tensor:
        b, t = changed.shape
        mask = self.mask.bool().repeat_interleave(b // len(self.mask), dim=0)
        first, n = offset - self.virtual, mask.shape[1]
        tokens = [
            meant(self.positions, row.nonzero()[:, 0].tolist(), list(range(n, n + 2 * NEW)))
            for row in mask
        ]
        return torch.tensor([[i in row for i in range(first, first + t)] for row in tokens])

    def check(self, calls: int = 1) -> None:
        assert len(self.changed) >= calls
        for offset, changed in zip(self.offsets, self.changed, strict=True):
            wanted = self.wanted(offset, changed)
            assert torch.equal(changed, wanted), f"at {offset}:\n{changed.int()}\n{wanted.int()}"
        self.check_trace()

    def check_trace(self) -> None:
        """The trace is what was changed since the last call that began a text."""
        trace = self.handle.trace()
        begins = max(i for i, offset in enumerate(self.offsets) if offset == min(self.offsets))
        end = self.offsets[-1] + self.changed[-1].shape[1]
        expected = torch.zeros(len(trace), end, dtype=torch.bool)
        for offset, changed in zip(self.offsets[begins:], self.changed[begins:], strict=True):
            expected[:, offset : offset + changed.shape[1]] = changed
        assert torch.equal(trace, expected[:, self.virtual + self.prefix :])


RULE = "prompt[:3] + last - prompt[:-3] + generated[1:3]"
every_position = pytest.mark.parametrize("positions", ["last+generated", "generated", RULE, "all"])


def generate(net, **how):
    return net.generate(**{"input_ids": LEFT, "attention_mask": LEFT_MASK} | GREEDY | how)


# ---- generate


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"use_cache": False},
        {"num_beams": 2},
        {"num_beams": 3, "num_return_sequences": 2, "use_cache": False},
        {"do_sample": True},
        {"do_sample": True, "num_return_sequences": 2},
        {"cache_implementation": "static"},
        {"cache_implementation": "static", "attention_mask": None},
        {"prefill_chunk_size": 4},
        {"prefill_chunk_size": 4, "attention_mask": None},
        {"attention_mask": LEFT_MASK.bool()},
        {"attention_mask": LEFT_MASK.int()},
        {"attention_mask": LEFT_MASK.float()},
        {"attention_mask": None},
        {"input_ids": None, "inputs": LEFT},
        {"guidance_scale": 1.0},
    ],
    ids=str,
)
@every_position
def test_generate_steers_exactly_the_tokens_asked_for(how, positions):
    with Watch(model(), positions) as watch:
        generate(watch.net, **how)
    watch.check(NEW)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mistral", "gpt_neox"])
@pytest.mark.parametrize("how", [{}, {"cache_implementation": "static", "attention_mask": None}])
def test_other_architectures_and_sliding_windows(name, how):
    with Watch(ARCHITECTURES[name].build(0), "all") as watch:
        generate(watch.net, **how)
    watch.check(NEW)


@pytest.mark.parametrize("how", ["lookup", "assisted", "early exit"])
@pytest.mark.parametrize("positions", ["last+generated", RULE])
def test_speculative_decoding(how, positions):
    net, mask = model(), torch.ones_like(PROMPTS[1])
    how = {
        "lookup": {"prompt_lookup_num_tokens": 2},
        "assisted": {"assistant_model": model(seed=1)},
        "early exit": {"assistant_early_exit": 2},
    }[how]
    with Watch(net, positions, mask) as watch:
        generate(net, input_ids=PROMPTS[1], attention_mask=mask, **how)
    watch.check(2)


def embedded(net):
    return net.get_input_embeddings()(LEFT).detach()


@pytest.mark.parametrize("ids", [None, LEFT, LEFT[:, :1]])
@every_position
def test_finding_11_embeddings_are_the_prompt_also_beside_ids(ids, positions):
    with Watch(model(), positions) as watch:
        generate(watch.net, input_ids=ids, inputs_embeds=embedded(watch.net))
    watch.check(NEW)


@pytest.mark.parametrize("new_alone", [False, True])
def test_a_prompt_that_continues_a_cache(new_alone):
    net, text, mask = model(), PROMPTS[1], torch.ones_like(PROMPTS[1])
    with torch.no_grad():
        cache = net(text[:, :5], use_cache=True).past_key_values
    with Watch(net, mask=mask) as watch:
        ids = text[:, 5:] if new_alone else text
        generate(net, input_ids=ids, attention_mask=mask, past_key_values=cache)
    assert watch.offsets[0] == 5
    watch.check(NEW)


@every_position
@pytest.mark.parametrize("how", [{}, {"prefill_chunk_size": 4}, {"use_cache": False}], ids=str)
def test_finding_11_generate_of_the_class_goes_round_no_steering(how, positions):
    with Watch(model(), positions) as watch:
        for prompts in ({"input_ids": LEFT}, {"inputs": LEFT}):
            GenerationMixin.generate(watch.net, **prompts, attention_mask=LEFT_MASK, **GREEDY | how)
    watch.check(2 * NEW)


def guided(net, how):
    if how == "processor":
        return {"logits_processor": [UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, net)]}
    if how == "config":
        config = copy.deepcopy(net.generation_config)
        config.guidance_scale = 1.5
        return {"generation_config": config}
    return {"guidance_scale": 1.5} | ({"negative_prompt_ids": RIGHT} if how == "negative" else {})


@pytest.mark.parametrize("how", ["argument", "config", "negative", "processor"])
def test_finding_11_guidance_is_refused_unless_all_is_steered(how):
    net = model()
    how = guided(net, how)
    for positions in ("last+generated", "generated", "prompt"):
        with (
            constant().attach(net, positions=positions),
            pytest.raises(ValueError, match="guidance") as error,
        ):
            generate(net, **how)
        assert "\n" not in str(error.value)
    with constant(1, 5.0).attach(net, positions="all") as handle:
        generate(net, **guided(net, "argument"))
    real = int(LEFT_MASK.sum())
    # Both branches: the prompt and its last token, and what was generated but the last.
    assert handle.stats()["steered"] == real + 3 + 2 * 3 * (NEW - 1)


# ---- plain calls


def places(mask):
    return (mask.cumsum(dim=1) - 1).clamp_min(0)


FORMS = {
    "none": lambda mask: None,
    "clamped": places,
    "filled": lambda mask: places(mask).masked_fill(mask == 0, 1),
    "counted": lambda mask: torch.arange(mask.shape[1])[None],
}


@every_position
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_padding_in_a_plain_call(positions, left, form):
    ids, mask = (LEFT, LEFT_MASK) if left else (RIGHT, RIGHT_MASK)
    for use_cache in (True, False):
        with Watch(model(), positions, mask) as watch, torch.no_grad():
            watch.net(ids, attention_mask=mask, position_ids=FORMS[form](mask), use_cache=use_cache)
        watch.check()


def square(mask, dtype):
    t = mask.shape[1]
    sees = torch.ones(t, t, dtype=torch.bool).tril() & mask.bool()[:, None]
    sees = sees[:, None]
    if dtype == torch.bool:
        return sees
    return torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)


@every_position
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_finding_11_padding_is_read_from_a_mask_of_four_dimensions(positions, left, dtype):
    ids, mask = (LEFT, LEFT_MASK) if left else (RIGHT, RIGHT_MASK)
    with Watch(model(), positions, mask) as watch, torch.no_grad():
        watch.net(ids, attention_mask=square(mask, dtype), position_ids=places(mask))
    watch.check()


@every_position
def test_a_decoding_loop_with_masks_of_four_dimensions(positions):
    ids, mask, cache = LEFT, LEFT_MASK, None
    with Watch(model(), positions) as watch, torch.no_grad():
        for _ in range(NEW):
            four = square(mask, torch.bool)[:, :, -ids.shape[1] :]
            where = places(mask)[:, -ids.shape[1] :]
            out = watch.net(ids, attention_mask=four, position_ids=where, past_key_values=cache)
            ids, cache = out.logits[:, -1:].argmax(dim=-1), out.past_key_values
            mask = torch.cat([mask, mask.new_ones(3, 1)], dim=1)
    watch.check(NEW)


def test_windows_are_refused_where_a_cache_does_not_tell_its_prompt():
    config = RwkvConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2)
    net = RwkvForCausalLM(config).eval()
    with torch.no_grad(), constant(1).attach(net, positions="generated[:1]"):
        state = net(PROMPTS[0], use_cache=True).state
        with pytest.raises(
            ValueError, match=r"positions='generated\[:1\]' counts .*use `generate`"
        ):
            net(PROMPTS[0][:, -1:], state=state)
    with torch.no_grad(), constant(1).attach(net, positions="last+generated") as handle:
        net(PROMPTS[0][:, -1:], state=state)
    assert handle.stats()["steered"] == 1


def packed(kind):
    """Two texts of 3 and 6 tokens in one row."""
    ids = torch.cat([prompt(3), prompt(6)], dim=1)
    where = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5]])
    if kind == "positions":
        return {"input_ids": ids, "position_ids": where}
    if kind == "single tokens":
        return {"input_ids": ids, "position_ids": torch.tensor([[0, 0, 0, 1, 2, 3, 4, 5, 6]])}
    if kind == "mask":
        text = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1])
        four = square(torch.ones_like(ids), torch.bool) & (text[:, None] == text)
        return {"input_ids": ids, "attention_mask": four}
    if kind == "numbered":
        return {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 2, 2, 2, 2, 2, 2]])}
    if kind == "padding between":
        mask = torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1, 0]])
        return {"input_ids": ids, "position_ids": where, "attention_mask": mask}
    return {"input_ids": ids, "cu_seq_lens_q": torch.tensor([0, 3, 9])}


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    "kind", ["positions", "single tokens", "mask", "numbered", "padding between", "boundaries"]
)
def test_finding_5_packed_rows_are_refused_unless_all_is_steered(kind, use_cache):
    net, call = model(), packed(kind) | {"use_cache": use_cache}
    for positions in ("last+generated", "generated", "prompt", torch.tensor([True])):
        with (
            constant().attach(net, positions=positions),
            pytest.raises(ValueError, match="share a row") as error,
        ):
            net(**call)
        assert "\n" not in str(error.value)
    with constant(1, 5.0).attach(net, positions="all") as handle, torch.no_grad():
        net(**call)
    assert handle.stats()["steered"] == (7 if kind == "padding between" else 9)


# ---- PEFT


VIRTUAL = {
    "prompt": peft.PromptTuningConfig,
    "p-tuning": peft.PromptEncoderConfig,
    "prefix": peft.PrefixTuningConfig,
    "multitask": peft.MultitaskPromptTuningConfig,
}


@functools.cache
def soft_prompt(kind, n):
    how = {"encoder_hidden_size": 16} if kind == "p-tuning" else {}
    if kind == "multitask":
        how = {"num_tasks": 2, "num_ranks": 1}
    config = VIRTUAL[kind](task_type="CAUSAL_LM", num_virtual_tokens=n, **how)
    return peft.get_peft_model(fresh(), config).eval()


every_soft_prompt = pytest.mark.parametrize(
    ("kind", "n"), [(kind, n) for kind in VIRTUAL for n in (5, 20)]
)
inside = pytest.mark.parametrize("attach_to", ["wrapper", "inside"])


class PeftWatch(Watch):
    """A watch on a PEFT model whose steering is attached to it, or to the model inside."""

    def __init__(self, net, kind, n, attach_to, *args):
        virtual = 0 if kind == "prefix" else n
        super().__init__(net if attach_to == "wrapper" else unwrap(net), *args, virtual=virtual)
        self.talk, self.prefix = net, n if kind == "prefix" else 0

    def wanted(self, offset, changed):
        return super().wanted(offset - self.prefix, changed)


def task(kind):
    return {"task_ids": torch.zeros(3, dtype=torch.long)} if kind == "multitask" else {}


@every_soft_prompt
@inside
@every_position
def test_finding_3_soft_prompts_in_generate(kind, n, attach_to, positions):
    with PeftWatch(soft_prompt(kind, n), kind, n, attach_to, positions) as watch:
        generate(watch.talk, **task(kind))
    watch.check(NEW)


@every_soft_prompt
@inside
@pytest.mark.parametrize("left", [True, False])
@every_position
def test_finding_3_soft_prompts_in_a_plain_call(kind, n, attach_to, left, positions):
    ids, mask = (LEFT, LEFT_MASK) if left else (RIGHT, RIGHT_MASK)
    net = soft_prompt(kind, n)
    with PeftWatch(net, kind, n, attach_to, positions, mask) as watch, torch.no_grad():
        net(input_ids=ids, attention_mask=mask, **task(kind))
    watch.check()


@pytest.mark.parametrize("attach_first", [True, False])
def test_finding_3_lora_has_no_virtual_tokens(attach_first):
    net, config = fresh(), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    if attach_first:
        with Watch(net) as watch:
            generate(peft.get_peft_model(net, config))
    else:
        wrapped = peft.get_peft_model(net, config)
        with Watch(wrapped) as watch:
            generate(wrapped)
    watch.check(NEW)


def test_finding_3_adaption_prompts_are_no_tokens_of_the_stream():
    config = peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=5, adapter_layers=2)
    net = peft.get_peft_model(fresh(), config).eval()
    with Watch(net) as watch:
        generate(net)
    watch.check(NEW)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_finding_3_a_soft_prompt_that_is_switched_off(kind):
    net = soft_prompt(kind, 5)
    with Watch(net) as watch, net.disable_adapter(), torch.no_grad():
        generate(net)
        net(input_ids=LEFT, attention_mask=LEFT_MASK)
    watch.check(NEW + 1)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("prompt", {"use_cache": False}),  # a prefix cannot do without
        *(
            (kind, how)
            for kind in ("prompt", "prefix")
            for how in ({"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2})
        ),
    ],
)
def test_finding_3_other_ways_to_decode_after_a_soft_prompt(kind, how):
    with PeftWatch(soft_prompt(kind, 5), kind, 5, "wrapper") as watch:
        generate(watch.talk, **how)
    watch.check(NEW)
