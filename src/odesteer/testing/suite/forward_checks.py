"""Checks of forward passes: the right activation, the right amount, no other."""

from typing import Any

import torch

from odesteer.testing.suite.adapter import NotOffered
from odesteer.testing.suite.architectures import DEPTH
from odesteer.testing.suite.check import check, close, same
from odesteer.testing.suite.testbed import LAYER, Testbed


@check("below")
def below(bench: Testbed) -> None:
    """Below the layer nothing changes, bit for bit."""
    plain, _ = bench.read(bench.model, bench.prompts[1])
    with bench.attach() as steered:
        seen, _ = bench.read(steered.model, bench.prompts[1])
    for i in range(LAYER):
        same(seen[i], plain[i], f"output of block {i}")


@check("moved")
def moved(bench: Testbed) -> None:
    """At the layer every activation is moved exactly, and the model's output changes."""
    plain, before = bench.read(bench.model, bench.prompts[1])
    with bench.attach("all") as steered:
        seen, after = bench.read(steered.model, bench.prompts[1])
    same(seen[LAYER], bench.expected(plain[LAYER]), "output of the steered block")
    bench.changed(after, before, "logits")


@check("layers")
def layers(bench: Testbed) -> None:
    """Every block can be steered."""
    plain, before = bench.read(bench.model, bench.prompts[1])
    for layer in range(DEPTH):
        with bench.attach("all", layer) as steered:
            seen, after = bench.read(steered.model, bench.prompts[1])
        bench.changed(after, before, f"layer {layer}")
        same(seen[layer], bench.expected(plain[layer]), f"output of block {layer}")


@check("positions")
def positions(bench: Testbed) -> None:
    """In a forward pass, the chosen tokens are moved and no others."""
    ids = torch.cat([bench.prompts[1], bench.prompts[1].flip(1)])
    plain, _ = bench.read(bench.model, ids)
    t = ids.shape[1]
    first = {"all": 0, "prompt": 0, "last+generated": t - 1, "generated": t}
    for name in bench.adapter.positions:
        with bench.attach(name) as steered:
            seen, _ = bench.read(steered.model, ids)
        start = first[name]
        same(seen[LAYER][:, :start], plain[LAYER][:, :start], f"{name}: tokens not chosen")
        want = bench.expected(plain[LAYER][:, start:])
        same(seen[LAYER][:, start:], want, f"{name}: tokens chosen")


@check("mask")
def mask(bench: Testbed) -> None:
    """A mask says which positions are moved."""
    if not bench.adapter.masks:
        raise NotOffered("masks of positions")
    ids = bench.prompts[1]
    chosen = torch.arange(ids.shape[1]) % 3 == 1
    plain, _ = bench.read(bench.model, ids)
    with bench.attach(chosen) as steered:
        seen, _ = bench.read(steered.model, ids)
    same(seen[LAYER][:, ~chosen], plain[LAYER][:, ~chosen], "tokens not chosen")
    same(seen[LAYER][:, chosen], bench.expected(plain[LAYER][:, chosen]), "tokens chosen")


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
            seen, logits = bench.read(steered.model, bench.prompts[1])
        got, want = seen[LAYER], bench.expected(plain[LAYER])
        assert got.dtype == want.dtype, f"{dtype} became {got.dtype}"
        assert bool(logits.isfinite().all()), f"{dtype}: logits are not finite"
        # Two units in the last place: a vector that is itself rounded first costs up to one.
        ulp = torch.finfo(dtype).eps * want.float().abs().clamp_min(1.0)
        assert bool(((got.float() - want.float()).abs() <= 2 * ulp).all()), f"{dtype}: not a(T)"


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
        want = embedded(bench.model)
    finally:
        hook.remove()
    with bench.attach("all") as steered:
        close(embedded(steered.model), want, "gradient at the embeddings", 1e-3)


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
    (loss, one), (again, two) = results
    same(again, loss, "loss")
    assert len(one) == len(two), "other parameters got gradients"
    for a, b in zip(one, two, strict=True):
        close(b, a, "gradient", 1e-5)
