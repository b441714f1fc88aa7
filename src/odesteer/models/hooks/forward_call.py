"""Description of one decoder call: offset, prompt length, padding."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

# What models call the state that carries earlier tokens: attention, Mamba, RWKV.
_CACHES = ("past_key_values", "cache_params", "state")
# What tells a model where each of the texts in a packed row begins.
_BOUNDARIES = ("cu_seq_lens_q", "seq_idx")
# What an additive mask adds where a token does not see another is far below this.
_HIDDEN = -1e3

PACKED = (
    "Several texts share a row here (generate_batch, padding-free training, position_ids that "
    "begin again, a mask that parts them)"
)
GUIDED = "Classifier-free guidance runs the model on a second prompt"


@dataclass
class ForwardCall:
    """What the tokens of the running forward pass are.

    Positions count from the first token of the padded prompt. Virtual tokens (PEFT's soft
    prompts) that pass through the blocks stand before it, at negative positions.
    """

    offset: int  # position of the first token
    prompt_length: int | Tensor  # positions from here on are generated; a tensor is one a row, [b]
    real: Tensor | None  # [b, t], None when every token is
    last: Tensor | None  # [b], position of each prompt's last real token
    obstacle: str = ""  # why prompts cannot be told apart from what follows them

    def prompt_ends(self, batch: int, device: torch.device) -> Tensor:
        """[b], position of the last token of each prompt."""
        last = self.last
        if last is None:
            last = torch.as_tensor(self.prompt_length) - 1
        return last.to(device).expand(batch)


def tokens_of(arguments: dict[str, Any]) -> Tensor:
    ids = arguments.get("input_ids")
    return arguments["inputs_embeds"] if ids is None else ids


def plain_mask(*masks: Any) -> Tensor | None:
    """The first [b, positions] mask; other forms do not say directly which tokens are padding."""
    return next((mask for mask in masks if isinstance(mask, Tensor) and mask.dim() == 2), None)


def square_mask(*masks: Any) -> Tensor | None:
    """The first [b, heads, t, keys] mask, also among those by kind of attention."""
    for mask in masks:
        if isinstance(mask, dict):
            mask = square_mask(mask.get("full_attention"), *mask.values())
        if isinstance(mask, Tensor) and mask.dim() == 4:
            return mask
    return None


def read_square(mask: Tensor, offset: int, batch: int, t: int) -> tuple[Tensor | None, bool]:
    """Which of the t tokens after `offset` are real [b, t], and whether each row is one text.

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
    """Which tokens [b, t] of a call at `offset` are real; None when every one is.

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
    """Whether a call says itself where each of several texts in a row begins."""
    return any(arguments.get(name) is not None for name in _BOUNDARIES)


def is_packed(arguments: dict[str, Any], mask: Tensor | None, real: Tensor | None) -> bool:
    """Whether several texts stand one after another in a row of a call."""
    if has_boundaries(arguments):
        return True
    t = tokens_of(arguments).shape[1]
    if t == 1:
        return False
    if mask is not None and bool((mask > 1).any()):
        return True  # numbers of texts, as some trainers write them
    places = arguments.get("position_ids")
    if not isinstance(places, Tensor) or places.shape[-1] != t:
        return False
    repeats = places.dim() == 3  # tokens of an image share a time
    places = places[0] if repeats else places
    if real is not None:
        places = places.masked_fill(~real.to(places.device), -1)
    highest = places.cummax(dim=-1).values[:, :-1]
    follows = places[:, 1:] >= highest if repeats else places[:, 1:] > highest
    return not bool((follows | (places[:, 1:] < 0)).all())


def last_real_position(mask: Tensor) -> Tensor:
    """The position of the last real token of each row, [b]; -1 where there is none."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask != 0, columns, -1).amax(dim=1)


def cache_among(get: Callable[[str], Any]) -> Any:
    """The cache among what a decoder is given or returns; None where there is none."""
    return next((found for name in _CACHES if (found := get(name)) is not None), None)


def own_length(cache: Any) -> int | None:
    """The tokens in a cache; None for one that does not count them, as recurrent states."""
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
    """The PEFT model whose `forward` is running `model`; None where there is none.

    Looked for among the callers: PEFT leaves no trace on the model inside, to which a steering
    may be attached, and the arguments do not tell a learnt prefix from earlier tokens.
    """
    peft = sys.modules.get("peft")
    forwards = frozenset() if peft is None else _forwards(peft.PeftModel)
    wrappers = (variables["self"] for variables in _callers(forwards))
    return next((each for each in wrappers if each.get_base_model() is model), None)


def calling_generate(model: nn.Module) -> dict[str, Any] | None:
    """The variables of the `generate` of transformers that is running `model`, if one is.

    For one that goes round the `generate` of the instance: GenerationMixin.generate(model, ...),
    or one that was running when the steering was attached.
    """
    running = _callers(_generates(type(model).__mro__))
    return next((variables for variables in running if variables["self"] is model), None)


def _callers(codes: frozenset[CodeType]) -> Iterator[dict[str, Any]]:
    """The variables of each caller that runs one of these, innermost first."""
    frame: FrameType | None = sys._getframe(1) if codes else None
    while frame is not None:
        if frame.f_code in codes:
            yield frame.f_locals
        frame = frame.f_back


@functools.cache
def _forwards(wrapper: type) -> frozenset[CodeType]:
    """The code of `forward` of the subclasses for each task, which add the virtual tokens."""
    classes: list[Any] = wrapper.__subclasses__()
    return frozenset(each.forward.__code__ for each in classes)


@functools.cache
def _generates(classes: tuple[Any, ...]) -> frozenset[CodeType]:
    mixins = [each for each in classes if each.__name__ == "GenerationMixin"]
    return frozenset(inspect.unwrap(each.generate).__code__ for each in mixins)
