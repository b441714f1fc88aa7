"""Steering libraries with one mistake each, for the conformance suite to find."""

import threading
from collections.abc import Callable
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from odesteer.testing import Adapter, OdesteerVector, Steered
from odesteer.testing.suite.architectures import DEPTH

Steps = str | Tensor  # positions


class Hooked(Adapter):
    """A forward hook that adds to every token: what most libraries are."""

    name = "hooked"

    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        def hook(_block: nn.Module, _args: object, kwargs: dict[str, Any], a: Tensor) -> Tensor:
            return self.move(a, vector, kwargs)

        block = self.blocks(model)[layer]
        handle = block.register_forward_hook(hook, with_kwargs=True)
        return Steered(model, handle.remove)

    def blocks(self, model: Any) -> nn.ModuleList:
        return next(module for module in model.modules() if isinstance(module, nn.ModuleList))

    def move(self, a: Tensor, vector: Tensor, kwargs: dict[str, Any]) -> Tensor:
        return self.expected(a, vector)


class OneBlockTooEarly(Hooked):
    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        return super().attach(model, layer - 1, vector, positions)


class AddsTwice(Hooked):
    def move(self, a: Tensor, vector: Tensor, kwargs: dict[str, Any]) -> Tensor:
        return self.expected(self.expected(a, vector), vector)


class NeverTheFirstBlock(Hooked):
    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        return super().attach(model, max(layer, 1), vector, positions)


class NeverTheLastBlock(Hooked):
    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        return super().attach(model, layer, vector * (layer < DEPTH - 1), positions)


class AllWhereTheLastWasAsked(OdesteerVector):
    positions = ("last+generated",)

    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        return super().attach(model, layer, vector, "all")


class IgnoresTheMask(OdesteerVector):
    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        chosen = positions if isinstance(positions, str) else "all"
        return super().attach(model, layer, vector, chosen)


class LastColumn(Hooked):
    """Takes the last column of a call for the last token: of a chunk, or padding on the right."""

    positions = ("last+generated",)

    def move(self, a: Tensor, vector: Tensor, kwargs: dict[str, Any]) -> Tensor:
        return torch.cat([a[:, :-1], self.expected(a[:, -1:], vector)], dim=1)


class Widens(Hooked):
    def move(self, a: Tensor, vector: Tensor, kwargs: dict[str, Any]) -> Tensor:
        return a.float() + vector


class RoundsThroughBfloat16(Hooked):
    def move(self, a: Tensor, vector: Tensor, kwargs: dict[str, Any]) -> Tensor:
        moved = self.expected(a, vector)
        return moved if a.dtype == torch.float32 else moved.to(torch.bfloat16).to(a.dtype)


class _Wrapped(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        model: Any = self.model
        return model.generate(*args, **kwargs)


class AnotherModelToCall(Hooked):
    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        handle = super().attach(model, layer, vector, positions)
        return Steered(_Wrapped(model), handle.remove)


class _LogitsAlone(_Wrapped):
    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)


class DropsWhatIsAskedFor(Hooked):
    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        handle = super().attach(model, layer, vector, positions)
        return Steered(_LogitsAlone(model), handle.remove)


class Detaches(Hooked):
    def move(self, a: Tensor, vector: Tensor, kwargs: dict[str, Any]) -> Tensor:
        return self.expected(a.detach(), vector)


class NotWhenRecomputed(Hooked):
    """Inside the next block, and once: not when its activations are recomputed for a gradient."""

    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        to_come = [True]

        def hook(_norm: nn.Module, args: tuple[Tensor]) -> Tensor | None:
            return self.expected(args[0], vector) if to_come and to_come.pop() else None

        block: Any = self.blocks(model)[layer + 1]
        handle = block.input_layernorm.register_forward_pre_hook(hook)
        return Steered(model, handle.remove)


class DoesNothing(Hooked):
    def move(self, a: Tensor, vector: Tensor, kwargs: dict[str, Any]) -> Tensor:
        return a


class PrefillOnly(Hooked):
    def move(self, a: Tensor, vector: Tensor, kwargs: dict[str, Any]) -> Tensor:
        return self.expected(a, vector) if a.shape[1] > 1 else a


class OneTokenTooEarly(OdesteerVector):
    positions = ("generated",)

    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        return super().attach(model, layer, vector, "last+generated")


class CountsPadding(Hooked):
    """From the fourth column on, whatever stands before it."""

    def move(self, a: Tensor, vector: Tensor, kwargs: dict[str, Any]) -> Tensor:
        if a.shape[1] == 1:
            return self.expected(a, vector)
        return torch.cat([a[:, :3], self.expected(a[:, 3:], vector)], dim=1)


class DrawsNumbers(Hooked):
    def move(self, a: Tensor, vector: Tensor, kwargs: dict[str, Any]) -> Tensor:
        torch.rand_like(a)
        return self.expected(a, vector)


class KnowsOneCache(Hooked):
    def move(self, a: Tensor, vector: Tensor, kwargs: dict[str, Any]) -> Tensor:
        past = kwargs.get("past_key_values")
        known = past is None or type(past) is DynamicCache
        return self.expected(a, vector) if known else a


class ReadsTokens(Hooked):
    """Moves tokens that it saw on their way into the embeddings."""

    def attach(self, model: Any, layer: int, vector: Tensor, positions: Steps) -> Steered:
        seen: list[torch.Size] = []

        def look(_embeddings: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[:] = [args[0].shape]

        def hook(_block: nn.Module, _args: object, a: Tensor) -> Tensor:
            return self.expected(a, vector) if seen == [a.shape[:2]] else a

        handles = [
            model.get_input_embeddings().register_forward_pre_hook(look),
            self.blocks(model)[layer].register_forward_hook(hook),
        ]
        return Steered(model, lambda: [handle.remove() for handle in handles])


class OnInGenerateAlone(Hooked):
    def attach(self, model: Any, layer: int, vector: Tensor, positions: Steps) -> Steered:
        attach, generate = super().attach, model.generate

        def steered(_model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            with attach(model, layer, vector, positions):
                return generate(*args, **kwargs)

        model.generate = MethodType(steered, model)
        return Steered(model, lambda: vars(model).pop("generate", None))


class OnInOneThread(Hooked):
    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        self.thread = threading.get_ident()
        return super().attach(model, layer, vector, positions)

    def move(self, a: Tensor, vector: Tensor, kwargs: dict[str, Any]) -> Tensor:
        return self.expected(a, vector) if threading.get_ident() == self.thread else a


class LeavesItsHook(Hooked):
    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        on = [True]

        def hook(_block: nn.Module, _args: object, a: Tensor) -> Tensor:
            return self.expected(a, vector) if on else a

        self.blocks(model)[layer].register_forward_hook(hook)
        return Steered(model, on.clear)


class WearsTheWeights(Hooked):
    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        handle = super().attach(model, layer, vector, positions)

        def remove() -> None:
            handle.remove()
            with torch.no_grad():
                next(model.parameters()).mul_(1 + 1e-6)

        return Steered(model, remove)


class _UnlessSomethingFailed(Steered):
    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.remove()


class StaysAfterAnException(Hooked):
    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        handle = super().attach(model, layer, vector, positions)
        return _UnlessSomethingFailed(model, handle.remove)


class TakesTheLastHookOff(Hooked):
    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        super().attach(model, layer, vector, positions)
        hooks = self.blocks(model)[layer]._forward_hooks
        return Steered(model, lambda: hooks and hooks.popitem())


class KeepsTheModel(Hooked):
    kept: ClassVar[list[nn.Module]] = []

    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        self.kept.append(model)
        return super().attach(model, layer, vector, positions)


class _ReplacedBlock(nn.Module):
    def __init__(self, block: nn.Module, move: Callable[[Tensor], Tensor]):
        super().__init__()
        self.block, self.move = block, move

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.move(self.block(*args, **kwargs))


class ReplacesTheBlock(Hooked):
    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        blocks = self.blocks(model)
        block = blocks[layer]
        blocks[layer] = _ReplacedBlock(block, lambda a: self.expected(a, vector))
        return Steered(model, lambda: blocks.__setitem__(layer, block))


class OneSteeringAModel(Hooked):
    def __init__(self) -> None:
        self.last: Steered | None = None

    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        if self.last is not None:
            self.last.remove()
        self.last = super().attach(model, layer, vector, positions)
        return self.last


class OneSteeringABlock(Hooked):
    def attach(self, model: nn.Module, layer: int, vector: Tensor, positions: Steps) -> Steered:
        self.blocks(model)[layer]._forward_hooks.clear()
        return super().attach(model, layer, vector, positions)


class OnePathToTheBlocks(Hooked):
    def blocks(self, model: Any) -> nn.ModuleList:
        layers: nn.ModuleList = model.model.layers
        return layers


BROKEN: tuple[tuple[str, type[Adapter]], ...] = (
    ("below", OneBlockTooEarly),
    ("moved", AddsTwice),
    ("layers", NeverTheFirstBlock),
    ("layers", NeverTheLastBlock),
    ("positions", AllWhereTheLastWasAsked),
    ("mask", IgnoresTheMask),
    ("padding", LastColumn),
    ("half", Widens),
    ("half", RoundsThroughBfloat16),
    ("form", DropsWhatIsAskedFor),
    ("gradients", Detaches),
    ("checkpointing", NotWhenRecomputed),
    ("text", DoesNothing),
    ("cache", PrefillOnly),
    ("meaning", OneTokenTooEarly),
    ("batch", CountsPadding),
    ("beams", PrefillOnly),
    ("sampling", DrawsNumbers),
    ("assisted", LastColumn),
    ("static", KnowsOneCache),
    ("chunks", LastColumn),
    ("embeddings", ReadsTokens),
    ("loop", OnInGenerateAlone),
    ("threads", OnInOneThread),
    ("removed", LeavesItsHook),
    ("removed", WearsTheWeights),
    ("exception", StaysAfterAnException),
    ("twice", TakesTheLastHookOff),
    ("forgotten", Hooked),
    ("freed", KeepsTheModel),
    ("itself", AnotherModelToCall),
    ("itself", ReplacesTheBlock),
    ("two layers", OneSteeringAModel),
    ("nested", OneSteeringABlock),
    ("peft", OnePathToTheBlocks),
    ("compile", Hooked),
)
"""A check, and a library that it must find wrong."""
