"""Testbed of the conformance suite, and the adapter through which it drives a library.

Every library can add a vector to the output of a decoder block; no more is required. An adapter
says how, and what else the library offers.

The testbed is one tiny model, a library that steers it, prompts, and ways to look inside the model
that do not depend on the library.
"""

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from odesteer import Angle, Steering, __version__
from odesteer.models.batching import pad
from odesteer.ode import ConstantField, GradientField, QuadraticBarrier, Whitening
from odesteer.testing.suite.architectures import ARCHITECTURES, VOCABULARY, WIDTH, Architecture

POSITIONS = ("all", "last+generated", "generated", "prompt")


class NotOffered(Exception):
    """Something that a library does not claim to do; it does not count as a failure."""


class Steered:
    """Steered model, until `remove` or the end of the `with` block.

    Args:
        model: what a user of the library calls, the model itself or a wrapper.
        remove: takes the steering off.
    """

    def __init__(self, model: nn.Module, remove: Callable[[], object]):
        self.model = model
        self.remove = remove

    def __enter__(self) -> "Steered":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class Adapter(ABC):
    """Interface of a steering library to the suite.

    Attributes:
        name: of the library.
        version: of the library.
        positions: those of `POSITIONS` that it can steer: "all" tokens; the "prompt"; the
            "generated" ones, the first of them included; or the prompt's last and those.
        masks: whether `attach` takes a mask [t] of positions, true where to steer.
        unclaimed: by check, why the library does not claim it: "not offered" everywhere.
    """

    name: ClassVar[str]
    version: ClassVar[str] = ""
    positions: ClassVar[tuple[str, ...]] = ("all",)
    masks: ClassVar[bool] = False
    unclaimed: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def attach(
        self, model: nn.Module, layer: int, vector: Tensor, positions: str | Tensor
    ) -> Steered:
        """Steer `model`, a transformers causal language model, as a user would.

        Args:
            model: to be steered; `remove` must leave it as it is now.
            layer: 0-based index of the decoder block whose output is steered.
            vector: [d], float32, to be added.
            positions: one of `self.positions`, or a mask [t].

        Raises:
            NotOffered: if the library does not claim to do this.
        """

    def expected(self, a: Tensor, vector: Tensor) -> Tensor:
        """Return activations [..., d] as `attach` moves them."""
        return (a.float() + vector).to(a.dtype)


class Unsteered(Adapter):
    """Control: a check that the unsteered model fails says nothing about a library."""

    name = "unsteered"
    positions = POSITIONS
    masks = True

    def attach(
        self, model: nn.Module, layer: int, vector: Tensor, positions: str | Tensor
    ) -> Steered:
        return Steered(model, lambda: None)

    def expected(self, a: Tensor, vector: Tensor) -> Tensor:
        return a


class OdesteerVector(Adapter):
    """Constant field: one vector, as in every library."""

    name = "odesteer"
    version = __version__
    positions = POSITIONS
    masks = True

    def steering(self, vector: Tensor, layer: int | None = None) -> Steering:
        return Steering(ConstantField(vector), layer=layer)

    def attach(
        self, model: nn.Module, layer: int, vector: Tensor, positions: str | Tensor
    ) -> Steered:
        handle = self.steering(vector, layer).attach(model, positions=positions)
        return Steered(model, handle.remove)

    def expected(self, a: Tensor, vector: Tensor) -> Tensor:
        return self.steering(vector)(a)


class OdesteerFlow(OdesteerVector):
    """Flow: every activation follows a barrier along great circles, for 0.8 of its norm."""

    name = "odesteer (ODE)"

    def steering(self, vector: Tensor, layer: int | None = None) -> Steering:
        d = len(vector)
        generator = torch.Generator().manual_seed(0)
        form = torch.randn(d, d, generator=generator)
        barrier = QuadraticBarrier.from_form(form, 3 * vector, 0.0, Whitening(torch.zeros(d)))
        field = GradientField(barrier.float())
        return Steering(field, Angle(0.8), solver="great-circle", steps=5, layer=layer)


NEW = 6  # tokens in a generation
LENGTHS = (4, 9, 7)  # of the prompts, in tokens
LAYER = 1


@cache
def _build(architecture: str, seed: int) -> nn.Module:
    return ARCHITECTURES[architecture].build(seed)


class Testbed:
    """Model of one architecture, prompts, and one library.

    Attributes:
        model: a fresh copy for each bench.
        prompts: token ids [1, t] without padding.
        ids, mask: the prompts as one batch, padded on the left.
        vector: added by the steering, of a typical activation's norm.
    """

    def __init__(self, architecture: Architecture, adapter: Adapter):
        self.architecture = architecture
        self.adapter = adapter
        self.model: Any = self.fresh()
        self.prompts = [self.tokens(length, seed=length) for length in LENGTHS]
        self.ids, self.mask = self.padded(left=True)
        self.vector = self.direction(0)

    def fresh(self, seed: int = 0) -> nn.Module:
        """Return a new copy of the model; another `seed` gives another model."""
        return copy.deepcopy(_build(self.architecture.model_type, seed))

    def direction(self, seed: int) -> Tensor:
        """Return a random vector [d]."""
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))

    def tokens(self, length: int, seed: int) -> Tensor:
        """Return random token ids [1, length], none of them special."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(7, VOCABULARY, (1, length), generator=generator)

    def padded(self, left: bool) -> tuple[Tensor, Tensor]:
        """Return the prompts as one batch: ids and mask [b, t]."""
        return pad([row[0].tolist() for row in self.prompts], left=left)

    def attach(
        self,
        positions: str | Tensor | None = None,
        layer: int = LAYER,
        vector: Tensor | None = None,
        model: nn.Module | None = None,
    ) -> Steered:
        """Steer the model as a user of the library does."""
        return self.adapter.attach(
            self.model if model is None else model,
            layer,
            self.vector if vector is None else vector,
            self.adapter.positions[0] if positions is None else positions,
        )

    def expected(self, a: Tensor, vector: Tensor | None = None) -> Tensor:
        """Return activations [..., d] as the library moves them."""
        return self.adapter.expected(a, self.vector if vector is None else vector)

    @property
    def steers(self) -> bool:
        """Whether the adapter moves anything: False for the control."""
        return not isinstance(self.adapter, Unsteered)

    def changed(self, steered: Tensor, plain: Tensor, what: str) -> None:
        """Assert that the steering made a difference."""
        if self.steers:
            assert not torch.equal(steered, plain), f"{what}: the steering changed nothing"

    def blocks(self, model: nn.Module) -> Any:
        """Return the decoder blocks, at the architecture's path."""
        return model.get_submodule(self.architecture.blocks)

    def read(
        self, model: Any, ids: Tensor, mask: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return every block's output as the next module receives it, and the logits."""
        outputs: list[Tensor] = []

        def keep(_module: nn.Module, args: Any, kwargs: Any) -> None:
            outputs.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

        def keep_last(_module: nn.Module, _args: Any, output: Any) -> None:
            outputs.append((output[0] if isinstance(output, tuple) else output).detach().clone())

        blocks = self.blocks(self.model)
        hooks = [block.register_forward_pre_hook(keep, with_kwargs=True) for block in blocks[1:]]
        # No block comes after the last one. Registered after the library's, this hook runs later.
        hooks.append(blocks[-1].register_forward_hook(keep_last))
        try:
            return outputs, self.logits(model, ids, mask)
        finally:
            for hook in hooks:
                hook.remove()

    def logits(self, model: Any, ids: Tensor, mask: Tensor | None = None, **how: Any) -> Tensor:
        """Return the logits [b, t, vocabulary] of one forward pass."""
        with torch.no_grad():
            return model(**self.inputs(ids, mask), **how).logits

    def inputs(self, ids: Tensor, mask: Tensor | None = None) -> dict[str, Any]:
        """Return the arguments of a forward pass, with positions if the architecture takes them."""
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if mask is not None:
            inputs["attention_mask"] = mask
            if "position_ids" in inspect.signature(type(self.model).forward).parameters:
                inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp_min(0)
        return inputs

    def generate(
        self, model: Any, ids: Tensor | None = None, mask: Tensor | None = None, **how: Any
    ) -> Tensor:
        """Return new tokens [b, NEW]; greedy unless `how` says otherwise."""
        return self._run(model, ids, mask, how).sequences[:, -NEW:]

    def next_logits(
        self, model: Any, ids: Tensor | None = None, mask: Tensor | None = None, **how: Any
    ) -> Tensor:
        """Return the logits [b, NEW, vocabulary] from which greedy generation chose.

        They tell more than the tokens, which a random model often repeats by chance.
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
        # An end of sequence that cannot occur: some decoding loops need one.
        ends = {"pad_token_id": 0, "eos_token_id": VOCABULARY}
        arguments = {"max_new_tokens": NEW, "do_sample": False} | ends | how
        with torch.no_grad():
            return model.generate(**inputs, **arguments, return_dict_in_generate=True)

    def reference_logits(self, positions: str) -> Tensor:
        """Return what `next_logits` should: whole forward passes, no cache, an independent hook."""
        ids, width, logits = self.ids, self.ids.shape[1], []
        for _ in range(NEW):
            real = torch.cat([self.mask, self.mask.new_ones(len(ids), ids.shape[1] - width)], dim=1)
            index = torch.arange(ids.shape[1])
            start, end = {
                "all": (0, ids.shape[1]),
                "prompt": (0, width),
                "generated": (width, ids.shape[1]),
                "last+generated": (width - 1, ids.shape[1]),
            }[positions]
            chosen = real.bool() & (index >= start) & (index < end)
            with self._moved(chosen):
                logits.append(self.logits(self.model, ids, real)[:, -1])
            ids = torch.cat([ids, logits[-1].argmax(dim=-1, keepdim=True)], dim=1)
        return torch.stack(logits, dim=1)

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


def same(actual: Tensor, expected: Tensor, what: str) -> None:
    """Assert that two tensors are equal bit for bit."""
    assert torch.equal(actual, expected), f"{what}: not equal"


def close(actual: Tensor, expected: Tensor, what: str, tolerance: float = 2e-4) -> None:
    """Assert equality up to the rounding of reordered sums, relative to the largest value."""
    scale = float(expected.abs().max().clamp_min(1.0))
    gap = float((actual - expected).abs().max())
    assert gap <= tolerance * scale, f"{what}: off by {gap:.2g} where {scale:.2g} is the largest"
