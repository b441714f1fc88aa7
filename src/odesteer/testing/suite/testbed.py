"""Checks of the conformance suite and what they work with.

One tiny model, a library that steers it, prompts, and ways to look inside that owe nothing to
the library.
"""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from odesteer.models.batching import pad
from odesteer.testing.suite.adapter import Adapter, Steered, Unsteered
from odesteer.testing.suite.architectures import ARCHITECTURES, VOCABULARY, WIDTH, Architecture

NEW = 6  # tokens a generation
LENGTHS = (4, 9, 7)  # of the prompts, in tokens
LAYER = 1


@cache
def _built(architecture: str, seed: int) -> nn.Module:
    return ARCHITECTURES[architecture].build(seed)


class Testbed:
    """One architecture and one library.

    Attributes:
        model: a fresh copy for each bench.
        prompts: token ids [1, t] without padding.
        ids, mask: the same as one batch, padded on the left.
        vector: to be added, as long as a typical activation there.
    """

    def __init__(self, architecture: Architecture, adapter: Adapter):
        self.architecture = architecture
        self.adapter = adapter
        self.model: Any = self.fresh()
        self.prompts = [self.tokens(length, seed=length) for length in LENGTHS]
        self.ids, self.mask = self.padded(left=True)
        self.vector = self.direction(0)

    def fresh(self, seed: int = 0) -> nn.Module:
        """Another copy of the model; another `seed` is another model of this architecture."""
        return copy.deepcopy(_built(self.architecture.model_type, seed))

    def direction(self, seed: int) -> Tensor:
        """A random vector [d]."""
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))

    def tokens(self, length: int, seed: int) -> Tensor:
        """Random token ids [1, length], none of them special."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(7, VOCABULARY, (1, length), generator=generator)

    def padded(self, left: bool) -> tuple[Tensor, Tensor]:
        """The prompts as one batch: ids and mask [b, t]."""
        return pad([row[0].tolist() for row in self.prompts], left=left)

    # ---- steering

    def attach(
        self,
        positions: str | Tensor | None = None,
        layer: int = LAYER,
        vector: Tensor | None = None,
        model: nn.Module | None = None,
    ) -> Steered:
        """What a user of the library gets."""
        return self.adapter.attach(
            self.model if model is None else model,
            layer,
            self.vector if vector is None else vector,
            self.adapter.positions[0] if positions is None else positions,
        )

    def expected(self, a: Tensor, vector: Tensor | None = None) -> Tensor:
        """Where the library moves activations [..., d]."""
        return self.adapter.expected(a, self.vector if vector is None else vector)

    @property
    def steers(self) -> bool:
        """False for the control, which moves nothing."""
        return not isinstance(self.adapter, Unsteered)

    def changed(self, one: Tensor, other: Tensor, what: str) -> None:
        """The steering must have made a difference."""
        if self.steers:
            assert not torch.equal(one, other), f"{what}: the steering changed nothing"

    # ---- looking inside

    def blocks(self, model: nn.Module) -> Any:
        """The decoder blocks, where the architecture has them."""
        return model.get_submodule(self.architecture.blocks)

    def read(
        self, model: Any, ids: Tensor, mask: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Every block's output as what comes next receives it, and the logits."""
        seen: list[Tensor] = []

        def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
            seen.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

        def keep_last(_module: nn.Module, _args: Any, output: Any) -> None:
            seen.append((output[0] if isinstance(output, tuple) else output).detach().clone())

        blocks = self.blocks(self.model)
        hooks = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks[1:]]
        # No block comes after the last one. Registered after the library's, this hook runs later.
        hooks.append(blocks[-1].register_forward_hook(keep_last))
        try:
            return seen, self.logits(model, ids, mask)
        finally:
            for hook in hooks:
                hook.remove()

    def logits(self, model: Any, ids: Tensor, mask: Tensor | None = None, **how: Any) -> Tensor:
        """[b, t, vocabulary] of one forward pass."""
        with torch.no_grad():
            return model(**self.inputs(ids, mask), **how).logits

    def inputs(self, ids: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        """The arguments of a forward pass, with positions where the architecture takes them."""
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if mask is not None:
            inputs["attention_mask"] = mask
            if "position_ids" in inspect.signature(type(self.model).forward).parameters:
                inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_min(0)
        return inputs

    # ---- generating

    def generate(
        self, model: Any, ids: Tensor | None = None, mask: Tensor | None = None, **how: Any
    ) -> Tensor:
        """New tokens [b, NEW]; greedy unless `how` says otherwise."""
        return self._run(model, ids, mask, how).sequences[:, -NEW:]

    def said(
        self, model: Any, ids: Tensor | None = None, mask: Tensor | None = None, **how: Any
    ) -> Tensor:
        """The logits [b, NEW, vocabulary] that greedy generation chose from.

        They tell more than the tokens: those of a random model are often the same by chance.
        """
        logits = self._run(model, ids, mask, how | {"output_logits": True}).logits
        # Assisted generation of transformers 4 may return those of a token that it cut off.
        return torch.stack(logits[:NEW], dim=1)

    def _run(self, model: Any, ids: Tensor | None, mask: Tensor | None, how: dict[str, Any]) -> Any:
        if ids is None:
            ids, mask = self.ids, self.mask
        inputs = {"inputs": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}
        if "inputs_embeds" in how:
            del inputs["inputs"]
        # An end of sequence that cannot come: some decoding loops need one.
        ends = {"pad_token_id": 0, "eos_token_id": VOCABULARY}
        arguments = {"max_new_tokens": NEW, "do_sample": False} | ends | how
        with torch.no_grad():
            return model.generate(**inputs, **arguments, return_dict_in_generate=True)

    def slowly(self, positions: str) -> Tensor:
        """What `said` should be: whole forward passes, no cache, a hook of our own."""
        ids, width, said = self.ids, self.ids.shape[1], []
        for _ in range(NEW):
            real = torch.cat([self.mask, self.mask.new_ones(len(ids), ids.shape[1] - width)], dim=1)
            place = torch.arange(ids.shape[1])
            start, end = {
                "all": (0, ids.shape[1]),
                "prompt": (0, width),
                "generated": (width, ids.shape[1]),
                "last+generated": (width - 1, ids.shape[1]),
            }[positions]
            chosen = real.bool() & (place >= start) & (place < end)
            with self._moved(chosen):
                said.append(self.logits(self.model, ids, real)[:, -1])
            ids = torch.cat([ids, said[-1].argmax(dim=-1, keepdim=True)], dim=1)
        return torch.stack(said, dim=1)

    @contextmanager
    def _moved(self, chosen: Tensor) -> Iterator[None]:
        def move(_module: nn.Module, _args: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            moved = torch.where(chosen.unsqueeze(-1), self.expected(hidden), hidden)
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        hook = self.blocks(self.model)[LAYER].register_forward_hook(move)
        try:
            yield
        finally:
            hook.remove()


def same(one: Tensor, other: Tensor, what: str) -> None:
    """Bit for bit."""
    assert torch.equal(one, other), f"{what}: not equal"


def close(one: Tensor, other: Tensor, what: str, tolerance: float = 2e-4) -> None:
    """Equal but for the rounding of another order of the same sums, relative to the largest."""
    scale = float(other.abs().max().clamp_min(1.0))
    gap = float((one - other).abs().max())
    assert gap <= tolerance * scale, f"{what}: off by {gap:.2g} where {scale:.2g} is the largest"
