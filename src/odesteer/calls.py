"""What does one call of a decoder say of its tokens?"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# What models call the state that carries earlier tokens: attention, Mamba, RWKV.
_CACHES = ("past_key_values", "cache_params", "state")


@dataclass
class Call:
    """What the tokens of the running forward pass are."""

    offset: int  # absolute position of the first token
    prompt_length: int | Tensor  # positions from here on are generated; a tensor is one a row, [b]
    real: Tensor | None  # [b, t], None when every token is
    last: Tensor | None  # [b], absolute position of each prompt's last real token
    packed: bool = False  # several texts lie one after another in a row

    def prompt_ends(self, batch: int, device: torch.device) -> Tensor:
        """[b], absolute position of the last token of each prompt."""
        last = self.last
        if last is None:
            last = torch.as_tensor(self.prompt_length) - 1
        return last.to(device).expand(batch)


def tokens_of(arguments: dict[str, Any]) -> Tensor:
    ids = arguments.get("input_ids")
    return arguments["inputs_embeds"] if ids is None else ids


def plain_mask(mask: Any) -> Tensor | None:
    """A [b, positions] mask; any other form does not say which tokens are padding."""
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None


def last_real(mask: Tensor) -> Tensor:
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
