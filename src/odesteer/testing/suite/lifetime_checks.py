"""Checks of a steering's lifetime: removal, copies, exceptions."""

import copy
import gc
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from odesteer.testing.suite.adapter import NotOffered
from odesteer.testing.suite.check import check, close, same
from odesteer.testing.suite.testbed import LAYER, Testbed


def _hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def _shape(model: torch.nn.Module) -> list[tuple[str, type, tuple[str, ...]]]:
    """Every module's path, class, and what was put into the instance."""
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
        want = bench.logits(steered.model, ids)
        with suppress(IndexError):
            bench.logits(steered.model, torch.tensor([[10**6]]))
        same(bench.logits(steered.model, ids), want, "the call after a failed one")
        raise KeyError("the user's")
    assert _shape(bench.model) == shape, "modules or methods were left changed"
    same(bench.logits(bench.model, ids), before, "logits")


@check("twice")
def twice(bench: Testbed) -> None:
    """Removing twice is harmless, and takes nothing else off."""
    ids = bench.prompts[1]
    before = bench.logits(bench.model, ids)
    one = bench.attach()
    one.remove()
    with bench.attach() as other:
        want = bench.logits(other.model, ids)
        one.remove()
        same(bench.logits(other.model, ids), want, "another steering")
    same(bench.logits(bench.model, ids), before, "logits")


@contextmanager
def _collecting() -> Iterator[None]:
    """Make `gc.collect` look at what was made inside only: the rest of the process is large."""
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
        one = bench.attach("all")
        alone, _ = bench.read(one.model, ids)
        two = bench.attach("all", LAYER + 1, second)
        both, _ = bench.read(two.model, ids)
        same(both[LAYER], alone[LAYER], "the lower steering")
        want = bench.expected(alone[LAYER + 1], second)
        same(both[LAYER + 1], want, "the upper steering")
        for steered in (one, two) if first_off == 0 else (two, one):
            steered.remove()
        same(bench.logits(bench.model, ids), before, "logits after removal")


@check("nested")
def nested(bench: Testbed) -> None:
    """Two steerings at one layer act one after the other."""
    ids, second = bench.prompts[1], bench.direction(1)
    plain, before = bench.read(bench.model, ids)
    with bench.attach("all") as one:
        alone = bench.logits(one.model, ids)
        with bench.attach("all", vector=second) as two:
            both, _ = bench.read(two.model, ids)
        same(bench.logits(one.model, ids), alone, "the first one after the second came off")
    want = bench.expected(bench.expected(plain[LAYER]), second)
    same(both[LAYER], want, "output of the steered block")
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
    said = bench.said(wrapped)
    with bench.attach("all", model=wrapped) as steered:
        seen, _ = bench.read(steered.model, bench.prompts[1])
        same(seen[LAYER], bench.expected(plain[LAYER]), "output of the steered block")
        cached = bench.said(steered.model)
        bench.changed(cached, said, "logits of generation")
        close(bench.said(steered.model, use_cache=False), cached, "generation without a cache")
    same(bench.logits(wrapped, bench.prompts[1]), before, "logits after removal")


# Compiling takes seconds: one architecture of each kind of block.
@check("compile", only=("llama", "gpt2", "gemma2", "mixtral", "mamba"))
def compiled(bench: Testbed) -> None:
    """torch.compile before or after attaching changes nothing, nor does it miss a removal."""
    ids = bench.prompts[1]
    before = bench.logits(bench.model, ids)
    with bench.attach("all") as steered:
        want = bench.logits(steered.model, ids)
    torch._dynamo.reset()
    try:
        graph: Any = torch.compile(bench.model, backend="eager")
        close(bench.logits(graph, ids), before, "compiled, unsteered")
        with bench.attach("all") as steered:
            if steered.model is not bench.model:
                graph = torch.compile(steered.model, backend="eager")
            close(bench.logits(graph, ids), want, "compiled first, attached later")
        if steered.model is bench.model:
            close(bench.logits(graph, ids), before, "removed")
        torch._dynamo.reset()
        with bench.attach("all") as steered:
            graph = torch.compile(steered.model, backend="eager")
            close(bench.logits(graph, ids), want, "attached first, compiled later")
    finally:
        torch._dynamo.reset()
