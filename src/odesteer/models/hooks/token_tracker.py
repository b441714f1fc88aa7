"""Token tracker: prompt, generated or padding, for the running forward pass.

Each model has one `TokenTracker` for all its handles. It watches the calls of the decoder (mask,
cache) and wraps the instance's `generate` to learn the length of the prompt. It is removed with
the last handle.
"""

import functools
import inspect
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._autograd import _get_sequence_nr

from odesteer.models.hooks.registration import LOCK, Hook, add_hook, force_recompile, undo_all
from odesteer.models.layers import find_decoder, unwrap

# Names of the state that carries earlier tokens: attention, Mamba, RWKV.
_CACHES = ("past_key_values", "cache_params", "state")
# Arguments that tell where each text in a packed row begins.
_BOUNDARIES = ("cu_seq_lens_q", "seq_idx")
# An additive mask is far below this where a token does not see another.
_HIDDEN = -1e3

PACKED = (
    "Several texts share a row here (generate_batch, padding-free training, position_ids that "
    "begin again, a mask that parts them)"
)
GUIDED = "Classifier-free guidance runs the model on a second prompt"


@dataclass
class ForwardCall:
    """Kind of each token in the running forward pass: prompt, generated or padding.

    Positions count from the first token of the padded prompt. Virtual tokens (PEFT's soft
    prompts) that pass through the blocks stand before it, at negative positions.
    """

    offset: int  # position of the first token
    prompt_length: int | Tensor  # positions from here on are generated; a tensor is one a row, [b]
    real: Tensor | None  # [b, t], None when every token is
    last: Tensor | None  # [b], position of each prompt's last real token
    obstacle: str = ""  # why prompts cannot be told apart from what follows them
    mask: Tensor | None = None  # [b, positions], zero at the prompt's padding as far as it is known
    places: Tensor | None = None  # [b, t], indices of answers that share a row with their prompt
    prompt_known: bool = True  # false where a cache may hold generated tokens

    def indices(self, t: int, device: torch.device) -> tuple[Tensor, Tensor | int]:
        """Return the index of each token, and the number of real tokens in each prompt.

        An index [t] or [b, t] counts the real tokens of a row; padding has that of a neighbour,
        and virtual tokens have negative ones. The number is an int or [b, 1].
        """
        position = self.offset + torch.arange(t, device=device)
        length = self.prompt_length
        if isinstance(length, Tensor):
            length = length.to(device)[:, None]
        if self.places is not None:
            return self.places.to(device), length
        if self.mask is None:
            return position, length
        columns = torch.arange(self.mask.shape[1], device=device)
        padding = (self.mask.to(device) == 0) & (columns < length)
        before = padding.cumsum(dim=1)
        return position - before[:, position.clamp(0, len(columns) - 1)], length - before[:, -1:]

    def prompt_ends(self, batch: int, device: torch.device) -> Tensor:
        """Return [b], the position of the last token of each prompt."""
        last = self.last
        if last is None:
            last = torch.as_tensor(self.prompt_length) - 1
        return last.to(device).expand(batch)


def tokens_of(arguments: dict[str, Any]) -> Tensor:
    ids = arguments.get("input_ids")
    return arguments["inputs_embeds"] if ids is None else ids


def plain_mask(*masks: Any) -> Tensor | None:
    """Return the first [b, positions] mask; other forms do not tell padding directly."""
    return next((mask for mask in masks if isinstance(mask, Tensor) and mask.dim() == 2), None)


def square_mask(*masks: Any) -> Tensor | None:
    """Return the first [b, heads, t, keys] mask, also from a dict by attention kind."""
    for mask in masks:
        if isinstance(mask, dict):
            mask = square_mask(mask.get("full_attention"), *mask.values())
        if isinstance(mask, Tensor) and mask.dim() == 4:
            return mask
    return None


def read_square(mask: Tensor, offset: int, batch: int, t: int) -> tuple[Tensor | None, bool]:
    """Return which of t tokens are real [b, t], and whether each row is one text.

    A token is padding if it does not see itself. In one text each real token sees the real one
    right before it.
    """
    sees = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] > _HIDDEN
    keys = sees.shape[-1]
    start = offset if keys >= offset + t else keys - t  # a sliding cache holds the last ones
    if start < 0 or sees.shape[-2] != t:
        return None, False
    sees = sees[:, :, start : start + t].expand(batch, t, t)
    real = sees.diagonal(dim1=-2, dim2=-1)
    before = sees.diagonal(offset=-1, dim1=-2, dim2=-1)
    return real, t == 1 or bool((before | ~(real[:, 1:] & real[:, :-1])).all())


def real_tokens(mask: Tensor | None, offset: int, tokens: Tensor) -> Tensor | None:
    """Return which tokens [b, t] of a call are real; None when all are.

    Args:
        mask: [b, positions], zero at padding; what lies beyond it was generated.
        offset: position of the first token; virtual tokens are at negative ones.
        tokens: [b, t] or [b, t, d].
    """
    batch, t = tokens.shape[:2]
    if offset >= 0 and (mask is None or bool((mask != 0).all())):
        return None
    virtual = max(-offset, 0)
    real = torch.ones(batch, t, dtype=torch.bool, device=tokens.device)
    real[:, :virtual] = False
    if mask is not None:
        known = mask[:, offset + virtual : max(offset + t, 0)] != 0
        real[:, virtual : virtual + known.shape[1]] = known
    return real


def has_boundaries(arguments: dict[str, Any]) -> bool:
    """Whether a call says where each of several texts in a row begins."""
    return any(arguments.get(name) is not None for name in _BOUNDARIES)


def is_packed(arguments: dict[str, Any], mask: Tensor | None, real: Tensor | None) -> bool:
    """Whether a row of a call holds several texts one after another."""
    if has_boundaries(arguments):
        return True
    t = tokens_of(arguments).shape[1]
    if t == 1:
        return False
    if mask is not None and bool((mask > 1).any()):
        return True  # numbers of texts, as some trainers write them
    position_ids = arguments.get("position_ids")
    if not isinstance(position_ids, Tensor) or position_ids.shape[-1] != t:
        return False
    repeats = position_ids.dim() == 3  # tokens of an image share a time
    position_ids = position_ids[0] if repeats else position_ids
    if real is not None:
        position_ids = position_ids.masked_fill(~real.to(position_ids.device), -1)
    highest = position_ids.cummax(dim=-1).values[:, :-1]
    follows = position_ids[:, 1:] >= highest if repeats else position_ids[:, 1:] > highest
    return not bool((follows | (position_ids[:, 1:] < 0)).all())


def last_real_position(mask: Tensor) -> Tensor:
    """Return the position of the last real token of each row, [b]; -1 for none."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask != 0, columns, -1).amax(dim=1)


def cache_among(get: Callable[[str], Any]) -> Any:
    """Return the cache among a decoder's arguments or outputs, or None."""
    return next((cache for name in _CACHES if (cache := get(name)) is not None), None)


def own_length(cache: Any) -> int | None:
    """Return the tokens in a cache; None for one that does not count them."""
    if hasattr(cache, "get_seq_length"):
        try:
            return int(cache.get_seq_length())
        except ValueError:
            return None
    try:
        return int(cache[0][0].shape[-2])  # the legacy form: a tuple of (keys, values) a layer
    except (TypeError, IndexError, AttributeError, KeyError):
        return None


# ---- callers


def virtual_tokens(wrapper: Any) -> int:
    """Count the tokens that a PEFT model puts before those it is given; 0 for any other model."""
    config = getattr(wrapper, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return 0
    return int(config.num_virtual_tokens)


def calling_wrapper(model: nn.Module) -> Any:
    """Return the PEFT model whose `forward` is running `model`, or None.

    The call stack is searched since PEFT leaves no trace on the inner model, to which a steering
    may be attached, and the arguments do not tell a learnt prefix from earlier tokens.
    """
    peft = sys.modules.get("peft")
    forwards = frozenset() if peft is None else _forwards(peft.PeftModel)
    wrappers = (variables["self"] for variables in _callers(forwards))
    return next((each for each in wrappers if each.get_base_model() is model), None)


def calling_generate(model: nn.Module) -> dict[str, Any] | None:
    """Return the variables of the running `generate` of transformers, if there is one.

    It covers calls that bypass the instance's `generate`, as GenerationMixin.generate(model, ...),
    and calls that were running when the steering was attached.
    """
    running = _callers(_generates(type(model).__mro__))
    return next((variables for variables in running if variables["self"] is model), None)


def _callers(codes: frozenset[CodeType]) -> Iterator[dict[str, Any]]:
    """Yield the variables of each caller that runs one of `codes`, innermost first."""
    frame: FrameType | None = sys._getframe(1) if codes else None
    while frame is not None:
        if frame.f_code in codes:
            yield frame.f_locals
        frame = frame.f_back


@functools.cache
def _forwards(wrapper: type) -> frozenset[CodeType]:
    """Return the code of `forward` of the task subclasses, which add virtual tokens."""
    classes: list[Any] = wrapper.__subclasses__()
    return frozenset(each.forward.__code__ for each in classes)


@functools.cache
def _generates(classes: tuple[Any, ...]) -> frozenset[CodeType]:
    mixins = [each for each in classes if each.__name__ == "GenerationMixin"]
    return frozenset(inspect.unwrap(each.generate).__code__ for each in mixins)


_OUTSIDE = (
    "Gradient checkpointing runs a steered block again, but the steering was not attached for both "
    "passes: attach before the forward pass, and run backward inside the same `with` block."
)


class _Cached(NamedTuple):
    """Tokens in a cache: all of them, and those of the prompt."""

    tokens: int
    prompt: int


class _Prompt(NamedTuple):
    """Prompts of a running `generate`."""

    length: int  # padding included
    mask: Tensor | None  # [rows, length]
    rows: int
    virtual: int  # virtual tokens that PEFT puts before them
    guided: bool  # whether another prompt is read by the way, for guidance


class _Rerun(NamedTuple):
    """Forward call and the numbers of the autograd nodes that were made in it."""

    first: int
    end: int  # exclusive
    call: ForwardCall


class _State(threading.local):
    """State of a thread in a call; the defaults are the values outside of any."""

    call: ForwardCall | None = None
    tokens: tuple[int, ...] | None = None  # (b, t)
    end: int = 0  # position after the last token, in the cache
    first: int = 0  # number of the first autograd node of the call
    mask: Any = None  # of the model around the decoder
    prompt: _Prompt | None = None
    rows: int | None = None  # prompts of the `generate` that the call is a part of
    lengths: Tensor | None = None  # of `scoring`


class TokenTracker:
    """Tracker of the tokens of the running forward pass, shared by a model's handles.

    Each thread has a state of its own, so that threads that share a model do not mix.
    """

    _all: ClassVar["weakref.WeakKeyDictionary[nn.Module, TokenTracker]"] = (
        weakref.WeakKeyDictionary()
    )
    _lock: ClassVar = LOCK

    def __init__(self, model: nn.Module):
        # Weak: the registry must not keep the model alive.
        self._model = weakref.ref(model)
        # By user: whether it acts inside a block, where gradient checkpointing runs it again.
        self._users: dict[object, bool] = {}
        self._local = _State()
        self._undo: list[Callable[[], None]] = []
        self._cached: weakref.WeakKeyDictionary[Any, _Cached] = weakref.WeakKeyDictionary()
        # Calls that a backward pass may run parts of again, the latest last.
        self._again: deque[_Rerun] = deque(maxlen=256)

    @classmethod
    def of(cls, model: nn.Module) -> "TokenTracker":
        """Return the tracker of a model, also of one wrapped by PEFT or torch.compile."""
        inner = unwrap(model)
        with cls._lock:
            if inner not in cls._all:
                cls._all[inner] = cls(inner)
            return cls._all[inner]

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """(b, t) of the running forward pass."""
        return self._local.tokens

    def call_of(self, hidden: Tensor) -> tuple[ForwardCall, bool]:
        """Return the call that `hidden` [b, t, d] belongs to, and whether it is a rerun.

        Gradient checkpointing runs parts of a block again in the backward pass, when the
        decoder's own call is long over. Autograd numbers its nodes in the order in which they
        were made, so the node that is running tells the call that it comes from.

        Raises:
            RuntimeError: if a backward pass runs again what this tracker has not seen.
        """
        call: ForwardCall | None = self._local.call
        if call is not None:
            return call, False
        node = torch._C._current_autograd_node()
        if node is None:
            return ForwardCall(0, hidden.shape[1], None, None), False
        calls = [each.call for each in self._again if each.first <= node._sequence_nr() < each.end]
        if len(calls) != 1:
            # None: a call from before the steering was attached. Two: of different threads.
            raise RuntimeError(_OUTSIDE)
        return calls[0], True

    def expand_rows(self, rows: Tensor, batch: int) -> Tensor:
        """Return a mask [batch] of the rows of those prompts, beams included."""
        prompts = self._local.rows or batch
        if batch % prompts or bool(((rows < 0) | (rows >= prompts)).any()):
            raise ValueError(
                f"rows {rows.tolist()} do not fit a batch of {batch} rows ({prompts} prompts)."
            )
        mask = torch.zeros(prompts, dtype=torch.bool)
        mask[rows] = True
        return mask.repeat_interleave(batch // prompts)

    def acquire(self, user: object, inside: bool) -> None:
        """Watch the model for one more steering; `inside` if it acts inside a block."""
        with self._lock:
            first = not self._users
            self._users[user] = inside
            if first:
                self._install()

    def release(self, user: object) -> None:
        """Watch it for one steering less; also for one that `acquire` was cut off for."""
        with self._lock:
            self._users.pop(user, None)
            if not self._users:
                self._again.clear()
                # A call that is on its way in another thread will not be seen to end.
                self._local = _State()
                undo_all(self._undo)

    def _install(self) -> None:
        model = self._model()
        assert model is not None  # a handle that holds its block is being made
        decoder = find_decoder(model)
        force_recompile(self._undo, decoder)
        self._watch(decoder, self._enter, self._leave)
        for part in _inner_generators(model, decoder):
            self._watch_generate(part)
        if model is not decoder:
            # A decoder inside another model may be handed a mask of another form.
            self._watch(model, self._enter_outer, self._leave_outer)
        if hasattr(model, "generate"):
            self._watch_generate(model)

    def _watch(
        self,
        module: nn.Module,
        enter: Callable[[_State, dict[str, Any]], None],
        leave: Callable[[_State, Any], None],
    ) -> None:
        """Call `enter` with a module's arguments by name, and `leave` with its output."""
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

        add_hook(self._undo, module, "forward_pre_hook", Hook(before), with_kwargs=True)
        add_hook(self._undo, module, "forward_hook", Hook(after), always_call=True)

    def _enter_outer(self, state: _State, arguments: dict[str, Any]) -> None:
        state.mask = arguments.get("attention_mask")

    def _leave_outer(self, state: _State, _output: Any) -> None:
        state.mask = None

    def _enter(self, state: _State, arguments: dict[str, Any]) -> None:
        model = self._model()
        assert model is not None  # it is running
        prompt = state.prompt or _unseen_prompt(model)
        if prompt is None:
            virtual = virtual_tokens(calling_wrapper(model))
        else:
            virtual = prompt.virtual
        call = self._describe(state, arguments, prompt, virtual)
        state.rows = None if prompt is None else prompt.rows
        state.first = _get_sequence_nr()
        state.tokens = tuple(tokens_of(arguments).shape[:2])
        state.end = call.offset + virtual + state.tokens[1]
        state.call = call

    def _leave(self, state: _State, output: Any) -> None:
        end = _get_sequence_nr()
        if state.call is not None and end > state.first:
            rerun = _Rerun(state.first, end, state.call)
            self._again.append(rerun)
            if any(list(self._users.values())):
                self._guard(output, rerun)
        call, state.call, state.tokens = state.call, None, None
        cache = cache_among(lambda name: getattr(output, name, None))
        # A list of states cannot be known again.
        with suppress(TypeError):
            if cache is not None and call is not None:
                length = call.prompt_length
                # After `scoring`, what was read is the prompt of what follows.
                prompt = length if isinstance(length, int) else state.end
                self._cached[cache] = _Cached(state.end, prompt)

    def _guard(self, output: Any, rerun: _Rerun) -> None:
        """Make a backward pass refuse to rerun blocks once the steering is off.

        Without it a block would be run again unsteered, in silence with reentrant checkpointing.
        """
        model = self._model()
        stream = getattr(output, "last_hidden_state", None)
        if model is None or not isinstance(stream, Tensor) or not stream.requires_grad:
            return
        if not any(
            m.training and getattr(m, "gradient_checkpointing", False) for m in model.modules()
        ):
            return

        def check(_gradient: Tensor) -> None:
            if all(each is not rerun for each in self._again):
                raise RuntimeError(_OUTSIDE)

        stream.register_hook(check)

    def _watch_generate(self, model: Any) -> None:
        """Wrap `model.generate` to record its prompt; the undo restores the original."""
        original = model.generate
        had_own = "generate" in vars(model)
        reference = weakref.ref(model)

        def generate(*args: Any, **kwargs: Any) -> Any:
            prompt = None
            if getattr(kwargs.get("generation_config"), "is_assistant", None):
                # A model that drafts for itself continues the text that it is generating.
                prompt = self._local.prompt or _unseen_prompt(reference())
            with self._generating(prompt or _prompt_of(reference(), args, kwargs)):
                return original(*args, **kwargs)

        def undo() -> None:
            alive = reference()
            if alive is not None and had_own:
                alive.generate = original
            elif alive is not None:
                vars(alive).pop("generate", None)

        self._undo.append(undo)
        model.generate = generate

    @contextmanager
    def _generating(self, prompt: _Prompt) -> Iterator[None]:
        state = self._local
        outer = state.prompt
        state.prompt, state.end = prompt, 0
        try:
            yield
        finally:
            state.prompt = outer

    @contextmanager
    def scoring(self, lengths: Tensor) -> Iterator[None]:
        """Treat each row's first `lengths` [b] tokens, padding included, as its prompt.

        For reading prompts together with their continuations in one pass, as if each
        continuation had been generated.
        """
        state = self._local
        state.lengths = lengths
        try:
            yield
        finally:
            state.lengths = None

    def _describe(
        self, state: _State, arguments: dict[str, Any], prompt: _Prompt | None, virtual: int
    ) -> ForwardCall:
        tokens = tokens_of(arguments)
        batch, t = tokens.shape[:2]
        mask = plain_mask(arguments.get("attention_mask"), state.mask)
        offset = self._offset(state, arguments, t, mask) - virtual
        if prompt is not None and offset >= prompt.length:
            # Decoding: nothing but generated tokens, and no look at the mask, which would
            # make a GPU wait once a token.
            return ForwardCall(offset, prompt.length, None, None, GUIDED if prompt.guided else "")
        if prompt is not None and prompt.mask is not None and not prompt.guided:
            # It covers the whole prompt; the one of this call ends with its chunk when the prompt
            # is read in chunks.
            mask, one_text = prompt.mask.repeat_interleave(batch // len(prompt.mask), dim=0), True
        elif mask is not None:
            mask, one_text = mask[:, virtual:], True
        else:
            mask, one_text = self._read_square(arguments, offset, virtual)
        real = real_tokens(mask, offset, tokens)
        lengths = state.lengths
        if lengths is not None:
            square = square_mask(arguments.get("attention_mask"), state.mask)
            places = None if square is None else arguments.get("position_ids")
            return ForwardCall(offset, lengths, real, lengths - 1, mask=mask, places=places)
        known = True
        if prompt is not None:
            length = prompt.length
        elif offset > 0:
            length, known = self._prompt_in_cache(arguments, offset)
        else:
            length = t + offset
        whole = mask is not None and (prompt is None or mask.shape[1] >= length)
        last = last_real_position(mask[:, :length]) if mask is not None and whole else None
        obstacle = GUIDED if prompt is not None and prompt.guided else ""
        if not one_text or is_packed(arguments, mask, real):
            obstacle = PACKED
        return ForwardCall(offset, length, real, last, obstacle, mask, None, known)

    def _read_square(
        self, arguments: dict[str, Any], offset: int, virtual: int
    ) -> tuple[Tensor | None, bool]:
        """Return a mask [b, positions] of the call, and whether each row is one text."""
        square = square_mask(arguments.get("attention_mask"), self._local.mask)
        # Who opens `scoring` packs rows knowingly.
        if square is None or has_boundaries(arguments) or self._local.lengths is not None:
            return None, True
        batch, t = tokens_of(arguments).shape[:2]
        real, one_text = read_square(square, offset + virtual, batch, t)
        if real is None:
            return None, one_text
        before = real.new_ones(batch, max(offset, 0))
        return torch.cat([before, real[:, max(-offset, 0) :]], dim=1), one_text

    def _prompt_in_cache(self, arguments: dict[str, Any], offset: int) -> tuple[int, bool]:
        """Return the length of the prompt that a cache begins with, and whether it is known.

        It is all that the cache held when it was first seen.
        """
        try:
            cached = self._cached.get(cache_among(arguments.get))
        except TypeError:
            return offset, False
        return offset if cached is None else min(cached.prompt, offset), True

    def _offset(self, state: _State, arguments: dict[str, Any], t: int, mask: Tensor | None) -> int:
        """Return how many tokens came before those of this call."""
        cache_position = arguments.get("cache_position")
        if isinstance(cache_position, Tensor) and cache_position.numel():
            # transformers 4 says it; the length of its static cache leaves out padding.
            return int(cache_position[0])
        cache = cache_among(arguments.get)
        if cache is None:
            return 0
        length = own_length(cache)
        if length is not None:
            return length
        with suppress(KeyError, TypeError):
            return self._cached[cache].tokens
        if state.prompt is not None:
            return int(state.end)
        return 0 if mask is None else mask.shape[1] - t


def _unseen_prompt(model: Any) -> _Prompt | None:
    """Return the prompt of a running `generate` that is not watched."""
    variables = calling_generate(model)
    if variables is None:
        return None
    return _prompt_of(model, (variables["inputs"],), variables | variables["kwargs"])


def _prompt_of(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Prompt:
    """Return the prompt that `model.generate` is called with."""
    # Embeddings come first, as in transformers: ids beside them are not read.
    named = [kwargs.get(name) for name in ("inputs_embeds", "input_ids", "inputs")]
    tokens = next((value for value in (*named, *args[:1]) if value is not None), None)
    rows, length = (1, 1) if tokens is None else tokens.shape[:2]
    mask = plain_mask(kwargs.get("attention_mask"))
    if mask is not None:
        # Wider than the ids where these only continue a cache.
        length = max(length, mask.shape[1])
    # PEFT's `generate` puts its own method here while it runs.
    prepare = getattr(model, "prepare_inputs_for_generation", None)
    virtual = virtual_tokens(getattr(prepare, "__self__", None))
    return _Prompt(length, mask, rows, virtual, _is_guided(model, kwargs))


def _is_guided(model: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `model.generate` runs the model on a second prompt for guidance."""
    processors = kwargs.get("logits_processor") or ()
    if any("ClassifierFreeGuidance" in type(each).__name__ for each in processors):
        return True
    configs = kwargs.get("generation_config"), getattr(model, "generation_config", None)
    scales = (kwargs, *(vars(config) for config in configs if config is not None))
    scale = next((s for each in scales if (s := each.get("guidance_scale")) is not None), 1)
    return bool(scale != 1)


def _inner_generators(model: nn.Module, decoder: nn.Module) -> list[nn.Module]:
    """List the parts of a model that hold its decoder and generate by themselves.

    BLIP-2 and Kosmos-2 hand over to the language model inside: their own `generate` begins with
    pixels, and which tokens stand for the image is known to the inner one alone.
    """
    path = next((path for path, part in model.named_modules() if part is decoder), "")
    names = path.split(".") if path else []
    owners = (model.get_submodule(".".join(names[: end + 1])) for end in range(len(names)))
    return [owner for owner in owners if hasattr(owner, "generate")]
