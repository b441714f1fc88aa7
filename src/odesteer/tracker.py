"""What are the tokens of the forward pass that is running?

Prompt or generated, real or padding: one `Tracker` a model finds out, for all its handles. It
watches the calls of the decoder (mask, cache) and, through a wrapper in the instance, how
long the prompt of `generate` is. It goes away with the last handle.
"""

import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from odesteer.calls import Call, cache_among, last_real, own_length, plain_mask, tokens_of
from odesteer.compiled import mark
from odesteer.hooks import Hook
from odesteer.layers import find_decoder, unwrap


class _State(threading.local):
    """What a thread knows of the call it is in; these are the values outside of any."""

    call: Call | None = None
    tokens: tuple[int, ...] | None = None  # (b, t)
    end: int = 0  # absolute position after the last token
    grad: bool = False
    mask: Tensor | None = None  # of the model around the decoder
    prompt: tuple[int, Any, int] | None = None  # of `generate`: length, mask, rows
    lengths: Tensor | None = None  # of `scoring`


class Tracker:
    """Knows what the tokens of the running forward pass are; shared by a model's handles.

    Each thread has a state of its own, so that threads that share a model do not mix.
    """

    _all: ClassVar["weakref.WeakKeyDictionary[nn.Module, Tracker]"] = weakref.WeakKeyDictionary()
    # Re-entrant: a forgotten handle may be collected, and release, while another is acquiring.
    _lock: ClassVar = threading.RLock()

    def __init__(self, model: nn.Module):
        # Weak: the registry must not keep the model alive.
        self._model = weakref.ref(model)
        self._users = 0
        self._local = _State()
        self._undo: list[Callable[[], None]] = []
        # Tokens in caches, for those that do not count them themselves.
        self._lengths: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        # Calls that a backward pass may run again, by the shape [b, t] of their tokens; not
        # by thread, as the backward pass may have one of its own.
        self._again: dict[tuple[int, ...], Call] = {}

    @classmethod
    def of(cls, model: nn.Module) -> "Tracker":
        """The tracker of a model, or of the model in a wrapper (PEFT, torch.compile)."""
        inner = unwrap(model)
        with cls._lock:
            if inner not in cls._all:
                cls._all[inner] = cls(inner)
            return cls._all[inner]

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """(b, t) of the running forward pass."""
        return self._local.tokens

    def call_of(self, hidden: Tensor) -> tuple[Call, bool]:
        """What the tokens of `hidden` [b, t, d] are, and whether they are run a second time.

        Gradient checkpointing runs parts of a block again in the backward pass, when the
        decoder's own call is long over.
        """
        call: Call | None = self._local.call
        shape = tuple(hidden.shape[:2])
        if call is not None:
            if self._local.grad:
                self._again[shape] = call
            return call, False
        if shape in self._again and torch.is_grad_enabled():
            return self._again[shape], True
        return Call(0, hidden.shape[1], None, None), False

    def expand_rows(self, rows: Tensor, batch: int) -> Tensor:
        """A mask [batch] of those prompts' rows, also when `generate` repeats each for beams."""
        prompt = self._local.prompt
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
                self._again.clear()
                # A call that is on its way in another thread will not be seen to end.
                self._local = _State()
                while self._undo:
                    self._undo.pop()()

    def _install(self) -> None:
        model = self._model()
        assert model is not None  # a handle that holds its block is being made
        decoder = find_decoder(model)
        self._undo.append(mark(decoder))
        self._watch(decoder, self._enter, self._leave)
        for part in _inner_generators(model, decoder):
            self._undo.append(self._watch_generate(part))
        if model is not decoder:
            # A decoder inside another model may be handed a mask of another form.
            self._watch(model, self._enter_outer, self._leave_outer)
        if hasattr(model, "generate"):
            self._undo.append(self._watch_generate(model))

    def _watch(
        self,
        module: nn.Module,
        enter: Callable[[_State, dict[str, Any]], None],
        leave: Callable[[_State, Any], None],
    ) -> None:
        """Call `enter` with a module's arguments by name, and `leave` with what it returns."""
        signature = inspect.signature(module.forward)
        # Not looked up later: what a call is on its way to write once this watch has come off
        # must not be taken for the state of another call.
        state = self._local

        @torch.compiler.disable
        def before(_module: nn.Module, args: Any, kwargs: Any = None) -> None:
            if kwargs is None:
                return  # taken off by another thread, while torch was about to call it
            arguments = signature.bind_partial(*args, **kwargs).arguments
            enter(state, arguments | arguments.get("kwargs", {}))

        @torch.compiler.disable
        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            leave(state, output)

        self._undo.append(module.register_forward_pre_hook(Hook(before), with_kwargs=True).remove)
        self._undo.append(module.register_forward_hook(Hook(after), always_call=True).remove)

    def _enter_outer(self, state: _State, arguments: dict[str, Any]) -> None:
        state.mask = plain_mask(arguments.get("attention_mask"))

    def _leave_outer(self, state: _State, _output: Any) -> None:
        state.mask = None

    def _enter(self, state: _State, arguments: dict[str, Any]) -> None:
        call = self._describe(state, arguments)
        # What attention over packed rows is told: where each text begins.
        call.packed = arguments.get("cu_seq_lens_q") is not None
        # Asked here: inside a block that will run again, gradients may be off.
        state.grad = torch.is_grad_enabled()
        state.tokens = tuple(tokens_of(arguments).shape[:2])
        state.end = call.offset + state.tokens[1]
        state.call = call

    def _leave(self, state: _State, output: Any) -> None:
        state.call = state.tokens = None
        cache = cache_among(lambda name: getattr(output, name, None))
        # A list of states cannot be known again.
        with suppress(TypeError):
            if cache is not None:
                self._lengths[cache] = state.end

    def _watch_generate(self, model: Any) -> Callable[[], None]:
        """Let `model.generate` tell how long its prompt is; the undo restores what was there."""
        original = model.generate
        had_own = "generate" in vars(model)
        reference = weakref.ref(model)

        def generate(*args: Any, **kwargs: Any) -> Any:
            named = [kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds")]
            prompt = next((given for given in (*args[:1], *named) if given is not None), None)
            batch, length = (1, 1) if prompt is None else prompt.shape[:2]
            with self._generating(length, kwargs.get("attention_mask"), batch):
                return original(*args, **kwargs)

        def undo() -> None:
            alive = reference()
            if alive is not None and had_own:
                alive.generate = original
            elif alive is not None:
                del alive.generate

        model.generate = generate
        return undo

    @contextmanager
    def _generating(self, length: int, mask: Tensor | None, batch: int) -> Iterator[None]:
        state = self._local
        outer = state.prompt
        state.prompt, state.end = (length, mask, batch), 0
        try:
            yield
        finally:
            state.prompt = outer

    @contextmanager
    def scoring(self, lengths: Tensor) -> Iterator[None]:
        """While open, calls hold prompts of these lengths [b] (padding included) and what follows.

        For reading prompts together with their continuations in one pass, as if each
        continuation had been generated.
        """
        state = self._local
        state.lengths = lengths
        try:
            yield
        finally:
            state.lengths = None

    def _describe(self, state: _State, arguments: dict[str, Any]) -> Call:
        batch, t = tokens_of(arguments).shape[:2]
        given_mask = plain_mask(arguments.get("attention_mask"))
        mask = state.mask if given_mask is None else given_mask
        prompt = state.prompt
        offset = self._offset(state, arguments, t, mask)
        if prompt is not None and offset >= prompt[0]:
            # Decoding: nothing but generated tokens, and no look at the mask, which would
            # make a GPU wait once a token.
            return Call(offset, prompt[0], None, None)
        lengths = state.lengths
        if lengths is not None:
            real = None if mask is None else mask[:, offset : offset + t] != 0
            return Call(offset, lengths, real, lengths - 1)
        length = offset if offset > 0 else t
        prompt_mask = mask
        if prompt is not None:
            length, given, _ = prompt
            # The mask given to `generate` covers the whole prompt; the one of this call ends
            # with its chunk when the prompt is read in chunks.
            prompt_mask = plain_mask(given)
            if prompt_mask is None and mask is not None and mask.shape[1] >= length:
                prompt_mask = mask
            elif prompt_mask is not None:
                prompt_mask = prompt_mask.repeat_interleave(batch // len(prompt_mask), dim=0)
            mask = prompt_mask if mask is None else mask
        last = None if prompt_mask is None else last_real(prompt_mask[:, :length])
        if mask is None or bool((mask != 0).all()):
            return Call(offset, length, None, last)
        # Positions beyond the mask (it may cover the prompt alone) are generated: real.
        real = torch.ones(batch, t, dtype=torch.bool, device=mask.device)
        known = mask[:, offset : offset + t] != 0
        real[:, : known.shape[1]] = known
        return Call(offset, length, real, last)

    def _offset(self, state: _State, arguments: dict[str, Any], t: int, mask: Tensor | None) -> int:
        """How many tokens came before those of this call."""
        places = arguments.get("cache_position")
        if isinstance(places, Tensor) and places.numel():
            # transformers 4 says it; the length of its static cache leaves out padding.
            return int(places[0])
        cache = cache_among(arguments.get)
        if cache is None:
            return 0
        length = own_length(cache)
        if length is not None:
            return length
        with suppress(KeyError, TypeError):
            return self._lengths[cache]
        if state.prompt is not None:
            return int(state.end)
        return 0 if mask is None else mask.shape[1] - t


def _inner_generators(model: nn.Module, decoder: nn.Module) -> list[nn.Module]:
    """List the parts of a model that hold its decoder and generate by themselves.

    BLIP-2 and Kosmos-2 hand over to the language model inside: their own `generate` begins with
    pixels, and which tokens stand for the image is known to the inner one alone.
    """
    parts = [part for part in model.modules() if part is not model and hasattr(part, "generate")]
    return [part for part in parts if any(module is decoder for module in part.modules())]
