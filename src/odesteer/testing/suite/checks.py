"""Checks of forward passes, of generation and of a steering's lifetime."""

import copy
import gc
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from odesteer.testing.suite.architectures import DEPTH
from odesteer.testing.suite.testbed import LAYER, NEW, NotOffered, Testbed, close, same

CHECKS: dict[str, "Check"] = {}
"""Checks by name, in the order of the table."""


@dataclass(frozen=True)
class Check:
    """Law of steering, and the function that tests it.

    Attributes:
        name: short, for the table and for `pytest -k`.
        question: the law in a sentence.
        run: raises AssertionError if it does not hold.
        only: architectures it runs on; empty is all.
    """

    name: str
    question: str
    run: Callable[[Testbed], None]
    only: tuple[str, ...] = ()


def check(name: str, only: tuple[str, ...] = ()) -> Callable[[Callable[[Testbed], None]], Check]:
    """Register a function as a check; its docstring is the question."""

    def register(run: Callable[[Testbed], None]) -> Check:
        CHECKS[name] = Check(name, (run.__doc__ or "").strip(), run, only)
        return CHECKS[name]

    return register


@check("below")
def below(bench: Testbed) -> None:
    """Below the layer nothing changes, bit for bit."""
    plain, _ = bench.read(bench.model, bench.prompts[1])
    with bench.attach() as steered:
        outputs, _ = bench.read(steered.model, bench.prompts[1])
    for i in range(LAYER):
        same(outputs[i], plain[i], f"output of block {i}")


@check("moved")
def moved(bench: Testbed) -> None:
    """At the layer every activation is moved exactly, and the model's output changes."""
    plain, before = bench.read(bench.model, bench.prompts[1])
    with bench.attach("all") as steered:
        outputs, after = bench.read(steered.model, bench.prompts[1])
    same(outputs[LAYER], bench.expected(plain[LAYER]), "output of the steered block")
    bench.changed(after, before, "logits")


@check("layers")
def layers(bench: Testbed) -> None:
    """Every block can be steered."""
    plain, before = bench.read(bench.model, bench.prompts[1])
    for layer in range(DEPTH):
        with bench.attach("all", layer) as steered:
            outputs, after = bench.read(steered.model, bench.prompts[1])
        bench.changed(after, before, f"layer {layer}")
        same(outputs[layer], bench.expected(plain[layer]), f"output of block {layer}")


@check("positions")
def positions(bench: Testbed) -> None:
    """In a forward pass, the chosen tokens are moved and no others."""
    ids = torch.cat([bench.prompts[1], bench.prompts[1].flip(1)])
    plain, _ = bench.read(bench.model, ids)
    t = ids.shape[1]
    first = {"all": 0, "prompt": 0, "last+generated": t - 1, "generated": t}
    for name in bench.adapter.positions:
        with bench.attach(name) as steered:
            outputs, _ = bench.read(steered.model, ids)
        start = first[name]
        same(outputs[LAYER][:, :start], plain[LAYER][:, :start], f"{name}: tokens not chosen")
        expected = bench.expected(plain[LAYER][:, start:])
        same(outputs[LAYER][:, start:], expected, f"{name}: tokens chosen")


@check("mask")
def mask(bench: Testbed) -> None:
    """A mask says which positions are moved."""
    if not bench.adapter.masks:
        raise NotOffered("masks of positions")
    ids = bench.prompts[1]
    chosen = torch.arange(ids.shape[1]) % 3 == 1
    plain, _ = bench.read(bench.model, ids)
    with bench.attach(chosen) as steered:
        outputs, _ = bench.read(steered.model, ids)
    same(outputs[LAYER][:, ~chosen], plain[LAYER][:, ~chosen], "tokens not chosen")
    same(outputs[LAYER][:, chosen], bench.expected(plain[LAYER][:, chosen]), "tokens chosen")


@check("padding")
def padding(bench: Testbed) -> None:
    """Padding on the left, on the right and none give the same logits."""
    for name in bench.adapter.positions:
        with bench.attach(name) as steered:
            alone = [bench.logits(steered.model, ids)[0] for ids in bench.prompts]
            for left in (True, False):
                ids, mask = bench.padded(left)
                logits = bench.logits(steered.model, ids, mask)
                for i, expected in enumerate(alone):
                    side = "left" if left else "right"
                    what = f"{name}, prompt {i} padded on the {side}"
                    close(logits[i][mask[i].bool()], expected, what)


@check("half")
def half(bench: Testbed) -> None:
    """In bfloat16 and float16 the type is kept, and a(T) is right to a rounding."""
    for dtype in (torch.bfloat16, torch.float16):
        bench.model = bench.fresh().to(dtype)
        plain, _ = bench.read(bench.model, bench.prompts[1])
        with bench.attach("all") as steered:
            outputs, logits = bench.read(steered.model, bench.prompts[1])
        actual, expected = outputs[LAYER], bench.expected(plain[LAYER])
        assert actual.dtype == expected.dtype, f"{dtype} became {actual.dtype}"
        assert bool(logits.isfinite().all()), f"{dtype}: logits are not finite"
        # Two units in the last place: a vector that is itself rounded first costs up to one.
        ulp = torch.finfo(dtype).eps * expected.float().abs().clamp_min(1.0)
        assert bool(((actual.float() - expected.float()).abs() <= 2 * ulp).all()), (
            f"{dtype}: not a(T)"
        )


@check("form")
def form(bench: Testbed) -> None:
    """Whoever asks for tuples, hidden states or losses gets them."""
    ids = bench.prompts[1]
    with bench.attach("all") as steered, torch.no_grad():
        logits = bench.logits(steered.model, ids)
        out = steered.model(input_ids=ids, labels=ids, output_hidden_states=True, use_cache=False)
        same(out.logits, logits, "logits beside hidden states")
        assert len(out.hidden_states) == DEPTH + 1, f"{len(out.hidden_states)} hidden states"
        assert bool(out.loss.isfinite()), "the loss is not finite"
        same(steered.model(ids, return_dict=False, use_cache=False)[0], logits, "tuples")


@check("gradients")
def gradients(bench: Testbed) -> None:
    """Gradients reach what is below the layer, as through a constant displacement."""
    ids = bench.prompts[1]

    def embedded(model: torch.nn.Module) -> torch.Tensor:
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradient = bench.model.get_input_embeddings().weight.grad
        assert gradient is not None, "no gradient at the embeddings"
        return gradient.clone()

    plain = bench.read(bench.model, ids)[0][LAYER]
    shift = (bench.expected(plain) - plain).detach()

    def move(_module: object, _args: object, output: object) -> object:
        if isinstance(output, tuple):
            return (output[0] + shift, *output[1:])
        assert isinstance(output, torch.Tensor)
        return output + shift

    hook = bench.blocks(bench.model)[LAYER].register_forward_hook(move)
    try:
        expected = embedded(bench.model)
    finally:
        hook.remove()
    with bench.attach("all") as steered:
        close(embedded(steered.model), expected, "gradient at the embeddings", 1e-3)


@check("checkpointing")
def checkpointing(bench: Testbed) -> None:
    """Gradient checkpointing changes neither loss nor gradients."""
    results = []
    ids, mask = bench.ids, bench.mask
    for recompute in (False, True):
        model: Any = bench.fresh()
        bench.model = model.train()
        if recompute:
            model.gradient_checkpointing_enable()
        with torch.random.fork_rng(devices=[]), bench.attach() as steered:
            torch.manual_seed(0)  # of the dropout
            labels = ids.masked_fill(mask == 0, -100)
            loss = steered.model(**bench.inputs(ids, mask), labels=labels).loss
            loss.backward()
        gradient = [p.grad for p in model.parameters() if p.grad is not None]
        results.append((loss.detach(), gradient))
    (loss, gradients), (loss_again, recomputed) = results
    same(loss_again, loss, "loss")
    assert len(gradients) == len(recomputed), "other parameters got gradients"
    for a, b in zip(gradients, recomputed, strict=True):
        close(b, a, "gradient", 1e-5)


@check("text")
def text(bench: Testbed) -> None:
    """Steering changes what is said, and only while it is on."""
    plain = bench.next_logits(bench.model)
    with bench.attach() as steered:
        bench.changed(bench.next_logits(steered.model), plain, "logits")
    same(bench.next_logits(bench.model), plain, "logits after removal")


def _same_generation(
    bench: Testbed, *settings: dict[str, Any], ids: torch.Tensor | None = None
) -> None:
    """Compare generation with each of some settings to generation without, at all positions."""
    for name in bench.adapter.positions:
        with bench.attach(name) as steered:
            expected = bench.next_logits(steered.model, ids)
            for setting in settings:
                logits = bench.next_logits(steered.model, ids, **setting)
                close(logits, expected, f"{name}, {', '.join(setting)}")


@check("cache")
def cache(bench: Testbed) -> None:
    """Generation with and without a cache says the same."""
    _same_generation(bench, {"use_cache": False})


@check("meaning")
def meaning(bench: Testbed) -> None:
    """Every kind of positions means in generation what it says, from the first new token on."""
    for name in bench.adapter.positions:
        expected = bench.reference_logits(name)
        with bench.attach(name) as steered:
            close(bench.next_logits(steered.model), expected, name)


@check("batch")
def batch(bench: Testbed) -> None:
    """A padded batch says what each prompt says alone."""
    for name in bench.adapter.positions:
        with bench.attach(name) as steered:
            together = bench.next_logits(steered.model)
            for i, ids in enumerate(bench.prompts):
                close(
                    together[i : i + 1],
                    bench.next_logits(steered.model, ids),
                    f"{name}, prompt {i}",
                )


@check("beams")
def beams(bench: Testbed) -> None:
    """Beam search with and without a cache says the same."""
    for name in bench.adapter.positions:
        with bench.attach(name) as steered:
            cached = bench.generate(steered.model, num_beams=2)
            uncached = bench.generate(steered.model, num_beams=2, use_cache=False)
            same(uncached, cached, name)


@check("sampling")
def sampling(bench: Testbed) -> None:
    """Sampling follows its seed, with and without a cache."""

    def sample(model: Any, seed: int, **how: Any) -> torch.Tensor:
        torch.manual_seed(seed)
        return bench.generate(model, do_sample=True, top_k=0, num_return_sequences=2, **how)

    with torch.random.fork_rng(devices=[]), bench.attach() as steered:
        tokens = sample(steered.model, 5)
        same(sample(steered.model, 5), tokens, "same seed")
        same(sample(steered.model, 5, use_cache=False), tokens, "without a cache")
        assert not torch.equal(sample(steered.model, 6), tokens), "another seed, the same tokens"


@check("assisted")
def assisted(bench: Testbed) -> None:
    """Assisted generation (a draft model, or tokens looked up in the prompt) says the same."""
    draft = {"assistant_model": bench.fresh(seed=1)}
    _same_generation(bench, draft, {"prompt_lookup_num_tokens": 3}, ids=bench.prompts[1])


@check("static")
def static(bench: Testbed) -> None:
    """A static cache says the same."""
    _same_generation(bench, {"cache_implementation": "static"})


@check("chunks")
def chunks(bench: Testbed) -> None:
    """A prompt that is read in chunks says the same."""
    _same_generation(bench, {"prefill_chunk_size": 4})


@check("embeddings")
def embeddings(bench: Testbed) -> None:
    """A prompt given as embeddings says the same."""
    ids = bench.prompts[1]
    embedded = bench.model.get_input_embeddings()(ids).detach()
    _same_generation(bench, {"inputs_embeds": embedded}, ids=ids)


@check("loop")
def loop(bench: Testbed) -> None:
    """A decoding loop written by hand says what `generate` says."""
    for name in bench.adapter.positions:
        with bench.attach(name) as steered, torch.no_grad():
            expected = bench.next_logits(steered.model, bench.prompts[1])
            ids, past, logits = bench.prompts[1], dict[str, Any](), []
            for _ in range(NEW):
                out = steered.model(input_ids=ids, use_cache=True, **past)
                key = "cache_params" if hasattr(out, "cache_params") else "past_key_values"
                past = {key: getattr(out, key)}
                logits.append(out.logits[:, -1])
                ids = logits[-1].argmax(dim=-1, keepdim=True)
            close(torch.stack(logits, dim=1), expected, name)


@check("threads")
def threads(bench: Testbed) -> None:
    """Two threads on one steered model say what each says alone."""
    results: dict[int, list[torch.Tensor]] = {}
    with bench.attach() as steered:
        expected = [bench.generate(steered.model, ids) for ids in bench.prompts[:2]]

        def work(i: int) -> None:
            results[i] = [bench.generate(steered.model, bench.prompts[i]) for _ in range(3)]

        running = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    assert set(results) == {0, 1}, "a thread failed"
    for i, rounds in results.items():
        for tokens in rounds:
            same(tokens, expected[i], f"thread {i}")


def _hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def _shape(model: torch.nn.Module) -> list[tuple[str, type, tuple[str, ...]]]:
    """Every module's path, class, and methods that were set on the instance."""
    return [
        (name, type(module), tuple(sorted(set(vars(module)) & {"forward", "generate"})))
        for name, module in model.named_modules()
    ]


@check("removed")
def removed(bench: Testbed) -> None:
    """Removed, nothing is left: no hook, no attribute, no changed weight, the same logits."""
    ids = bench.prompts[1]
    before, shape = bench.logits(bench.model, ids), _shape(bench.model)
    weights = copy.deepcopy(bench.model.state_dict())
    with bench.attach() as steered:
        bench.generate(steered.model)
    assert _shape(bench.model) == shape, "modules or methods were left changed"
    assert not _hooks(bench.model), "hooks were left"
    for name, value in bench.model.state_dict().items():
        same(value, weights[name], name)
    same(bench.logits(bench.model, ids), before, "logits")


@check("exception")
def exception(bench: Testbed) -> None:
    """After an exception in the model and in the block, it is off."""
    ids = bench.prompts[1]
    before, shape = bench.logits(bench.model, ids), _shape(bench.model)
    with suppress(KeyError), bench.attach() as steered:
        expected = bench.logits(steered.model, ids)
        with suppress(IndexError):
            bench.logits(steered.model, torch.tensor([[10**6]]))
        same(bench.logits(steered.model, ids), expected, "the call after a failed one")
        raise KeyError("the user's")
    assert _shape(bench.model) == shape, "modules or methods were left changed"
    same(bench.logits(bench.model, ids), before, "logits")


@check("twice")
def twice(bench: Testbed) -> None:
    """Removing twice is harmless, and takes nothing else off."""
    ids = bench.prompts[1]
    before = bench.logits(bench.model, ids)
    first = bench.attach()
    first.remove()
    with bench.attach() as second:
        expected = bench.logits(second.model, ids)
        first.remove()
        same(bench.logits(second.model, ids), expected, "another steering")
    same(bench.logits(bench.model, ids), before, "logits")


@contextmanager
def _collecting() -> Iterator[None]:
    """Limit `gc.collect` to objects made inside: the rest of the process is large."""
    if gc.get_freeze_count():  # the caller's doing, which `unfreeze` would undo
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@check("forgotten")
def forgotten(bench: Testbed) -> None:
    """A steering that nothing refers to any more is off."""
    ids = bench.prompts[1]
    before = bench.logits(bench.model, ids)
    with _collecting(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # being told is fine
        steered = bench.attach()
        bench.changed(bench.logits(steered.model, ids), before, "logits")
        del steered
        gc.collect()
    same(bench.logits(bench.model, ids), before, "logits")


@check("freed")
def freed(bench: Testbed) -> None:
    """A model that is dropped while steered is freed."""
    bench.model = None
    with _collecting(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bench.model = bench.fresh()
        steered = bench.attach()
        bench.logits(steered.model, bench.prompts[1])
        reference = weakref.ref(bench.model)
        bench.model = None
        del steered
        gc.collect()
    assert reference() is None, "something keeps the model"


@check("itself")
def itself(bench: Testbed) -> None:
    """While steered the model keeps its class, its modules and the names of its weights."""
    kind = type(bench.model)
    modules = {name: type(module) for name, module in bench.model.named_modules()}
    names = list(bench.model.state_dict())
    with bench.attach() as steered:
        assert type(steered.model) is kind, f"a {type(steered.model).__name__} to call"
        assert {n: type(m) for n, m in bench.model.named_modules()} == modules, "other modules"
        assert list(bench.model.state_dict()) == names, "other names of weights"


@check("two layers")
def two_layers(bench: Testbed) -> None:
    """Two steerings at two layers act at once, and come off in any order."""
    ids, second = bench.prompts[1], bench.direction(1)
    before = bench.logits(bench.model, ids)
    for first_off in (0, 1):
        lower = bench.attach("all")
        alone, _ = bench.read(lower.model, ids)
        upper = bench.attach("all", LAYER + 1, second)
        both, _ = bench.read(upper.model, ids)
        same(both[LAYER], alone[LAYER], "the lower steering")
        expected = bench.expected(alone[LAYER + 1], second)
        same(both[LAYER + 1], expected, "the upper steering")
        for steered in (lower, upper) if first_off == 0 else (upper, lower):
            steered.remove()
        same(bench.logits(bench.model, ids), before, "logits after removal")


@check("nested")
def nested(bench: Testbed) -> None:
    """Two steerings at one layer act one after the other."""
    ids, second = bench.prompts[1], bench.direction(1)
    plain, before = bench.read(bench.model, ids)
    with bench.attach("all") as first:
        alone = bench.logits(first.model, ids)
        with bench.attach("all", vector=second) as second_steered:
            both, _ = bench.read(second_steered.model, ids)
        same(bench.logits(first.model, ids), alone, "the first one after the second came off")
    expected = bench.expected(bench.expected(plain[LAYER]), second)
    same(both[LAYER], expected, "output of the steered block")
    same(bench.logits(bench.model, ids), before, "logits after removal")


@check("peft")
def peft(bench: Testbed) -> None:
    """A model with a PEFT adapter is steered through its wrapper, and generates."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise NotOffered("peft is not installed") from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LoraConfig(target_modules="all-linear", init_lora_weights=False, r=2)
        wrapped = get_peft_model(bench.model, config).eval()
    plain, before = bench.read(wrapped, bench.prompts[1])
    unsteered = bench.next_logits(wrapped)
    with bench.attach("all", model=wrapped) as steered:
        outputs, _ = bench.read(steered.model, bench.prompts[1])
        same(outputs[LAYER], bench.expected(plain[LAYER]), "output of the steered block")
        cached = bench.next_logits(steered.model)
        bench.changed(cached, unsteered, "logits of generation")
        close(
            bench.next_logits(steered.model, use_cache=False), cached, "generation without a cache"
        )
    same(bench.logits(wrapped, bench.prompts[1]), before, "logits after removal")


# Compiling takes seconds: one architecture of each kind of block.
@check("compile", only=("llama", "gpt2", "gemma2", "mixtral", "mamba"))
def compiled(bench: Testbed) -> None:
    """torch.compile before or after attaching changes nothing, nor does it miss a removal."""
    ids = bench.prompts[0]  # the shortest: recurrent blocks are unrolled, token by token
    before = bench.logits(bench.model, ids)
    with bench.attach("all") as steered:
        expected = bench.logits(steered.model, ids)
    torch._dynamo.reset()
    try:
        graph: Any = torch.compile(bench.model, backend="eager")
        close(bench.logits(graph, ids), before, "compiled, unsteered")
        with bench.attach("all") as steered:
            if steered.model is not bench.model:
                graph = torch.compile(steered.model, backend="eager")
            close(bench.logits(graph, ids), expected, "compiled first, attached later")
        if steered.model is bench.model:
            close(bench.logits(graph, ids), before, "removed")
        torch._dynamo.reset()
        with bench.attach("all") as steered:
            graph = torch.compile(steered.model, backend="eager")
            close(bench.logits(graph, ids), expected, "attached first, compiled later")
    finally:
        torch._dynamo.reset()
