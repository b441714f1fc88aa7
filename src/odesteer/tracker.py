"""What are the tokens of the forward pass that is running?

Prompt or generated, real or padding: one `Tracker` a model finds out, for all its handles. It
watches the calls of the decoder (mask, cache) and, through a wrapper in the instance, how
long the prompt of `generate` is. It goes away with the last handle.
"""

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from odesteer.layers import find_layers


@dataclass
class Call:
    """What the tokens of the running forward pass are."""

    offset: int  # absolute position of the first token
    prompt_length: int | Tensor  # positions from here on are generated; a tensor is one a row, [b]
    real: Tensor | None  # [b, t], None when every token is
    last: Tensor | None  # [b], absolute position of each prompt's last real token

    def prompt_ends(self, batch: int, device: torch.device) -> Tensor:
        """[b], absolute position of the last token of each prompt."""
        last = self.last
        if last is None:
            last = torch.as_tensor(self.prompt_length) - 1
        return last.to(device).expand(batch)


class Tracker:
    """Knows what the tokens of the running forward pass are; shared by a model's handles.

    Each thread has a state of its own, so that threads that share a model do not mix.
    """

    _all: ClassVar["weakref.WeakKeyDictionary[nn.Module, Tracker]"] = weakref.WeakKeyDictionary()
    _lock: ClassVar = threading.Lock()

    def __init__(self, model: nn.Module):
        # Weak: the registry must not keep the model alive.
        self._model = weakref.ref(model)
        self._users = 0
        self._local = threading.local()
        self._undo: list[Callable[[], None]] = []

    @classmethod
    def of(cls, model: nn.Module) -> "Tracker":
        """The tracker of a model, or of the model that a PEFT wrapper holds."""
        unwrap: Any = getattr(model, "get_base_model", None)
        inner: nn.Module = model if unwrap is None else unwrap()
        with cls._lock:
            if inner not in cls._all:
                cls._all[inner] = cls(inner)
            return cls._all[inner]

    @property
    def call(self) -> Call | None:
        return getattr(self._local, "call", None)

    def expand_rows(self, rows: Tensor, batch: int) -> Tensor:
        """A mask [batch] of those prompts' rows, also when `generate` repeats each for beams."""
        prompt = getattr(self._local, "prompt", None)
        prompts = batch if prompt is None else prompt[2]
        if batch % prompts or bool(((rows < 0) | (rows >= prompts)).any()):
            raise ValueError(
                f"rows {rows.tolist()} do not fit a batch of {batch} rows ({prompts} prompts)."
            )
        mask = torch.zeros(prompts, dtype=torch.bool)
        mask[rows] = True
        return mask.repeat_interleave(batch // prompts)

    def acquire(self) -> None:
        with self._lock:
            if self._users == 0:
                self._install()
            self._users += 1

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                while self._undo:
                    self._undo.pop()()

    def _install(self) -> None:
        model = self._model()
        assert model is not None  # a handle that holds its block is being made
        decoder = _owner(model, find_layers(model))
        signature = inspect.signature(decoder.forward)

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            arguments = signature.bind_partial(*args, **kwargs).arguments
            self._local.call = self._describe(arguments)

        def after(_module: nn.Module, _args: Any, _output: Any) -> None:
            self._local.call = None

        hooks = [
            decoder.register_forward_pre_hook(before, with_kwargs=True),
            decoder.register_forward_hook(after, always_call=True),
        ]
        self._undo = [hook.remove for hook in hooks]
        if hasattr(model, "generate"):
            self._undo.append(self._watch_generate(model))

    def _watch_generate(self, model: Any) -> Callable[[], None]:
        """Let `model.generate` tell how long its prompt is; the undo restores what was there."""
        original = model.generate
        had_own = "generate" in vars(model)

        def generate(*args: Any, **kwargs: Any) -> Any:
            named = [kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds")]
            prompt = next((given for given in (*args[:1], *named) if given is not None), None)
            batch, length = (1, 1) if prompt is None else prompt.shape[:2]
            with self._generating(length, kwargs.get("attention_mask"), batch):
                return original(*args, **kwargs)

        model.generate = generate
        return lambda: (
            setattr(model, "generate", original) if had_own else delattr(model, "generate")
        )

    @contextmanager
    def _generating(self, length: int, mask: Tensor | None, batch: int) -> Iterator[None]:
        outer = getattr(self._local, "prompt", None)
        self._local.prompt = (length, mask, batch)
        try:
            yield
        finally:
            self._local.prompt = outer

    @contextmanager
    def scoring(self, lengths: Tensor) -> Iterator[None]:
        """While open, calls hold prompts of these lengths [b] (padding included) and what follows.

        For reading prompts together with their continuations in one pass, as if each
        continuation had been generated.
        """
        self._local.lengths = lengths
        try:
            yield
        finally:
            self._local.lengths = None

    def _describe(self, arguments: dict[str, Any]) -> Call:
        ids = arguments.get("input_ids")
        if ids is None:
            ids = arguments["inputs_embeds"]
        batch, t = ids.shape[:2]
        offset = _cached_length(arguments.get("past_key_values"))
        prompt = getattr(self._local, "prompt", None)
        if prompt is not None and offset >= prompt[0]:
            # Decoding: nothing but generated tokens, and no look at the mask, which would
            # make a GPU wait once a token.
            return Call(offset, prompt[0], None, None)
        mask = _plain(arguments.get("attention_mask"))
        lengths = getattr(self._local, "lengths", None)
        if lengths is not None:
            real = None if mask is None else mask[:, offset : offset + t] != 0
            return Call(offset, lengths, real, lengths - 1)
        length = offset if offset > 0 else t
        prompt_mask = mask
        if prompt is not None:
            length, given, _ = prompt
            # The mask given to `generate` covers the whole prompt; the one of this call ends
            # with its chunk when the prompt is read in chunks.
            prompt_mask = _plain(given)
            if prompt_mask is None and mask is not None and mask.shape[1] >= length:
                prompt_mask = mask
            elif prompt_mask is not None:
                prompt_mask = prompt_mask.repeat_interleave(batch // len(prompt_mask), dim=0)
            mask = prompt_mask if mask is None else mask
        last = None if prompt_mask is None else _last(prompt_mask[:, :length])
        if mask is None or bool((mask != 0).all()):
            return Call(
                offset,
                length,
                None,
                None if prompt_mask is None else _last(prompt_mask[:, :length]),
            )
        # Positions beyond the mask (it may cover the prompt alone) are generated: real.
        real = torch.ones(batch, t, dtype=torch.bool, device=mask.device)
        known = mask[:, offset : offset + t] != 0
        real[:, : known.shape[1]] = known
        return Call(offset, length, real, last)


def _plain(mask: Any) -> Tensor | None:
    """A [b, positions] mask; any other form does not say which tokens are padding."""
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _last(mask: Tensor) -> Tensor:
    """The position of the last real token of each row, [b]; -1 where there is none."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask != 0, columns, -1).amax(dim=1)


def _cached_length(cache: Any) -> int:
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    return int(cache[0][0].shape[-2])  # the legacy form: a tuple of (keys, values) a layer


def _owner(model: nn.Module, blocks: nn.ModuleList) -> nn.Module:
    """The module that holds the list of blocks: the decoder without its head."""
    for module in model.modules():
        if any(child is blocks for child in module.children()):
            return module
    raise ValueError(f"{type(model).__name__} does not own its decoder blocks.")
